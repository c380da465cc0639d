#include "autograd/tape.h"

#include <algorithm>
#include <utility>

#include "autograd/tape_profile.h"
#include "autograd/tape_watch.h"
#include "autograd/transfer.h"

namespace weft {

namespace {

thread_local TapeWatch* watch = nullptr;

}  // namespace

TapeWatch::TapeWatch() {
  WEFT_CHECK(watch == nullptr, "two watches of tapes at a time");
  watch = this;
}
TapeWatch::~TapeWatch() {
  watch = nullptr;
}
TapeWatch* TapeWatch::current() {
  return watch;
}

LaunchScope::LaunchScope(Stream stream, Tensor workspace) : workspace_(std::move(workspace)) {
  launch_.stream = stream;
  if (workspace_.defined()) {
    launch_.workspace = workspace_.raw();
    launch_.workspace_bytes = workspace_.nbytes();
  }
}

Tape::Tape(std::shared_ptr<Allocator> memory, Mode mode, Stream stream)
    : memory_(std::move(memory)), mode_(mode), stream_(stream) {}

Tape::~Tape() = default;

LaunchScope Tape::launch(std::size_t workspace_bytes) const {
  Tensor workspace;
  if (workspace_bytes > 0) workspace = empty({static_cast<std::int64_t>((workspace_bytes + 3) / 4)}, DType::i32);
  return LaunchScope(stream_, std::move(workspace));
}

Tensor Tape::here(const Tensor& tensor) const {
  return !tensor.defined() || tensor.device() == device() ? tensor : to_memory(tensor, memory_, stream_);
}

GradTarget Tape::parameter_gradient(const Var& v) const {
  Parameter* parameter = v.requires_grad() ? slots_[static_cast<std::size_t>(v.slot)].parameter : nullptr;
  if (parameter == nullptr) return {};
  return {parameter->grad.reshape(v.shape()), Write::accumulate};
}

std::int32_t Tape::new_slot(const Tensor& value, DType gradient, Parameter* parameter) {
  slots_.push_back({.grad = {}, .parameter = parameter, .shape = value.shape(), .dtype = gradient});
  return static_cast<std::int32_t>(slots_.size() - 1);
}

Var Tape::leaf(const Tensor& value) {
  return leaf(value, value.dtype());
}

Var Tape::leaf(const Tensor& value, DType gradient) {
  return {value, recording() ? new_slot(value, gradient, nullptr) : -1};
}

Var Tape::parameter(Parameter& parameter) {
  const auto [it, inserted] = parameter_slots_.try_emplace(&parameter, -1);
  if (inserted) {
    if (recording()) {
      it->second = new_slot(parameter.value, parameter.grad.dtype(), &parameter);
    } else {
      touched_.push_back(&parameter);
    }
  }
  return {parameter.value, it->second};
}

bool Tape::wants(std::span<const Var> inputs) const {
  return recording() && std::any_of(inputs.begin(), inputs.end(), [](const Var& v) { return v.requires_grad(); });
}

void Tape::append(std::unique_ptr<Node> node, const char* op, std::span<const Var> inputs, std::span<Var> outputs) {
  node->op = op;
  for (const Var& v : inputs) {
    node->inputs.push_back(v.slot);
    node->input_shapes.push_back(v.value.defined() ? v.shape() : Shape{});
    if (v.requires_grad()) {
      if (Parameter* p = slots_[static_cast<std::size_t>(v.slot)].parameter) ++pending_uses_[p];
    }
  }
  for (Parameter* p : node->span_parameters) ++pending_uses_[p];
  for (Var& v : outputs) {
    v.slot = new_slot(v.value, v.value.dtype(), nullptr);
    node->outputs.push_back(v.slot);
    node->output_shapes.push_back(v.shape());
  }
  nodes_.push_back(std::move(node));
  TapeProfile::note(op, false);
  if (watch == nullptr) return;
  const auto values = [&](std::span<const Var> vars) {
    std::vector<TapeWatch::Value> list;
    for (const Var& v : vars) {
      list.push_back({v.value, v.requires_grad() ? slots_[static_cast<std::size_t>(v.slot)].parameter : nullptr});
    }
    return list;
  };
  watch->computed(op, values(inputs), values(outputs));
}

void Tape::add_to_slot(std::int32_t slot_index, const Tensor& gradient) {
  Slot& slot = slots_[static_cast<std::size_t>(slot_index)];
  if (slot.parameter != nullptr) return add_into(slot.parameter->grad, gradient, stream_);
  if (!slot.grad.defined()) {
    slot.grad = gradient.reshape(slot.shape);
    return;
  }
  if (slot.grad.shares_storage()) {
    Tensor own = empty(slot.shape, slot.dtype);
    copy(own, slot.grad, stream_);
    slot.grad = own;
  }
  add_into(slot.grad, gradient, stream_);
}

void Tape::finish_use(Parameter& parameter) {
  if (--pending_uses_[&parameter] == 0 && on_parameter_ready) on_parameter_ready(parameter);
}

void Tape::run(Node& node) {
  if (!node.restored.empty()) {
    node.restored.restore(*this);
    TapeProfile::note("cheap operations again", true);
  }
  const bool reached = std::any_of(node.outputs.begin(), node.outputs.end(),
                                   [&](std::int32_t s) { return slots_[static_cast<std::size_t>(s)].grad.defined(); });
  if (reached) {
    Backward pass(*this, node);
    node.backward(pass);
    for (const auto& [slot, gradient] : pass.late_) add_to_slot(slot, gradient);
    TapeProfile::note(node.op, true);
    if (watch != nullptr) {
      const auto gradients = [&](std::span<const std::int32_t> slots) {
        std::vector<TapeWatch::Value> list;
        for (const std::int32_t s : slots) {
          if (s < 0) continue;
          const Slot& slot = slots_[static_cast<std::size_t>(s)];
          list.push_back({slot.parameter != nullptr ? slot.parameter->grad : slot.grad, slot.parameter});
        }
        return list;
      };
      watch->differentiated(node.op, gradients(node.outputs), gradients(node.inputs));
    }
  }
  for (const std::int32_t s : node.outputs) slots_[static_cast<std::size_t>(s)].grad = {};
  for (const std::int32_t s : node.inputs) {
    if (s >= 0 && slots_[static_cast<std::size_t>(s)].parameter)
      finish_use(*slots_[static_cast<std::size_t>(s)].parameter);
  }
  for (Parameter* p : node.span_parameters) finish_use(*p);
}

void Tape::backward(const Var& output, const Tensor& seed) {
  backward(std::span<const Var>(&output, 1), std::span<const Tensor>(&seed, 1));
}

void Tape::backward(std::span<const Var> outputs, std::span<const Tensor> seeds) {
  WEFT_CHECK(recording(), "backward on an inference tape");
  WEFT_CHECK(outputs.size() == seeds.size(), "{} outputs, {} seeds", outputs.size(), seeds.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    WEFT_CHECK(seeds[i].dtype() == outputs[i].dtype(), "seed of {} for an output of {}", name_of(seeds[i].dtype()),
               name_of(outputs[i].dtype()));
    if (outputs[i].requires_grad()) add_to_slot(outputs[i].slot, seeds[i]);
  }
  while (!nodes_.empty()) {
    run(*nodes_.back());
    nodes_.pop_back();
  }
}

Tensor Tape::gradient(const Var& leaf) const {
  WEFT_CHECK(leaf.requires_grad(), "gradient of a constant");
  const Tensor& grad = slots_[static_cast<std::size_t>(leaf.slot)].grad;
  return grad.defined() ? grad.reshape(leaf.shape()) : grad;
}

// --- one node's view -------------------------------------------------------------------------------------------------

Tensor Backward::grad(int output) const {
  const auto i = static_cast<std::size_t>(output);
  const Tensor& g = tape_.slots_[static_cast<std::size_t>(node_.outputs[i])].grad;
  return g.defined() ? g.reshape(node_.output_shapes[i]) : g;
}

Tensor Backward::grad_or_zero(int output) const {
  Tensor g = grad(output);
  if (!g.defined()) {
    const auto i = static_cast<std::size_t>(output);
    g = empty(node_.output_shapes[i], tape_.slots_[static_cast<std::size_t>(node_.outputs[i])].dtype);
    fill_zero(g, tape_.stream_);
  }
  return g;
}

bool Backward::wants(int input) const {
  return node_.inputs[static_cast<std::size_t>(input)] >= 0;
}

GradTarget Backward::target(int input) {
  const auto i = static_cast<std::size_t>(input);
  const std::int32_t index = node_.inputs[i];
  if (index < 0) return {};
  Tape::Slot& slot = tape_.slots_[static_cast<std::size_t>(index)];
  const Shape& shape = node_.input_shapes[i];
  // The same value twice among one node's inputs: a kernel must not see one buffer as two targets.
  if (std::find(targeted_.begin(), targeted_.end(), index) != targeted_.end()) {
    late_.emplace_back(index, empty(shape, slot.dtype));
    return {late_.back().second, Write::overwrite};
  }
  targeted_.push_back(index);
  if (slot.parameter != nullptr) return {slot.parameter->grad.reshape(shape), Write::accumulate};
  if (!slot.grad.defined()) {
    slot.grad = empty(slot.shape, slot.dtype);
    return {slot.grad.reshape(shape), Write::overwrite};
  }
  if (slot.grad.shares_storage()) {
    Tensor own = empty(slot.shape, slot.dtype);
    copy(own, slot.grad, tape_.stream_);
    slot.grad = own;
  }
  return {slot.grad.reshape(shape), Write::accumulate};
}

void Backward::pass(int input, const Tensor& gradient) {
  const std::int32_t index = node_.inputs[static_cast<std::size_t>(input)];
  if (index >= 0) tape_.add_to_slot(index, gradient);
}

// --- recomputation ---------------------------------------------------------------------------------------------------

std::vector<Var> Tape::recompute(std::span<const Var> inputs, SpanFunction function) {
  if (!recording()) return function(*this, inputs);
  struct SpanSaved {
    std::vector<Var> inputs;
    SpanFunction function;

    void backward(Backward& pass) const {
      Tape& outer = pass.tape();
      Tape inner(outer.memory_, Mode::record, outer.stream_);
      // The inner tape goes on from the gradients that have already arrived, so that the terms of every sum come in
      // the order in which they would come without recomputation: the same bits.
      std::unordered_map<std::int32_t, std::int32_t> inner_slots;
      std::vector<Var> leaves;
      for (const Var& v : inputs) {
        if (!v.requires_grad()) {
          leaves.push_back(v);
          continue;
        }
        Slot& slot = outer.slots_[static_cast<std::size_t>(v.slot)];
        const auto [it, inserted] = inner_slots.try_emplace(v.slot, -1);
        if (inserted) {
          it->second =
              slot.parameter != nullptr ? inner.parameter(*slot.parameter).slot : inner.leaf(v.value, slot.dtype).slot;
          inner.slots_[static_cast<std::size_t>(it->second)].grad = std::exchange(slot.grad, {});
        }
        leaves.push_back({v.value, it->second});
      }
      const std::vector<Var> outputs = function(inner, leaves);
      std::vector<Var> reached;
      std::vector<Tensor> seeds;
      for (std::size_t i = 0; i < outputs.size(); ++i) {
        const Tensor seed = pass.grad(static_cast<int>(i));
        if (!seed.defined()) continue;
        reached.push_back(outputs[i]);
        seeds.push_back(seed);
      }
      inner.backward(reached, seeds);
      for (const auto& [outside, inside] : inner_slots) {
        outer.slots_[static_cast<std::size_t>(outside)].grad =
            std::exchange(inner.slots_[static_cast<std::size_t>(inside)].grad, {});
      }
    }
  };
  Tape inner(memory_, Mode::inference, stream_);
  std::vector<Var> constants;
  for (const Var& v : inputs) constants.push_back(constant(v.value));
  std::vector<Var> outputs = function(inner, constants);
  auto node = std::make_unique<NodeOf<SpanSaved>>(SpanSaved{{inputs.begin(), inputs.end()}, std::move(function)});
  node->span_parameters = inner.touched_;
  append(std::move(node), "recompute", inputs, outputs);
  return outputs;
}

std::vector<Var> Tape::recompute_cheap(std::span<const Var> inputs, const SpanFunction& function) {
  if (!recording()) return function(*this, inputs);
  WEFT_CHECK(cheap_ == nullptr, "a span of cheap operations inside another");
  struct Remember {
    CheapOperations*& place;
    CheapOperations operations;
    explicit Remember(CheapOperations*& p) : place(p) { place = &operations; }
    ~Remember() { place = nullptr; }
  } span(cheap_);
  const std::size_t before = nodes_.size();
  std::vector<Var> outputs = function(*this, inputs);
  std::vector<Tensor> results;
  for (const Var& v : outputs) results.push_back(v.value);
  if (nodes_.size() == before) return outputs;  // nothing waits for backward
  span.operations.release(results);
  nodes_.back()->restored = std::move(span.operations);
  return outputs;
}

}  // namespace weft
