// A whole training step of a model of 10 M parameters: forward, backward, norm, update. Its model FLOPs over its time,
// beside the rate that the BLAS reaches on the same products with the same threads.
//
// M tokens of a step, [N, K] a weight.

#include <benchmark/benchmark.h>
#include <chrono>
#include <optional>

#include "autograd/blas.h"
#include "bench/support.h"
#include "train/optimizers/gradient_norm.h"
#include "train/optimizers/optimizer.h"

namespace weft::bench {
namespace {

constexpr std::int64_t kWidth = 384;
constexpr std::int64_t kHidden = 1024;
constexpr std::int64_t kRow = 1024;
constexpr std::int64_t kRows = 4;

// Seconds of the three products of a linear map (output, input gradient, weight gradient) over M tokens.
double linear_seconds(std::int64_t M, std::int64_t N, std::int64_t K) {
  const std::vector<float> x(static_cast<std::size_t>(M * K), 0.5F), w(static_cast<std::size_t>(N * K), 0.25F);
  std::vector<float> y(static_cast<std::size_t>(M * N)), dx(x.size()), dw(w.size());
  double best = 1e9;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    gemm(Op::none, Op::transpose, M, N, K, 1.0F, x.data(), K, w.data(), K, 0.0F, y.data(), N);
    gemm(Op::none, Op::none, M, K, N, 1.0F, y.data(), N, w.data(), K, 0.0F, dx.data(), K);
    gemm(Op::transpose, Op::none, N, K, M, 1.0F, y.data(), N, x.data(), K, 0.0F, dw.data(), K);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// FLOP/s of the BLAS on the shapes that make up the model.
double blas_rate(std::int64_t M) {
  struct Weight {
    std::int64_t N, K, count;
  };
  double flops = 0.0, seconds = 0.0;
  for (const Weight& w : {Weight{kWidth, kWidth, 5}, Weight{kHidden, kWidth, 2}, Weight{kWidth, kHidden, 1}}) {
    flops += static_cast<double>(w.count) * 6.0 * static_cast<double>(M * w.N * w.K);
    seconds += static_cast<double>(w.count) * linear_seconds(M, w.N, w.K);
  }
  return flops / seconds;
}

void training_step(benchmark::State& state, const std::vector<std::string>& pattern) {
  LanguageModel model({.vocabulary = 257,
                       .width = kWidth,
                       .layers = 5,
                       .ffn_hidden = kHidden,
                       .pattern = choices(pattern, {{"heads", std::int64_t{6}}, {"head_dim", std::int64_t{64}}}),
                       .max_tokens = kRow});
  model.initialise(1, DType::f32);
  Optimizer optimizer(model.parameters().all(), {});
  const std::shared_ptr<Allocator> arena = std::make_shared<Arena>(std::size_t{16} << 30);
  const std::int64_t M = kRow * kRows;
  const Text text = random_text(M, kRow);
  const double rate = blas_rate(M);
  const GemmStats before = gemm_stats();
  double seconds = 0.0;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    {
      Tape tape(arena);
      const LossTerms terms = model.loss(tape, text.tokens, text.documents, text.labels, {},
                                         {.denominator = static_cast<double>(M), .token_losses = {}});
      tape.backward(terms.loss, Tensor::from({1}, std::vector<float>{1.0F}));
    }
    const GradientNorm norm = gradient_norm(optimizer.trainable());
    optimizer.update(1.0, clip_factor(norm.norm, 1.0), GradientsAfter::zero);
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  const auto steps = static_cast<double>(state.iterations());
  const double flops = kRows * model.cost(kRow, kRow).total();
  state.counters["parameters"] = static_cast<double>(model.parameters().element_count());
  state.counters["tokens_per_s"] = static_cast<double>(M) * steps / seconds;
  state.counters["GFLOP/s"] = flops * steps / seconds / 1e9;
  state.counters["blas_GFLOP/s"] = rate / 1e9;
  state.counters["share_of_blas"] = flops * steps / seconds / rate;
  // The projections; the heads' own products and the loss are in the rest.
  state.counters["projection_time"] = (gemm_stats().seconds - before.seconds) / seconds;
  state.counters["peak_MiB"] = static_cast<double>(arena->stats().peak_bytes) / (1 << 20);
}

BENCHMARK_CAPTURE(training_step, hybrid, {"lightning", "gla", "attention", "retnet", "attention"})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime()
    ->MinTime(5.0);
BENCHMARK_CAPTURE(training_step, attention, {"attention"})->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(5.0);
BENCHMARK_CAPTURE(training_step, lightning, {"lightning"})->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(5.0);
BENCHMARK_CAPTURE(training_step, gla, {"gla"})->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(5.0);

}  // namespace
}  // namespace weft::bench
