#include "autograd/ops/linear/linear.h"

#include "autograd/transfer.h"
#include "tests/support/gpu.h"
#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::close;
using testing::Evaluation;
using testing::normal;
using testing::OpCase;
using testing::vector_input;
using testing::weight;

OpCase linear_case(const Shape& x, std::int64_t O, bool bias) {
  OpCase c{.name = fmt::format("x {} O {} bias {}", x.str(), O, bias),
           .inputs = {normal(x, 1), weight(normal({O, x.back()}, 2))},
           .function = {}};
  if (bias) c.inputs.push_back(vector_input(normal({O}, 3)));
  c.function = [bias](Tape& tape, std::span<const Var> in) {
    return std::vector{bias ? linear(tape, in[0], in[1], in[2]) : linear(tape, in[0], in[1])};
  };
  return c;
}

OP_TEST(Linear, GradientsAndPrecision) {
  for (const std::int64_t rows : {0, 1, 2, 15, 17, 63, 65, 129}) {
    for (const bool bias : {false, true}) check_op(linear_case({rows, 5}, 3, bias));
  }
  check_op(linear_case({3, 64}, 129, true));
  check_op(linear_case({4, 257}, 1, true));
  check_op(linear_case({6, 1}, 64, false));
  check_op(linear_case({2, 3, 4, 5}, 7, true));
}

OP_TEST(Linear, UnroundedGradientsAndPrecision) {
  for (const std::int64_t rows : {0, 1, 17, 129}) {
    OpCase c = linear_case({rows, 33}, 3, true);
    c.name += ", unrounded";
    c.function = [](Tape& tape, std::span<const Var> in) {
      return std::vector{linear_unrounded(tape, in[0], in[1], in[2])};
    };
    check_op(c);
  }
}

// Where a rounded result, or a rounded bias, would be off by a hundredth of what the row adds.
TEST(LinearGpu, AnUnroundedResultHasTheBitsOfItsBias) {
  WEFT_NEEDS_GPU();
  const Tensor x = to_host(normal({70, 33}, 1), DType::bf16, {}), w = to_host(normal({3, 33}, 2, 0.1), DType::bf16, {});
  const Tensor b = to_host(normal({3}, 3, 10.0), DType::f32, {});
  Tape tape(testing::gpu_memory(), Tape::Mode::record, testing::gpu_stream());
  const Var y = linear_unrounded(tape, tape.leaf(tape.here(x)), tape.leaf(tape.here(w)), tape.leaf(tape.here(b)));
  Tape exact(heap_allocator());
  const auto widened = [](const Tensor& t) { return Tape::constant(to_host(t, DType::f64, {})); };
  const Var expected = linear(exact, widened(x), widened(w), widened(b));
  EXPECT_TRUE(close(to_host(y.value, tape.stream()), expected.value, testing::kFp32.forward, testing::kFp32.max));
}

// Sums of more than a few hundred terms: OpenBLAS splits the contraction and adds each part to the output, so
// accumulating twice is not bit for bit the double.
TEST(Linear, ManyRows) {
  const OpCase c = linear_case({1000, 33}, 17, true);
  const Evaluation once = evaluate(c, DType::f64);
  const double* x = c.inputs[0].value.data<double>();
  const double* w = c.inputs[1].value.data<double>();
  const double* b = c.inputs[2].value.data<double>();
  Tensor y = Tensor::empty({1000, 17}, DType::f64);
  for (int i = 0; i < 1000; ++i) {
    for (int o = 0; o < 17; ++o) {
      double sum = b[o];
      for (int k = 0; k < 33; ++k) sum += x[i * 33 + k] * w[o * 33 + k];
      y.data<double>()[i * 17 + o] = sum;
    }
  }
  EXPECT_TRUE(close(once.outputs[0], y, 1e-12, 1e-10));
  const Evaluation twice = evaluate(c, DType::f64, 2);
  const Evaluation fp32 = evaluate(c, DType::f32);
  for (std::size_t k = 0; k < 3; ++k) {
    Tensor doubled = testing::cast(once.gradients[k], DType::f64);
    for (double& v : doubled.span<double>()) v *= 2.0;
    EXPECT_TRUE(close(twice.gradients[k], doubled, 1e-11, 1e-10)) << "input " << k;
    EXPECT_TRUE(close(fp32.gradients[k], once.gradients[k], testing::kFp32.backward, testing::kFp32.max)) << k;
  }
}

// Gradients of only some inputs: the others are neither computed nor missed.
TEST(Linear, ConstantInputs) {
  const Tensor x = normal({9, 4}, 1), w = normal({3, 4}, 2), b = normal({3}, 3), dy = normal({9, 3}, 4);
  Tape all(heap_allocator(Hygiene::hostile));
  const Var lx = all.leaf(x), lw = all.leaf(w), lb = all.leaf(b);
  all.backward(linear(all, lx, lw, lb), dy);
  const std::array<Var, 3> full{lx, lw, lb};
  for (std::size_t only = 0; only < 3; ++only) {
    Tape tape(heap_allocator(Hygiene::hostile));
    std::array<Var, 3> in{Tape::constant(x), Tape::constant(w), Tape::constant(b)};
    in[only] = tape.leaf(in[only].value);
    tape.backward(linear(tape, in[0], in[1], in[2]), dy);
    EXPECT_TRUE(testing::bitwise_equal(tape.gradient(in[only]), all.gradient(full[only]))) << only;
  }
}

TEST(Linear, RefusesForeignShapes) {
  Tape tape(heap_allocator());
  const Var x = tape.leaf(normal({4, 8}, 1));
  const Var w = tape.leaf(normal({3, 8}, 2));
  EXPECT_THROW(linear(tape, x, tape.leaf(normal({3, 7}, 1))), Error);
  EXPECT_THROW(linear(tape, x, tape.leaf(normal({8}, 1))), Error);
  EXPECT_THROW(linear(tape, x, w, tape.leaf(normal({4}, 1))), Error);
  EXPECT_THROW(linear(tape, x, tape.leaf(testing::cast(w.value, DType::f32))), Error);
}

}  // namespace
}  // namespace weft
