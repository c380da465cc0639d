// The tape: a vector of nodes in execution order, walked backwards by a loop.
//
// An operation allocates its outputs from the tape, launches its kernel, and records a node that holds a named struct
// of what its backward reads. That struct has one function, `void backward(Backward&) const`, which reads the gradients
// of the node's outputs and writes (or accumulates) those of its inputs. A node is freed as soon as it has been used.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "autograd/cheap_operations.h"
#include "autograd/dispatch.h"
#include "autograd/parameter.h"
#include "autograd/tensor.h"

namespace weft {

class Tape;
class Backward;

// A value on the tape. Slot -1 marks a constant: no gradient flows into it.
struct Var {
  Tensor value;
  std::int32_t slot = -1;

  bool requires_grad() const { return slot >= 0; }
  const Shape& shape() const { return value.shape(); }
  std::int64_t dim(int i) const { return value.dim(i); }
  DType dtype() const { return value.dtype(); }
  // Same elements, another shape; gradients follow, nothing is recorded.
  Var reshape(const Shape& shape) const { return {value.reshape(shape), slot}; }
};

// Where a backward puts the gradient of one input. The tensor is undefined when that input wants none.
struct GradTarget {
  Tensor tensor;
  Write write = Write::overwrite;
  bool wanted() const { return tensor.defined(); }
  void* raw() const { return wanted() ? tensor.raw() : nullptr; }
};

// Scratch memory for one launch, returned to the arena when it goes out of scope (which is stream-ordered).
class LaunchScope {
 public:
  LaunchScope(Stream stream, Tensor workspace);
  operator const Launch&() const { return launch_; }

 private:
  Tensor workspace_;
  Launch launch_;
};

class Tape {
 public:
  enum class Mode : std::uint8_t { record, inference };

  explicit Tape(std::shared_ptr<Allocator> memory, Mode mode = Mode::record, Stream stream = {});
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  // --- what operations need -------------------------------------------------------------------------------------
  Device device() const { return stream_.device; }
  const Stream& stream() const { return stream_; }
  bool recording() const { return mode_ == Mode::record; }
  Tensor empty(const Shape& shape, DType dtype) const { return Tensor(shape, dtype, memory_); }
  LaunchScope launch(std::size_t workspace_bytes = 0) const;
  // `tensor` where this tape computes: itself if it is there, else a copy.
  Tensor here(const Tensor& tensor) const;
  // The gradient of `v` if that is a parameter, for an operation that knows it before backward(); else unwanted.
  GradTarget parameter_gradient(const Var& v) const;

  // Computes outputs from inputs with `launch`, a CheapLaunch, which backward may call again instead of keeping the
  // outputs: for operations that cost little beside a matrix product. See recompute_cheap().
  template <class Launch>
  void compute_cheaply(std::initializer_list<Tensor> inputs, std::initializer_list<Tensor> outputs,
                       const Launch& launch) {
    launch(*this, {inputs.begin(), inputs.size()}, {outputs.begin(), outputs.size()});
    remember_cheap(inputs, outputs, launch);
  }
  // The same for outputs that have been computed already.
  template <class Launch>
  void remember_cheap(std::initializer_list<Tensor> inputs, std::initializer_list<Tensor> outputs,
                      const Launch& launch) {
    if (cheap_ != nullptr) cheap_->add({inputs.begin(), inputs.size()}, {outputs.begin(), outputs.size()}, launch);
  }

  // Records a node if the tape records and some input wants a gradient; `make_saved` is called only then.
  template <class MakeSaved>
  Var record(const char* op, std::initializer_list<Var> inputs, const Tensor& output, MakeSaved&& make_saved);
  template <std::size_t N, class MakeSaved>
  std::array<Var, N> record(const char* op, std::initializer_list<Var> inputs, const std::array<Tensor, N>& outputs,
                            MakeSaved&& make_saved);

  // --- what models need -----------------------------------------------------------------------------------------
  static Var constant(const Tensor& value) { return {value, -1}; }
  // A value whose gradient is wanted: read it with gradient() after backward().
  Var leaf(const Tensor& value);
  // The same with a gradient of another type: f32 for weights in bf16.
  Var leaf(const Tensor& value, DType gradient);
  // The parameter as a value; backward adds into parameter.grad.
  Var parameter(Parameter& parameter);

  // Computes `function(inputs)` keeping only the inputs, and computes it again during backward: activation
  // checkpointing. `function` must depend on its inputs and on parameters only, and be deterministic.
  using SpanFunction = std::function<std::vector<Var>(Tape&, std::span<const Var>)>;
  std::vector<Var> recompute(std::span<const Var> inputs, SpanFunction function);
  // Computes `function(inputs)`, which happens once. Outputs of the cheap operations in it that only backward still
  // needs give their memory back until backward comes to the span, and are computed again then: all that is expensive
  // is kept, and what is kept is never more than without.
  std::vector<Var> recompute_cheap(std::span<const Var> inputs, const SpanFunction& function);

