#include "train/generate/generate.h"

#include <algorithm>
#include <chrono>

#include "train/generate/decoder.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Generated generate(LanguageModel& model, const Place& place, std::span<const std::int32_t> prompt,
                   const GenerateOptions& options, const std::function<bool(std::int32_t)>& on_token) {
  WEFT_CHECK(!prompt.empty(), "generation needs a prompt of at least one token");
  Decoder decoder(model, place, 1);
  Generated result;
  const auto known = [&](const Tensor& all) {
    const std::span<const float> span = all.span<float>();
    const auto ids = static_cast<std::size_t>(options.ids);
    return ids > 0 && ids < span.size() ? span.first(ids) : span;
  };
  auto start = Clock::now();
  Tensor logits = decoder.prefill(prompt, Documents::single(static_cast<std::int64_t>(prompt.size())));
  result.prefill_seconds = seconds_since(start);

  start = Clock::now();
  for (std::int64_t i = 0; i < options.tokens; ++i) {
    const std::int32_t token = sample_token(known(logits), options.sampling, static_cast<std::uint64_t>(i));
    if (std::binary_search(options.stop.begin(), options.stop.end(), token)) break;
    result.tokens.push_back(token);
    if (on_token && !on_token(token)) break;
    if (i + 1 == options.tokens) break;
    logits = decoder.step(std::span<const std::int32_t>(&token, 1));
  }
  result.decode_seconds = seconds_since(start);
  result.state_bytes = decoder.state_bytes();
  return result;
}

}  // namespace weft
