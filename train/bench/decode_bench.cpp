#include <algorithm>

#include "autograd/cuda/cuda_memory.h"
#include "autograd/random_tensor.h"
#include "autograd/stopwatch.h"
#include "parallel/launch.h"
#include "train/bench/bench.h"
#include "train/bench/device_speed.h"
#include "train/generate/decoder.h"

namespace weft {
namespace {

constexpr int kPrompts = 5;  // after one that warms up
constexpr int kWarmUp = 8;   // steps: the first run eagerly, the second are recorded
constexpr double kMostSeconds = 20.0;

// What a token must read of the model: an embedding apart from the head is read by the row.
double weight_bytes(LanguageModel& model) {
  double bytes = 0.0;
  for (const Parameter* p : model.parameters().all()) {
    if (p->kind == ParameterKind::embedding && !model.config().tied) continue;
    bytes += static_cast<double>(p->value.nbytes());
  }
  return bytes;
}

double since(Stopwatch& clock) {
  clock.mark();
  return clock.take()[0];
}

}  // namespace

DecodeBench bench_decode(const Recipe& recipe, std::int64_t vocabulary, std::int64_t prompt, std::int64_t tokens) {
  Compute compute(recipe.run, World(self_communicator()));
  const Place& place = compute.place();
  LanguageModel model(language_model_config(recipe, vocabulary));
  model.initialise(1, place);
  compute.open_arena(static_cast<std::size_t>(decoding_bytes(model, place.dtype, 1, prompt + tokens + kWarmUp)),
                     "the states of sequences");
  DecodeBench result{.speed = measure_speed(compute), .prompt = prompt};
  const Tensor draws = uniform({prompt}, 1, 0.0, static_cast<double>(vocabulary));
  std::vector<std::int32_t> ids;
  for (const double x : draws.span<double>()) ids.push_back(static_cast<std::int32_t>(x));

  std::vector<double> first, steps;
  std::optional<Decoder> decoder;
  for (int i = 0; i <= kPrompts; ++i) {
    decoder.reset();
    decoder.emplace(model, place, 1);
    Stopwatch clock{Stream{}};
    clock.mark();
    decoder->prefill(ids, Documents::single(prompt));
    const double seconds = since(clock);
    (i == 0 ? result.cold_seconds : first.emplace_back()) = seconds;
  }
  double sum = 0.0;
  for (std::int64_t i = 0; i < tokens + kWarmUp && sum < kMostSeconds; ++i) {
    Stopwatch clock{Stream{}};
    clock.mark();
    const Tensor logits = decoder->step(std::span<const std::int32_t>(&ids[static_cast<std::size_t>(i % prompt)], 1));
    const double seconds = since(clock);
    if (i < kWarmUp) continue;
    steps.push_back(seconds);
    sum += seconds;
  }
  result.first_seconds = median(first);
  result.tokens = static_cast<std::int64_t>(steps.size());
  result.seconds = median(steps);
  result.weight_bytes = weight_bytes(model);
  result.state_bytes = static_cast<double>(decoder->state_bytes());
  return result;
}

}  // namespace weft
