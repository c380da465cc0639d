// The update on a GPU: gradient norm, decision, AdamW and Muon as a fixed sequence of launches over tables of chunks,
// which a graph can capture. Everything that changes from step to step is in device memory.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "train/optimizers/optimizer.h"

namespace weft {

class CudaUpdate {
 public:
  // `moments` are by plan and live as long as the update.
  CudaUpdate(std::span<const ParameterPlan> plans, std::span<const OptimizerMoments> moments,
             const OptimizerOptions& options, const OptimizerPlace& place);
  ~CudaUpdate();
  CudaUpdate(const CudaUpdate&) = delete;
  CudaUpdate& operator=(const CudaUpdate&) = delete;

  // One copy to the device: the numbers of an update that is number `t`.
  void prepare(const StepSettings& settings, std::int64_t t);
  void launch(const Tensor& loss);
  // These wait for the stream.
  StepOutcome outcome() const;
  std::vector<double> squares() const;  // of the parameters that are not frozen

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft
