// Parameters: declared once; allocation, optimizer groups, sharding, checkpoints and export follow from the
// declaration.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "autograd/philox.h"
#include "autograd/place.h"
#include "autograd/tensor.h"

namespace weft {

// What the optimizer's default rules look at.
enum class ParameterKind : std::uint8_t {
  matrix,       // a projection [out, in]
  embedding,    // a table of rows looked up by token
  head,         // the untied output projection
  vector,       // norm weights, biases, sink logits, decays, gates' biases
  convolution,  // short depthwise filters
  fast_weight,  // initial weights of a test-time-training memory
};

// How the first value of an element is drawn. Each element is a pure function of (seed, parameter name, element index),
// computed in fp64, so initial weights do not depend on mesh, order of construction, or device.
struct Init {
  enum class Law : std::uint8_t { constant, normal, uniform, log_uniform, inverse_softplus_log_uniform };
  Law law = Law::constant;
  double a = 0.0;  // constant value | standard deviation | lower bound
  double b = 0.0;  // upper bound

  static Init constant(double value) { return {Law::constant, value, 0.0}; }
  static Init normal(double standard_deviation) { return {Law::normal, standard_deviation, 0.0}; }
  static Init uniform(double low, double high) { return {Law::uniform, low, high}; }
  // log U(low, high), as the `a_log` of decayed recurrences.
  static Init log_uniform(double low, double high) { return {Law::log_uniform, low, high}; }
  // softplus^-1 of a log-uniform number, as their `dt_bias`.
  static Init inverse_softplus_log_uniform(double low, double high) {
    return {Law::inverse_softplus_log_uniform, low, high};
  }
};

struct Parameter {
  std::string name;  // dotted path, e.g. "layers.3.mixer.wq"
  Shape shape;
  ParameterKind kind = ParameterKind::matrix;
  Init init;
  Tensor value;   // [shape] what the model computes with
  Tensor grad;    // [shape] of accumulator_dtype(value): what backward passes add into
  Tensor master;  // [shape] of accumulator_dtype(value): what the optimizer updates; `value` itself unless that is bf16
};

// Owns the parameters of a model in canonical order: the order of declaration.
class ParameterStore {
 public:
  ParameterStore() = default;
  ParameterStore(const ParameterStore&) = delete;
  ParameterStore& operator=(const ParameterStore&) = delete;

  Parameter& declare(std::string name, const Shape& shape, ParameterKind kind, const Init& init);
  // Allocates at a place, zeroes the gradients and draws the initial values there.
  void initialise(std::uint64_t seed, const Place& place);
  // The same in host memory.
  void initialise(std::uint64_t seed, DType dtype) { initialise(seed, cpu_place(dtype)); }
  // Allocates values, masters and gradients at a place, with undefined content. At a place that computes in bf16,
  // values are bf16 copies of their masters, but for vectors, which stay f32.
  void allocate(const Place& place);
  // Moves masters from host memory to a place.
  void move_to(const Place& place);
  // Rounds the values anew from masters that were written to.
  void take_masters(const Stream& stream);
  void zero_gradients(const Stream& stream = {});
  std::vector<Parameter*> all();
  // nullptr if there is none.
  Parameter* find(std::string_view name);
  std::int64_t element_count() const;

 private:
  std::deque<Parameter> parameters_;
  std::unordered_map<std::string_view, Parameter*> by_name_;
};

// A store seen through a name prefix, handed to each module.
class ParameterScope {
 public:
  explicit ParameterScope(ParameterStore& store, std::string prefix = {})
      : store_(&store), prefix_(std::move(prefix)) {}
  ParameterScope scope(const std::string& name) const { return ParameterScope(*store_, prefix_ + name + "."); }
  Parameter& declare(const std::string& name, const Shape& shape, ParameterKind kind, const Init& init) const {
    return store_->declare(prefix_ + name, shape, kind, init);
  }

 private:
  ParameterStore* store_;
  std::string prefix_;
};

}  // namespace weft
