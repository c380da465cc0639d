#include "autograd/ops/short_conv/short_conv.h"

#include <cmath>
#include <omp.h>

#include "autograd/transfer.h"
#include "tests/support/op_check.h"

namespace weft {
namespace {

using testing::bitwise_equal;
using testing::cast;
using testing::normal;
using testing::OpCase;
using Activation = ConvolutionActivation;

// Shorter than the taps, empty, and across several tiles.
const std::vector<std::int32_t> kLengths{1, 2, 3, 4, 5, 0, 17, 64, 150};
constexpr std::int64_t kTotal = 246;

OP_TEST(ShortConvolution, Gradients) {
  const DocumentsPtr documents = Documents::from_lengths(kLengths);
  struct Case {
    std::int64_t w, C;
    Activation activation;
    bool bias;
  };
  for (const Case& k :
       {Case{4, 300, Activation::silu, false}, Case{4, 5, Activation::silu, true}, Case{4, 5, Activation::none, false},
        Case{4, 1, Activation::none, true}, Case{2, 5, Activation::silu, true}, Case{3, 5, Activation::silu, true},
        Case{5, 5, Activation::none, true}, Case{6, 5, Activation::silu, false}, Case{7, 5, Activation::silu, true},
        Case{8, 5, Activation::silu, true}, Case{4, 64, Activation::silu, true}, Case{8, 72, Activation::none, true},
        Case{3, 1040, Activation::silu, true}}) {
    OpCase c{.name = fmt::format("w {} C {} silu {} bias {}", k.w, k.C, k.activation == Activation::silu, k.bias),
             .inputs = {normal({kTotal, k.C}, 1), testing::weight(normal({k.C, k.w}, 2, 0.5))},
             .function = [&](Tape& tape, std::span<const Var> in) {
               const Var bias = k.bias ? in[2] : Var{};
               return std::vector{short_convolution(tape, in[0], in[1], bias, documents, k.activation)};
             }};
    if (k.bias) c.inputs.push_back(testing::vector_input(normal({k.C}, 3)));
    check_op(c);
  }
}

OP_TEST(ShortConvolution, NoTokens) {
  for (const std::vector<std::int32_t>& lengths : {std::vector<std::int32_t>{}, std::vector<std::int32_t>{0, 0}}) {
    const DocumentsPtr documents = Documents::from_lengths(lengths);
    check_op(
        OpCase{.name = "empty row",
               .inputs = {normal({0, 3}, 1), testing::weight(normal({3, 4}, 2)), testing::vector_input(normal({3}, 3))},
               .function = [&](Tape& tape, std::span<const Var> in) {
                 return std::vector{short_convolution(tape, in[0], in[1], in[2], documents, Activation::silu)};
               }});
  }
}

TEST(ShortConvolution, EqualsTheFormula) {
  const std::int64_t C = 3, w = 4;
  const DocumentsPtr documents = Documents::from_lengths(kLengths);
  const Tensor x = normal({kTotal, C}, 1), weight = normal({C, w}, 2), bias = normal({C}, 3);
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  const Tensor y = short_convolution(tape, Tape::constant(x), Tape::constant(weight), Tape::constant(bias), documents,
                                     Activation::silu)
                       .value;
  for (std::int64_t n = 0; n < documents->count(); ++n) {
    for (std::int64_t t = documents->begin(n); t < documents->end(n); ++t) {
      for (std::int64_t c = 0; c < C; ++c) {
        double u = bias.data<double>()[c];
        for (std::int64_t back = 0; back < w && t - back >= documents->begin(n); ++back) {
          u += weight.data<double>()[c * w + w - 1 - back] * x.data<double>()[(t - back) * C + c];
        }
        EXPECT_NEAR(y.data<double>()[t * C + c], u / (1.0 + std::exp(-u)), 1e-14) << "token " << t;
      }
    }
  }
}

struct Result {
  Tensor y, dx;
};

// Output and input gradient in fp32 for dy = `dy`.
Result run(const Tensor& x, const Tensor& dy, const Tensor& weight, const DocumentsPtr& documents) {
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var leaf = tape.leaf(x);
  const Var y = short_convolution(tape, leaf, tape.leaf(weight), documents, Activation::silu);
  tape.backward(y, cast(dy, DType::f32));
  return {cast(y.value, DType::f32), cast(tape.gradient(leaf), DType::f32)};
}

TEST(ShortConvolution, DocumentsAreIsolatedBitwise) {
  const std::int64_t C = 260;
  const DocumentsPtr documents = Documents::from_lengths(kLengths);
  const Tensor x = cast(normal({kTotal, C}, 1), DType::f32), dy = cast(normal({kTotal, C}, 2), DType::f32);
  const Tensor weight = cast(normal({C, 4}, 3), DType::f32);
  const Result packed = run(x, dy, weight, documents);
  for (std::int64_t n = 0; n < documents->count(); ++n) {
    const std::int64_t b = documents->begin(n), e = documents->end(n);
    // Alone, the same bits.
    const Result alone = run(x.rows(b, e), dy.rows(b, e), weight, Documents::single(e - b));
    EXPECT_TRUE(bitwise_equal(packed.y.rows(b, e), alone.y)) << "document " << n;
    EXPECT_TRUE(bitwise_equal(packed.dx.rows(b, e), alone.dx)) << "document " << n;
    // Spoiled, no trace elsewhere.
    if (b == e) continue;
    const Tensor other_x = cast(x, DType::f32), other_dy = cast(dy, DType::f32);
    for (float& v : other_x.rows(b, e).span<float>()) v = NAN;
    for (float& v : other_dy.rows(b, e).span<float>()) v = NAN;
    const Result spoiled = run(other_x, other_dy, weight, documents);
    for (std::int64_t m = 0; m < documents->count(); ++m) {
      if (m == n) continue;
      EXPECT_TRUE(bitwise_equal(packed.y.rows(documents->begin(m), documents->end(m)),
                                spoiled.y.rows(documents->begin(m), documents->end(m))));
      EXPECT_TRUE(bitwise_equal(packed.dx.rows(documents->begin(m), documents->end(m)),
                                spoiled.dx.rows(documents->begin(m), documents->end(m))));
    }
  }
}

TEST(ShortConvolution, IsCausal) {
  const std::int64_t C = 5, T = 140;
  const Tensor x = cast(normal({T, C}, 1), DType::f32), weight = cast(normal({C, 4}, 3), DType::f32);
  const Tensor dy = cast(normal({T, C}, 2), DType::f32);
  for (const std::int64_t t : {1, 3, 127, 128, 129}) {
    const Tensor changed = cast(x, DType::f32), cut = cast(dy, DType::f32);
    for (float& v : changed.rows(t, T).span<float>()) v += 1.0f;
    for (float& v : cut.rows(t, T).span<float>()) v = 0.0f;
    EXPECT_TRUE(bitwise_equal(run(changed, dy, weight, Documents::single(T)).y.rows(0, t),
                              run(x, dy, weight, Documents::single(T)).y.rows(0, t)));
    const Tensor dx = run(x, cut, weight, Documents::single(T)).dx;
    for (const float v : dx.rows(t, T).span<float>()) EXPECT_EQ(v, 0.0f);
  }
}

// Two documents computed in one go, in two or more pieces with the state carried, and token by token: the same bits.
void check_states(const std::shared_ptr<Allocator>& memory, const Stream& stream, DType dtype) {
  const std::int64_t C = 264;
  const auto host = [&](const Tensor& t) { return cast(to_host(t, stream), dtype); };
  for (const std::int64_t w : {2, 4, 8}) {
    const Tensor x = cast(normal({2 * 20, C}, 1), dtype), weight = cast(normal({C, w}, 2), dtype);
    const Tensor bias = cast(normal({C}, 3), accumulator_dtype(dtype));
    Tape tape(memory, Tape::Mode::inference, stream);
    const auto apply = [&](const Tensor& input, const DocumentsPtr& documents, const Tensor& state) {
      return host(short_convolution(tape, Tape::constant(tape.here(input)), Tape::constant(tape.here(weight)),
                                    Tape::constant(tape.here(bias)), documents, Activation::silu, state)
                      .value);
    };
    const Tensor whole = apply(x, Documents::from_lengths(std::vector<std::int32_t>{20, 20}), {});
    for (const std::vector<std::int32_t>& pieces :
         {std::vector<std::int32_t>{11, 9}, std::vector<std::int32_t>{1, 2, 0, 3, 14},
          std::vector<std::int32_t>(20, 1)}) {
      const Tensor state = tape.here(Tensor::zeros({2, C, w - 1}, dtype));
      std::int64_t at = 0;
      for (const std::int32_t n : pieces) {
        const Tensor piece = Tensor::empty({2 * n, C}, dtype);
        piece.rows(0, n).copy_from(x.rows(at, at + n));
        piece.rows(n, 2 * n).copy_from(x.rows(20 + at, 20 + at + n));
        const Tensor y = apply(piece, Documents::from_lengths(std::vector<std::int32_t>{n, n}), state);
        EXPECT_TRUE(bitwise_equal(y.rows(0, n), whole.rows(at, at + n))) << "w " << w << " at " << at;
        EXPECT_TRUE(bitwise_equal(y.rows(n, 2 * n), whole.rows(20 + at, 20 + at + n))) << "w " << w << " at " << at;
        at += n;
      }
      const Tensor inputs = cast(x, DType::f64), kept = cast(to_host(state, stream), DType::f64);
      for (std::int64_t c = 0; c < C; ++c) {
        for (std::int64_t i = 0; i < w - 1; ++i) {
          EXPECT_EQ(kept.data<double>()[c * (w - 1) + i], inputs.data<double>()[(20 - (w - 1) + i) * C + c]);
        }
      }
    }
  }
}

TEST(ShortConvolution, StateContinuesBitwise) {
  check_states(heap_allocator(Hygiene::hostile), {}, DType::f32);
}

TEST(ShortConvolutionGpu, StateContinuesBitwise) {
  WEFT_NEEDS_GPU();
  for (const DType dtype : {DType::f32, DType::bf16}) check_states(testing::gpu_memory(), testing::gpu_stream(), dtype);
}

TEST(ShortConvolutionGpu, PackedIsAloneBitwise) {
  WEFT_NEEDS_GPU();
  const Stream stream = testing::gpu_stream();
  const DType dtype = DType::bf16;
  const std::int64_t C = 264;
  const Tensor x = cast(normal({kTotal, C}, 1), dtype), dy = cast(normal({kTotal, C}, 2), dtype);
  const Tensor weight = cast(normal({C, 4}, 3), dtype);
  const auto gpu_run = [&](std::int64_t begin, std::int64_t end, const DocumentsPtr& documents) {
    Tape tape(testing::gpu_memory(), Tape::Mode::record, stream);
    const Var leaf = tape.leaf(tape.here(x.rows(begin, end)));
    const Var y = short_convolution(tape, leaf, tape.leaf(tape.here(weight), DType::f32), documents, Activation::silu);
    tape.backward(y, tape.here(dy.rows(begin, end)));
    return Result{cast(to_host(y.value, stream), dtype), cast(to_host(tape.gradient(leaf), stream), dtype)};
  };
  const DocumentsPtr documents = Documents::from_lengths(kLengths);
  const Result packed = gpu_run(0, kTotal, documents);
  for (std::int64_t n = 0; n < documents->count(); ++n) {
    const std::int64_t b = documents->begin(n), e = documents->end(n);
    if (b == e) continue;
    const Result alone = gpu_run(b, e, Documents::single(e - b));
    EXPECT_TRUE(bitwise_equal(packed.y.rows(b, e), alone.y)) << "document " << n;
    EXPECT_TRUE(bitwise_equal(packed.dx.rows(b, e), alone.dx)) << "document " << n;
  }
}

TEST(ShortConvolution, ThreadsDoNotChangeBits) {
  const std::int64_t T = 1000, C = 600;
  const Tensor x = cast(normal({T, C}, 1), DType::f32), dy = cast(normal({T, C}, 2), DType::f32);
  const auto gradients = [&](int threads) {
    omp_set_num_threads(threads);
    Tape tape(heap_allocator());
    const std::array leaves{tape.leaf(x), tape.leaf(cast(normal({C, 4}, 3), DType::f32)),
                            tape.leaf(cast(normal({C}, 4), DType::f32))};
    const Var y = short_convolution(tape, leaves[0], leaves[1], leaves[2], Documents::single(T), Activation::silu);
    tape.backward(y, dy);
    std::vector<Tensor> all{cast(y.value, DType::f32)};
    for (const Var& v : leaves) all.push_back(cast(tape.gradient(v), DType::f32));
    return all;
  };
  const int threads = omp_get_max_threads();
  const auto one = gradients(1), three = gradients(3);
  omp_set_num_threads(threads);
  for (std::size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(bitwise_equal(one[i], three[i])) << i;
}

TEST(ShortConvolution, RefusesWhatDoesNotFit) {
  Tape tape(heap_allocator());
  const DocumentsPtr documents = Documents::single(6);
  const Var x = tape.leaf(normal({6, 4}, 1));
  const auto apply = [&](const Shape& weight) {
    short_convolution(tape, x, tape.leaf(normal(weight, 2)), documents, Activation::none);
  };
  EXPECT_THROW(apply({3, 4}), Error);
  EXPECT_THROW(apply({4, 1}), Error);
  EXPECT_THROW(apply({4, 9}), Error);
  const Var weight = tape.leaf(normal({4, 4}, 2));
  EXPECT_THROW(short_convolution(tape, x, weight, tape.leaf(normal({3}, 1)), documents, Activation::none), Error);
  EXPECT_THROW(short_convolution(tape, x, weight, Documents::single(5), Activation::none), Error);
  EXPECT_THROW(short_convolution(tape, x, weight, documents, Activation::none, Tensor::zeros({1, 4, 3}, DType::f64)),
               Error);
  Tape inference(heap_allocator(), Tape::Mode::inference);
  EXPECT_THROW(
      short_convolution(inference, x, weight, documents, Activation::none, Tensor::zeros({2, 4, 3}, DType::f64)),
      Error);
}

}  // namespace
}  // namespace weft
