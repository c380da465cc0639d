#include "train/optimizers/optimizer.h"

#include <algorithm>

#include "autograd/parallel_for.h"
#include "train/optimizers/adamw.h"
#include "train/optimizers/muon.h"

namespace weft {
namespace {

// Elements of a stretch that one thread updates at a time.
constexpr std::int64_t kBlock = 65536;

// The extents of each of a plan's matrices.
std::int64_t matrix_rows(const ParameterPlan& plan) {
  const Shape& shape = plan.parameter->shape;
  return shape.rank() == 3 ? shape[1] : shape[0] / plan.matrices;
}
std::int64_t matrix_columns(const ParameterPlan& plan) {
  return plan.parameter->shape.back();
}

}  // namespace

Optimizer::Optimizer(std::span<Parameter* const> parameters, const OptimizerOptions& options)
    : options_(options), plans_(plan_parameters(parameters, options)) {
  for (std::size_t p = 0; p < plans_.size(); ++p) {
    const ParameterPlan& plan = plans_[p];
    Parameter& parameter = *plan.parameter;
    WEFT_CHECK(parameter.value.defined() && parameter.value.dtype() == DType::f32 && parameter.grad.defined() &&
                   parameter.grad.dtype() == DType::f32,
               "{} is not allocated in f32", parameter.name);
    Moments moments;
    if (plan.rule != UpdateRule::frozen) {
      trainable_.push_back(&parameter);
      moments.first = Tensor::zeros(parameter.shape, DType::f32);
    }
    if (plan.rule == UpdateRule::adamw) {
      moments.second = Tensor::zeros(parameter.shape, DType::f32);
      for (std::int64_t begin = 0; begin < parameter.shape.numel(); begin += kBlock) {
        stretches_.push_back({p, begin, std::min(kBlock, parameter.shape.numel() - begin)});
      }
    }
    if (plan.rule == UpdateRule::muon) {
      const std::int64_t elements = matrix_rows(plan) * matrix_columns(plan);
      for (std::int64_t i = 0; i < plan.matrices; ++i) matrices_.push_back({p, i * elements, elements});
      workspace_size_ = std::max(workspace_size_, muon_workspace(matrix_rows(plan), matrix_columns(plan)));
    }
    moments_.push_back(std::move(moments));
  }
  // Costly matrices first, so that threads end together; the order has no influence on results.
  std::ranges::stable_sort(matrices_, std::greater(), [this](const Stretch& matrix) {
    const ParameterPlan& plan = plans_[matrix.plan];
    return matrix.elements * std::min(matrix_rows(plan), matrix_columns(plan));
  });
}

void Optimizer::update(double schedule_factor, double gradient_scale, GradientsAfter after) {
  const bool zero = after == GradientsAfter::zero;
  ++updates_;
  update_adamw(schedule_factor, gradient_scale, zero);
  update_muon(schedule_factor, gradient_scale, zero);
  if (!zero) return;
  for (const ParameterPlan& plan : plans_) {
    if (plan.rule == UpdateRule::frozen) plan.parameter->grad.fill_zero();
  }
}

void Optimizer::update_adamw(double schedule_factor, double gradient_scale, bool zero) {
  std::vector<AdamWScalars> scalars;
  for (const ParameterPlan& plan : plans_) {
    scalars.push_back(adamw_scalars(plan.beta1, plan.beta2, options_.adamw.eps, plan.learning_rate * schedule_factor,
                                    plan.weight_decay, gradient_scale, updates_));
  }
  parallel_for(static_cast<std::int64_t>(stretches_.size()), Schedule::fixed, [&](std::int64_t i) {
    const Stretch& s = stretches_[static_cast<std::size_t>(i)];
    const Parameter& parameter = *plans_[s.plan].parameter;
    const Moments& moments = moments_[s.plan];
    adamw_update(scalars[s.plan], zero, s.elements, parameter.value.data<float>() + s.begin,
                 parameter.grad.data<float>() + s.begin, moments.first.data<float>() + s.begin,
                 moments.second.data<float>() + s.begin);
  });
}

void Optimizer::update_muon(double schedule_factor, double gradient_scale, bool zero) {
  WEFT_CHECK(!omp_in_parallel(), "an update inside a threaded loop");
  const auto threads = std::min<std::size_t>(static_cast<std::size_t>(omp_get_max_threads()), matrices_.size());
  while (workspaces_.size() < threads) workspaces_.emplace_back(workspace_size_);
  parallel_for(static_cast<std::int64_t>(matrices_.size()), Schedule::dynamic, [&](std::int64_t i) {
    const Stretch& s = matrices_[static_cast<std::size_t>(i)];
    const ParameterPlan& plan = plans_[s.plan];
    const std::int64_t A = matrix_rows(plan);
    const std::int64_t B = matrix_columns(plan);
    const double rate = plan.learning_rate * schedule_factor;
    const MuonOptions& muon = options_.muon;
    const MuonScalars scalars{.gradient_scale = static_cast<float>(gradient_scale),
                              .momentum = static_cast<float>(muon.momentum),
                              .step = static_cast<float>(rate * muon_scale(muon.scale, muon.scale_factor, A, B)),
                              .keep = static_cast<float>(1.0 - rate * plan.weight_decay)};
    muon_update(scalars, zero, A, B, plan.parameter->value.data<float>() + s.begin,
                plan.parameter->grad.data<float>() + s.begin, moments_[s.plan].first.data<float>() + s.begin,
                workspaces_[static_cast<std::size_t>(omp_get_thread_num())].data());
  });
}

std::vector<OptimizerState> Optimizer::states() const {
  std::vector<OptimizerState> states;
  for (std::size_t p = 0; p < plans_.size(); ++p) {
    const std::string& name = plans_[p].parameter->name;
    if (plans_[p].rule == UpdateRule::adamw) {
      states.push_back({"m", name, moments_[p].first});
      states.push_back({"v", name, moments_[p].second});
    } else if (plans_[p].rule == UpdateRule::muon) {
      states.push_back({"mom", name, moments_[p].first});
    }
  }
  return states;
}

}  // namespace weft
