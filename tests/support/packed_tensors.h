// The tensors of an operation on packed documents, by what their rows stand for: with that, evaluating the operation
// and cutting, rounding and comparing what goes in and comes out is the same code for every operation.
//
// A bundle is a struct of tensors with a function that lists them, `Fields fields()`:
//   of inputs: what the operation takes, in its order, then the gradients that arrive at its outputs;
//   of results: the outputs, then the gradients of the inputs, both in their order.
// Undefined tensors are listed too. Copies of a bundle share memory; what slice(), rounded() and cloned() give does
// not.
#pragma once

#include <concepts>
#include <functional>
#include <span>
#include <vector>

#include "autograd/tape.h"
#include "tests/support/compare.h"

namespace weft::testing {

// What the first dimension counts; parameters belong to all documents.
enum class RowsOf : std::uint8_t { tokens, documents, parameters };
enum class Role : std::uint8_t { value, constant, gradient };  // a constant wants no gradient

struct Field {
  const char* name;
  Tensor* tensor;
  RowsOf rows;
  Role role = Role::value;

  bool is(RowsOf of, bool gradient) const { return rows == of && (role == Role::gradient) == gradient; }
};
using Fields = std::vector<Field>;

template <class B>
concept TensorBundle = requires(B bundle) {
  { bundle.fields() } -> std::same_as<Fields>;
};

// A copy of rows [begin, end); undefined if the tensor is.
Tensor slice(const Tensor& t, std::int64_t begin, std::int64_t end);

// Replaces every tensor of the list by a copy: of tokens [begin, end) and documents [first, last), without the
// gradients of parameters, which are sums over all documents; or in another floating type.
void keep_rows(const Fields& fields, std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t last);
void convert(const Fields& fields, DType dtype);

template <TensorBundle B>
B slice(B bundle, std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t last) {
  keep_rows(bundle.fields(), begin, end, first, last);
  return bundle;
}

template <TensorBundle B>
B rounded(B bundle, DType dtype) {
  convert(bundle.fields(), dtype);
  return bundle;
}

template <TensorBundle B>
B cloned(B bundle) {
  for (const Field& field : bundle.fields()) {
    if (field.tensor->defined()) *field.tensor = field.tensor->clone();
  }
  return bundle;
}

template <TensorBundle B>
B zeros_like(B bundle) {
  for (const Field& field : bundle.fields()) {
    if (field.tensor->defined()) *field.tensor = Tensor::zeros(field.tensor->shape(), field.tensor->dtype());
  }
  return bundle;
}

// Calls f(field of x, field of y) for whatever both lists hold; expects that they hold the same.
void for_each_pair(const Fields& x, const Fields& y, const std::function<void(const Field&, const Field&)>& f);
void expect_close(const Fields& x, const Fields& reference, const Tolerance& tolerance);
void expect_bitwise_equal(const Fields& x, const Fields& y);

template <TensorBundle B, class F>
void for_each_pair(B x, B y, F&& f) {
  for_each_pair(x.fields(), y.fields(), f);
}

template <TensorBundle B>
void expect_close(B x, B reference, const Tolerance& tolerance) {
  expect_close(x.fields(), reference.fields(), tolerance);
}

template <TensorBundle B>
void expect_bitwise_equal(B x, B y) {
  expect_bitwise_equal(x.fields(), y.fields());
}

// While one of these lives, run_on_tape() evaluates on the first GPU.
class OnGpu {
 public:
  OnGpu();
  ~OnGpu();
  OnGpu(const OnGpu&) = delete;
  OnGpu& operator=(const OnGpu&) = delete;
};
bool on_gpu();

// The operation on a tape in hostile memory, in the dtype of the inputs: `operation` takes a leaf (or a constant) for
// each input, an empty one where it is undefined, and gives the outputs. Backward starts from the gradients that are
// defined. Expects a gradient of every leaf.
using PackedOperation = std::function<std::vector<Var>(Tape&, std::span<const Var>)>;
void run_on_tape(const Fields& inputs, const PackedOperation& operation, const Fields& results);

template <TensorBundle Results, TensorBundle Inputs>
Results run_on_tape(Inputs inputs, const PackedOperation& operation) {
  Results results;
  run_on_tape(inputs.fields(), operation, results.fields());
  return results;
}

// The fp64 kernels against the oracle, and the fp32 ones against it on the rounded inputs.
template <class Case, TensorBundle Inputs>
void expect_the_recurrence(const Case& c, const Inputs& in) {
  expect_close(evaluate(c, in), evaluate_reference(c, in), kFp64Chunked);
  const Inputs single = rounded(in, DType::f32);
  expect_close(evaluate(c, single), evaluate_reference(c, rounded(single, DType::f64)), kFp32);
}

}  // namespace weft::testing
