// From logits to a token.
#pragma once

#include <cstdint>
#include <span>

namespace weft {

struct SamplingOptions {
  double temperature = 1.0;  // 0: the most likely token (lowest id on ties)
  std::int64_t top_k = 0;    // 0: all
  double top_p = 1.0;        // the smallest set of most likely tokens with this much probability
  std::uint64_t seed = 0;
};

// Draws token number `index` of a text: a pure function of logits, options and index.
std::int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, std::uint64_t index);

}  // namespace weft
