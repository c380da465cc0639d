// The kernels by themselves, forward and backward: memory-bound operations against the speed of a copy, products
// against the rate of the BLAS.

#include <benchmark/benchmark.h>
#include <cstring>

#include "autograd/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "autograd/ops/swiglu/swiglu.h"
#include "autograd/parallel_for.h"
#include "bench/support.h"
#include "modules/families/attention/attention.h"
#include "modules/families/gated_linear/gated_linear.h"

namespace weft::bench {
namespace {

Tensor filled(const Shape& shape, float scale) {
  const Tensor t = Tensor::empty(shape, DType::f32);
  for (std::int64_t i = 0; i < t.numel(); ++i) {
    t.data<float>()[i] = scale * (static_cast<float>((i * 2654435761) % 1024) / 512.0F - 1.0F);
  }
  return t;
}

// Times `step`, and reports `bytes` and `flops` of one call as rates.
template <class Step>
void measure(benchmark::State& state, double bytes, double flops, Step&& step) {
  const std::shared_ptr<Allocator> arena = std::make_shared<Arena>(std::size_t{16} << 30);
  for (auto _ : state) {
    Tape tape(arena);
    step(tape);
  }
  const auto runs = static_cast<double>(state.iterations());
  if (bytes > 0.0) state.counters["GB/s"] = benchmark::Counter(runs * bytes / 1e9, benchmark::Counter::kIsRate);
  if (flops > 0.0) state.counters["GFLOP/s"] = benchmark::Counter(runs * flops / 1e9, benchmark::Counter::kIsRate);
}

constexpr std::int64_t kTokens = 65536;
constexpr std::int64_t kWidth = 512;
constexpr double kElements = static_cast<double>(kTokens * kWidth);

void copy(benchmark::State& state) {
  const Tensor x = filled({kTokens, kWidth}, 1.0F), y = Tensor::zeros({kTokens, kWidth}, DType::f32);
  measure(state, 8.0 * kElements, 0.0, [&](Tape&) {
    parallel_blocks(x.numel(), 65536, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
      std::memcpy(y.data<float>() + begin, x.data<float>() + begin, static_cast<std::size_t>(end - begin) * 4);
    });
  });
}

void rms_norm_both(benchmark::State& state) {
  const Tensor x = filled({kTokens, kWidth}, 1.0F), w = filled({kWidth}, 1.0F);
  // Forward reads x and writes y; backward reads x and dy and writes dx.
  measure(state, 5 * 4.0 * kElements, 0.0, [&](Tape& tape) {
    const Var y = rms_norm(tape, tape.leaf(x), tape.leaf(w));
    tape.backward(y, x);
  });
}

void swiglu_both(benchmark::State& state) {
  const Tensor gate = filled({kTokens, kWidth}, 2.0F), up = filled({kTokens, kWidth}, 1.0F);
  measure(state, 8 * 4.0 * kElements, 0.0, [&](Tape& tape) {
    const Var y = swiglu(tape, tape.leaf(gate), tape.leaf(up));
    tape.backward(y, up);
  });
}

void cross_entropy_both(benchmark::State& state) {
  const std::int64_t T = 4096, d = 256, V = state.range(0);
  const Tensor x = filled({T, d}, 1.0F), w = filled({V, d}, 0.1F);
  const Tensor labels = Tensor::zeros({T}, DType::i32), seed = filled({1}, 1.0F);
  measure(state, 0.0, 6.0 * static_cast<double>(T * d * V), [&](Tape& tape) {
    const LossTerms terms = linear_cross_entropy(tape, tape.leaf(x), tape.leaf(w), labels, {},
                                                 {.denominator = static_cast<double>(T), .token_losses = {}});
    tape.backward(terms.loss, seed);
  });
}

void attention_both(benchmark::State& state) {
  const std::int64_t T = state.range(0), H = 8, D = 64, window = state.range(1);
  const Tensor q = filled({T, H, D}, 1.0F), k = filled({T, H, D}, 1.0F), v = filled({T, H, D}, 1.0F);
  const DocumentsPtr docs = Documents::single(T);
  const AttentionOptions options{.window = static_cast<std::int32_t>(window)};
  const double pairs = window == 0 || window >= T
                           ? 0.5 * static_cast<double>(T * (T + 1))
                           : static_cast<double>(window * T) - 0.5 * static_cast<double>(window * (window - 1));
  // Forward 4 D a pair and head, backward 10 D.
  measure(state, 0.0, 14.0 * static_cast<double>(D * H) * pairs, [&](Tape& tape) {
    const Var o = attention(tape, tape.leaf(q), tape.leaf(k), tape.leaf(v), {}, docs, options);
    tape.backward(o, v);
  });
}

void gated_linear_both(benchmark::State& state, const Shape& decay_shape) {
  const std::int64_t T = 16384, H = 8, D = 64;
  const Tensor q = filled({T, H, D}, 1.0F), k = filled({T, H, D}, 1.0F), v = filled({T, H, D}, 1.0F);
  Tensor g = filled(decay_shape, 0.05F);
  for (float& value : g.span<float>()) value = -0.06F + value;
  const DocumentsPtr docs = Documents::single(T);
  measure(state, 13 * 4.0 * static_cast<double>(T * H * D), 0.0, [&](Tape& tape) {
    const Var decay = decay_shape.rank() == 1 ? Tape::constant(g) : tape.leaf(g);
    const GatedLinearOutput out = gated_linear(tape, tape.leaf(q), tape.leaf(k), tape.leaf(v), decay, {}, docs, 1.0);
    tape.backward(out.o, v);
  });
}

#define WEFT_BENCH(...) __VA_ARGS__->Unit(benchmark::kMillisecond)->UseRealTime()
WEFT_BENCH(BENCHMARK(copy));
WEFT_BENCH(BENCHMARK(rms_norm_both));
WEFT_BENCH(BENCHMARK(swiglu_both));
WEFT_BENCH(BENCHMARK(cross_entropy_both)->Arg(257)->Arg(32000));
WEFT_BENCH(BENCHMARK(attention_both)->Args({1024, 0})->Args({4096, 0})->Args({4096, 512}));
WEFT_BENCH(BENCHMARK_CAPTURE(gated_linear_both, constant, Shape{8}));
WEFT_BENCH(BENCHMARK_CAPTURE(gated_linear_both, vector, Shape{16384, 8, 64}));

}  // namespace
}  // namespace weft::bench
