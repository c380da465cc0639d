// The parameter update: AdamW and Muon side by side, with fp32 states, over the plans of parameter_groups.h.
//
// A step has three parts: prepare() with what the host knows before it, step() with the gradients, which on a GPU only
// launches and decides on the device whether the update is made, and finish(), which waits for what became of it.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "train/optimizers/parameter_groups.h"

namespace weft {

// A piece of optimizer state as checkpoints name it.
struct OptimizerState {
  std::string_view kind;  // "m", "v": AdamW's moments; "mom": Muon's momentum
  std::string parameter;
  Tensor tensor;  // f32, shape of the parameter; shares the optimizer's storage
};

enum class GradientsAfter : std::uint8_t { keep, zero };

// Where the parameters live.
struct OptimizerPlace {
  Stream stream = {};
  std::shared_ptr<Allocator> memory = nullptr;   // of the states; null: host memory
  std::shared_ptr<Allocator> scratch = nullptr;  // on a GPU: what Muon needs while it runs
};

struct StepSettings {
  double schedule_factor = 1.0;  // rates are peak times this
  double clip = 0.0;             // of the gradient norm; 0: off
  // Beyond these the step is skipped, as it is when loss or norm is not finite.
  double most_loss = std::numeric_limits<double>::infinity();
  double most_norm = std::numeric_limits<double>::infinity();
};

struct StepOutcome {
  double norm = 0.0;            // of the gradients, before clipping
  double gradient_scale = 1.0;  // the clip factor
  bool applied = false;         // if not, parameters and states are as they were
};

struct OptimizerMoments {
  Tensor first;   // m or mom
  Tensor second;  // v
};

class CudaUpdate;

class Optimizer {
 public:
  // Allocates zeroed states. Parameters have f32 masters, are allocated, and outlive the optimizer. Error (config) as
  // plan_parameters.
  Optimizer(std::span<Parameter* const> parameters, const OptimizerOptions& options, const OptimizerPlace& place = {});
  ~Optimizer();
  Optimizer(Optimizer&&) noexcept;

  // Once before each step; on a GPU it copies a few numbers there, outside of any captured graph.
  void prepare(const StepSettings& settings);
  // Gradient norm and clipping, and the update unless a limit or a number that is not finite forbids it. `loss`
  // (f64 [1], the mean of the step) may be undefined. All gradients are zero afterwards. On a GPU: launches only.
  void step(const Tensor& loss = {});
  // Waits for the step and counts its update.
  StepOutcome finish();
  // Of the last step, by parameter of trainable(): what nonfinite_parameters() reads. Waits.
  std::vector<double> gradient_squares() const;

  // On the CPU, the update alone: with rates peak * schedule_factor, reading gradients times `gradient_scale` (the clip
  // factor). With GradientsAfter::zero every gradient, of frozen parameters too, is zero afterwards, in the same pass
  // over memory. Results do not depend on the number of threads.
  void update(double schedule_factor, double gradient_scale = 1.0, GradientsAfter after = GradientsAfter::keep);

  // Updates made; bias correction counts these, not steps. A resumed run sets it.
  std::int64_t updates() const { return updates_; }
  void set_updates(std::int64_t updates) { updates_ = updates; }

  // In the order of the parameters; m before v. Loading a checkpoint writes into the tensors.
  std::vector<OptimizerState> states() const;

  // Parameters that are not frozen, in order: those of the gradient norm.
  std::span<Parameter* const> trainable() const { return trainable_; }
  std::span<const ParameterPlan> plans() const { return plans_; }

 private:
  // Elements [begin, begin + elements) of a plan's parameter.
  struct Stretch {
    std::size_t plan;
    std::int64_t begin;
    std::int64_t elements;
  };
  void update_adamw(double schedule_factor, double gradient_scale, bool zero);
  void update_muon(double schedule_factor, double gradient_scale, bool zero);

  OptimizerOptions options_;
  std::vector<ParameterPlan> plans_;
  std::vector<OptimizerMoments> moments_;  // by plan
  std::vector<Parameter*> trainable_;
  std::vector<Stretch> stretches_;                    // of adamw parameters
  std::vector<Stretch> matrices_;                     // of muon parameters, one each
  std::size_t workspace_size_ = 0;                    // floats that the largest matrix needs
  std::vector<std::unique_ptr<float[]>> workspaces_;  // muon, by thread
  std::int64_t updates_ = 0;
  StepSettings settings_;
  StepOutcome outcome_;                 // of a step on the CPU,
  std::vector<double> squares_;         // and its gradients
  std::unique_ptr<CudaUpdate> on_gpu_;  // null on the CPU
};

}  // namespace weft