  // Walks the tape from `output` with d(output) = seed (same shape and dtype), then empties it.
  void backward(const Var& output, const Tensor& seed);
  void backward(std::span<const Var> outputs, std::span<const Tensor> seeds);
  // Gradient of a leaf after backward(); undefined if none reached it.
  Tensor gradient(const Var& leaf) const;

  // Called during backward() when the last gradient of a parameter used on this tape has been added.
  std::function<void(Parameter&)> on_parameter_ready;

  std::size_t node_count() const { return nodes_.size(); }

 private:
  friend class Backward;
  struct Node;
  template <class Saved>
  struct NodeOf;
  struct Slot {
    Tensor grad;
    Parameter* parameter = nullptr;
    Shape shape;
    DType dtype = DType::f32;  // of the gradient
  };

  std::int32_t new_slot(const Tensor& value, DType gradient, Parameter* parameter);
  bool wants(std::span<const Var> inputs) const;
  void append(std::unique_ptr<Node> node, const char* op, std::span<const Var> inputs, std::span<Var> outputs);
  void run(Node& node);
  void finish_use(Parameter& parameter);
  void add_to_slot(std::int32_t slot, const Tensor& gradient);

  std::shared_ptr<Allocator> memory_;
  Mode mode_;
  Stream stream_;
  std::vector<Slot> slots_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::unordered_map<Parameter*, std::int32_t> parameter_slots_;
  std::unordered_map<Parameter*, std::int64_t> pending_uses_;
  CheapOperations* cheap_ = nullptr;  // of the span that is being recorded
  std::vector<Parameter*> touched_;   // parameters seen by an inference tape, for recompute()
};

// One node's view of the gradients, handed to its saved struct.
class Backward {
 public:
  // Gradient of output i; undefined if nothing downstream depends on it (= zero).
  Tensor grad(int output) const;
  // Gradient of output i, zeros if there is none.
  Tensor grad_or_zero(int output) const;
  bool wants(int input) const;
  // Where to put the gradient of input i (shape of the input). Ask once for each input.
  GradTarget target(int input);
  // Hands over `gradient` as that of input i without a copy when it is the first to arrive.
  void pass(int input, const Tensor& gradient);

  Tape& tape() const { return tape_; }
  Device device() const { return tape_.device(); }
  Tensor empty(const Shape& shape, DType dtype) const { return tape_.empty(shape, dtype); }
  LaunchScope launch(std::size_t workspace_bytes = 0) const { return tape_.launch(workspace_bytes); }

 private:
  friend class Tape;
  Backward(Tape& tape, const Tape::Node& node) : tape_(tape), node_(node) {}
  Tape& tape_;
  const Tape::Node& node_;
  std::vector<std::pair<std::int32_t, Tensor>> late_;  // second targets of one slot inside one node
  std::vector<std::int32_t> targeted_;
};

// ---------------------------------------------------------------------------------------------------------------------

struct Tape::Node {
  virtual ~Node() = default;
  virtual void backward(Backward& pass) const = 0;

  const char* op = nullptr;
  std::vector<std::int32_t> inputs;  // slots, -1 for constants
  std::vector<Shape> input_shapes;
  std::vector<std::int32_t> outputs;
  std::vector<Shape> output_shapes;
  std::vector<Parameter*> span_parameters;  // parameters used inside a recomputed span
  CheapOperations restored;                 // before this node, the last of its span, runs
};

template <class Saved>
struct Tape::NodeOf final : Node {
  explicit NodeOf(Saved s) : saved(std::move(s)) {}
  void backward(Backward& pass) const override { saved.backward(pass); }
  Saved saved;
};

template <class MakeSaved>
Var Tape::record(const char* op, std::initializer_list<Var> inputs, const Tensor& output, MakeSaved&& make_saved) {
  return record(op, inputs, std::array<Tensor, 1>{output}, std::forward<MakeSaved>(make_saved))[0];
}

template <std::size_t N, class MakeSaved>
std::array<Var, N> Tape::record(const char* op, std::initializer_list<Var> inputs, const std::array<Tensor, N>& outputs,
                                MakeSaved&& make_saved) {
  std::array<Var, N> vars;
  for (std::size_t i = 0; i < N; ++i) vars[i] = constant(outputs[i]);
  const std::span<const Var> in(inputs.begin(), inputs.size());
  if (wants(in)) append(std::make_unique<NodeOf<decltype(make_saved())>>(make_saved()), op, in, vars);
  return vars;
}

}  // namespace weft
