#include "train/optimizers/optimizer.h"

#include <algorithm>
#include <cmath>

#include "autograd/parallel_for.h"
#include "autograd/transfer.h"
#include "train/optimizers/adamw.h"
#include "train/optimizers/cuda_update.h"
#include "train/optimizers/gradient_norm.h"
#include "train/optimizers/muon.h"

namespace weft {
namespace {

// Elements of a stretch that one thread updates at a time.
constexpr std::int64_t kBlock = 65536;

}  // namespace

#ifndef WEFT_CUDA
// Never made in a build without CUDA.
struct CudaUpdate::Impl {};
CudaUpdate::~CudaUpdate() = default;
#endif

Optimizer::Optimizer(std::span<Parameter* const> parameters, const OptimizerOptions& options,
                     const OptimizerPlace& place)
    : options_(options), plans_(plan_parameters(parameters, options)) {
  const auto state = [&](const Parameter& parameter) {
    if (place.memory == nullptr) return Tensor::zeros(parameter.shape, DType::f32);
    Tensor zeros(parameter.shape, DType::f32, place.memory);
    fill_zero(zeros, place.stream);
    return zeros;
  };
  for (std::size_t p = 0; p < plans_.size(); ++p) {
    const ParameterPlan& plan = plans_[p];
    Parameter& parameter = *plan.parameter;
    WEFT_CHECK(parameter.master.defined() && parameter.master.dtype() == DType::f32 && parameter.grad.defined() &&
                   parameter.grad.dtype() == DType::f32 && parameter.grad.device() == place.stream.device,
               "{} is not allocated in f32", parameter.name);
    OptimizerMoments moments;
    if (plan.rule != UpdateRule::frozen) {
      trainable_.push_back(&parameter);
      moments.first = state(parameter);
    }
    if (plan.rule == UpdateRule::adamw) {
      moments.second = state(parameter);
      for (std::int64_t begin = 0; begin < parameter.shape.numel(); begin += kBlock) {
        stretches_.push_back({p, begin, std::min(kBlock, parameter.shape.numel() - begin)});
      }
    }
    if (plan.rule == UpdateRule::muon) {
      const std::int64_t elements = plan.matrix_rows() * plan.matrix_columns();
      for (std::int64_t i = 0; i < plan.matrices; ++i) matrices_.push_back({p, i * elements, elements});
      workspace_size_ = std::max(workspace_size_, muon_workspace(plan.matrix_rows(), plan.matrix_columns()));
    }
    moments_.push_back(std::move(moments));
  }
  // Costly matrices first, so that threads end together; the order has no influence on results.
  std::ranges::stable_sort(matrices_, std::greater(), [this](const Stretch& matrix) {
    const ParameterPlan& plan = plans_[matrix.plan];
    return matrix.elements * std::min(plan.matrix_rows(), plan.matrix_columns());
  });
  if (place.stream.device.is_cpu()) return;
#ifdef WEFT_CUDA
  on_gpu_ = std::make_unique<CudaUpdate>(plans_, moments_, options_, place);
#else
  fail(ExitCode::internal, "an optimizer on a GPU in a build without CUDA");
#endif
}

Optimizer::~Optimizer() = default;
Optimizer::Optimizer(Optimizer&&) noexcept = default;

void Optimizer::prepare(const StepSettings& settings) {
  settings_ = settings;
#ifdef WEFT_CUDA
  if (on_gpu_ != nullptr) on_gpu_->prepare(settings, updates_ + 1);
#endif
}

void Optimizer::step(const Tensor& loss) {
#ifdef WEFT_CUDA
  if (on_gpu_ != nullptr) return on_gpu_->launch(loss);
#endif
  const GradientNorm norm = gradient_norm(trainable_);
  const double mean_loss = loss.defined() ? *loss.data<double>() : 0.0;
  squares_ = norm.squares;
  outcome_.norm = norm.norm;
  outcome_.gradient_scale = clip_factor(norm.norm, settings_.clip);
  outcome_.applied =
      norm.finite() && std::isfinite(mean_loss) && mean_loss <= settings_.most_loss && norm.norm <= settings_.most_norm;
  if (outcome_.applied) {
    update(settings_.schedule_factor, outcome_.gradient_scale, GradientsAfter::zero);
  } else {
    for (const ParameterPlan& plan : plans_) plan.parameter->grad.fill_zero();
  }
}

StepOutcome Optimizer::finish() {
#ifdef WEFT_CUDA
  if (on_gpu_ != nullptr) {
    const StepOutcome outcome = on_gpu_->outcome();
    updates_ += outcome.applied ? 1 : 0;
    return outcome;
  }
#endif
  return outcome_;
}

std::vector<double> Optimizer::gradient_squares() const {
#ifdef WEFT_CUDA
  if (on_gpu_ != nullptr) return on_gpu_->squares();
#endif
  return squares_;
}

void Optimizer::update(double schedule_factor, double gradient_scale, GradientsAfter after) {
  WEFT_CHECK(on_gpu_ == nullptr, "an update of parameters on a GPU; prepare() and step() make it");
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
    const OptimizerMoments& moments = moments_[s.plan];
    adamw_update(scalars[s.plan], zero, s.elements, parameter.master.data<float>() + s.begin,
                 parameter.grad.data<float>() + s.begin, moments.first.data<float>() + s.begin,
                 moments.second.data<float>() + s.begin);
  });
}

void Optimizer::update_muon(double schedule_factor, double gradient_scale, bool zero) {
  WEFT_CHECK(!omp_in_parallel(), "an update inside a threaded loop");
  // Any thread may take a matrix, even where threads are more than matrices. What is not written takes no memory.
  while (std::ssize(workspaces_) < task_threads()) {
    workspaces_.push_back(std::make_unique_for_overwrite<float[]>(workspace_size_));
  }
  for_each_task(std::ssize(matrices_), [&](std::int64_t i) {
    const Stretch& s = matrices_[static_cast<std::size_t>(i)];
    const ParameterPlan& plan = plans_[s.plan];
    const std::int64_t A = plan.matrix_rows();
    const std::int64_t B = plan.matrix_columns();
    const MuonScalars scalars =
        muon_scalars(options_.muon, plan.learning_rate * schedule_factor, plan.weight_decay, gradient_scale, A, B);
    muon_update(scalars, zero, A, B, plan.parameter->master.data<float>() + s.begin,
                plan.parameter->grad.data<float>() + s.begin, moments_[s.plan].first.data<float>() + s.begin,
                workspaces_[static_cast<std::size_t>(omp_get_thread_num())].get());
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
