// One layer of each mixer on one document of growing length, forward and backward: how time and memory grow.

#include <benchmark/benchmark.h>

#include "bench/support.h"

namespace weft::bench {
namespace {

constexpr std::int64_t kWidth = 256;

// Four heads of 64 where a mixer has such options.
std::unique_ptr<Mixer> make_layer(ParameterStore& store, const std::string& name, std::int64_t T) {
  const MixerChoice choice = choices({name}, {{"heads", std::int64_t{4}}, {"head_dim", std::int64_t{64}}}).front();
  return choice.type->create(ParameterScope(store), {.width = kWidth, .layers = 4, .layer = 1, .max_tokens = T},
                             choice.options, choice.table);
}

void long_row(benchmark::State& state, const std::string& name) {
  const std::int64_t T = state.range(0);
  ParameterStore store;
  const auto mixer = make_layer(store, name, T);
  store.initialise(1, DType::f32);
  const std::shared_ptr<Allocator> arena = std::make_shared<Arena>(std::size_t{20} << 30);
  const Tensor x = Tensor::zeros({T, kWidth}, DType::f32);
  const Text text = random_text(T, T);
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    x.data<float>()[i] = static_cast<float>(text.tokens.data<std::int32_t>()[i % T] - 128) / 128.0F;
  }
  for (auto _ : state) {
    Tape tape(arena);
    const Var leaf = tape.leaf(x);
    const Var y = mixer->forward(tape, leaf, text.documents, nullptr);
    tape.backward(y, x);
  }
  const auto runs = static_cast<double>(state.iterations());
  const MixerCost cost = mixer->cost(T, T);
  state.counters["tokens_per_s"] = benchmark::Counter(runs * static_cast<double>(T), benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] =
      benchmark::Counter(runs * (cost.forward_flops + cost.backward_flops) / 1e9, benchmark::Counter::kIsRate);
  state.counters["peak_MiB"] = static_cast<double>(arena->stats().peak_bytes) / (1 << 20);
  state.counters["state_KiB"] = mixer->state_bytes(T) / 1024.0;
}

// Every mixer, and the window of softmax attention, up to 64k tokens or to where one pass is too much work: the time of
// attention to all tokens grows with the square of the length.
void register_lengths() {
  constexpr double kMostFlops = 5e12;
  std::vector<std::string> names{"window"};
  for (const MixerType* type : mixer_types()) names.push_back(type->name);
  for (const std::string& name : names) {
    auto* benchmark = benchmark::RegisterBenchmark(("long_row/" + name).c_str(),
                                                   [name](benchmark::State& state) { long_row(state, name); });
    benchmark->Unit(benchmark::kMillisecond)->UseRealTime()->MinTime(0.5);
    ParameterStore store;
    const auto mixer = make_layer(store, name, 65536);
    for (std::int64_t T = 1024; T <= 65536; T *= 4) {
      const MixerCost cost = mixer->cost(T, T);
      if (cost.forward_flops + cost.backward_flops <= kMostFlops) benchmark->Arg(T);
    }
  }
}

const bool registered = (register_lengths(), true);

}  // namespace
}  // namespace weft::bench
