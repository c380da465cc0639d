#include "train/generate/generate.h"

#include <algorithm>
#include <chrono>

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Generated generate(LanguageModel& model, std::span<const std::int32_t> prompt, const GenerateOptions& options,
                   const std::function<bool(std::int32_t)>& on_token) {
  WEFT_CHECK(!prompt.empty(), "generation needs a prompt of at least one token");
  const std::shared_ptr<Allocator> memory = heap_allocator();
  ModelState state = model.initial_state(1, DType::f32);
  Generated result;

  const auto known = [&](const Tensor& all) {
    const std::span<const float> span = all.span<float>();
    const auto ids = static_cast<std::size_t>(options.ids);
    return ids > 0 && ids < span.size() ? span.first(ids) : span;
  };
  auto start = Clock::now();
  Tensor logits;
  {
    Tape tape(memory, Tape::Mode::inference);
    const auto T = static_cast<std::int64_t>(prompt.size());
    logits = model.prefill(tape, Tensor::from({T}, prompt), Documents::single(T), state);
  }
  result.prefill_seconds = seconds_since(start);

  start = Clock::now();
  for (std::int64_t i = 0; i < options.tokens; ++i) {
    const std::int32_t token = sample_token(known(logits), options.sampling, static_cast<std::uint64_t>(i));
    if (std::binary_search(options.stop.begin(), options.stop.end(), token)) break;
    result.tokens.push_back(token);
    if (on_token && !on_token(token)) break;
    if (i + 1 == options.tokens) break;
    Tape tape(memory, Tape::Mode::inference);
    logits = model.decode(tape, Tensor::from({1}, std::span<const std::int32_t>(&token, 1)), state);
  }
  result.decode_seconds = seconds_since(start);
  result.state_bytes = state.bytes();
  return result;
}

}  // namespace weft
