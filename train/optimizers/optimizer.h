// The parameter update: AdamW and Muon side by side, with fp32 states, over the plans of parameter_groups.h.
#pragma once

#include <cstdint>
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

class Optimizer {
 public:
  // Allocates zeroed states. Parameters are f32, allocated, and outlive the optimizer. Error (config) as
  // plan_parameters.
  Optimizer(std::span<Parameter* const> parameters, const OptimizerOptions& options);

  // One update with rates peak * schedule_factor, reading gradients times `gradient_scale` (the clip factor). With
  // GradientsAfter::zero every gradient, of frozen parameters too, is zero afterwards, in the same pass over memory.
  // Results do not depend on the number of threads.
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
  struct Moments {
    Tensor first;   // m or mom
    Tensor second;  // v
  };
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
  std::vector<Moments> moments_;  // by plan
  std::vector<Parameter*> trainable_;
  std::vector<Stretch> stretches_;              // of adamw parameters
  std::vector<Stretch> matrices_;               // of muon parameters, one each
  std::size_t workspace_size_ = 0;              // floats that the largest matrix needs
  std::vector<std::vector<float>> workspaces_;  // muon, by thread
  std::int64_t updates_ = 0;
};

}  // namespace weft
