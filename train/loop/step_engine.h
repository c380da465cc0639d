// Forward and backward passes of the micro-batches of a step, on one device.
#pragma once

#include <functional>
#include <map>
#include <memory>

#include "autograd/cuda/cuda_graph.h"
#include "autograd/place.h"
#include "modules/language_model.h"
#include "parallel/communicator.h"
#include "train/loop/phase_clock.h"
#include "train/loop/row_slots.h"

namespace weft {

struct StepEngineOptions {
  double z_loss = 0.0;
  bool graphs = true;              // on CUDA: record the kernels of a micro-batch once, then replay them
  std::int64_t micro_batches = 1;  // of a step
};

class StepEngine {
 public:
  // The model lives at `place`.
  StepEngine(LanguageModel& model, const Place& place, const StepEngineOptions& options);

  // A new step whose loss is divided by `denominator`.
  void begin(double denominator);
  // Gradients of one micro-batch are added to those of the parameters. On CUDA the call returns when the work is
  // enqueued. `on_ready` is called as Tape::on_parameter_ready, on the CPU only, where the clock tells forward from
  // backward.
  void accumulate(const Batch& batch, PhaseClock& clock, const std::function<void(Parameter&)>& on_ready = {});
  // Of all micro-batches since begin(); waits for the device.
  LossSums sums() const;
  // Of w_t l_t over the micro-batches since begin(), over the denominator: f64 [1] at the place. On the CPU over all
  // ranks of the group.
  Tensor mean_loss(Communicator& group);

 private:
  struct Recording {
    explicit Recording(const RowForm& form, const Place& place) : slot(form, place) {}
    RowSlot slot;
    CudaGraph graph;
    bool ran = false;  // once, so that all that a recording must not make exists
  };
  void run(const Batch& batch, double denominator, PhaseClock& clock, const std::function<void(Parameter&)>& on_ready);
  void accumulate_on_device(const Batch& batch, PhaseClock& clock);

  LanguageModel& model_;
  Place place_;
  StepEngineOptions options_;
  double denominator_ = 1.0;
  std::int64_t done_ = 0;        // micro-batches of this step
  Tensor seed_;                  // [1], 1, at the place
  Tensor recorded_denominator_;  // f32 [1], on a GPU
  Tensor pinned_denominator_;
  Tensor latest_;  // f64 [4]: LossSums of the micro-batch that ran last
  Tensor sums_;    // f64 [micro_batches, 4]
  Tensor mean_;    // f64 [1]
  std::map<RowForm, std::unique_ptr<Recording>> recordings_;
};

}  // namespace weft
