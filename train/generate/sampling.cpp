#include "train/generate/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "autograd/check.h"
#include "autograd/philox.h"

namespace weft {

std::int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, std::uint64_t index) {
  WEFT_CHECK(!logits.empty(), "no logits to sample from");
  if (std::any_of(logits.begin(), logits.end(), [](float v) { return std::isnan(v) || v == INFINITY; })) {
    fail(ExitCode::nonfinite,
         "the model's logits are not finite at token {} of the text; the checkpoint is damaged or diverged", index);
  }
  if (options.temperature <= 0.0) {
    return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  std::vector<std::int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  // The most likely first, the lower id on ties.
  const auto before = [&](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x > y || (x == y && a < b);
  };
  if (options.top_k > 0 && options.top_k < static_cast<std::int64_t>(ids.size())) {
    std::nth_element(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(options.top_k), ids.end(), before);
    ids.resize(static_cast<std::size_t>(options.top_k));
  }
  const double largest = *std::max_element(logits.begin(), logits.end());
  const auto weight = [&](std::int32_t id) {
    return std::exp((logits[static_cast<std::size_t>(id)] - largest) / options.temperature);
  };
  double total = 0.0;
  for (const std::int32_t id : ids) total += weight(id);
  // Few of many are looked at: the likely ones come from a heap, one after the other.
  const auto after = [&](std::int32_t a, std::int32_t b) { return before(b, a); };
  std::make_heap(ids.begin(), ids.end(), after);
  auto end = ids.end();
  const auto next = [&] {
    std::pop_heap(ids.begin(), end, after);
    return *--end;
  };
  std::vector<std::int32_t> kept;
  if (options.top_p < 1.0) {
    double sum = 0.0;
    while (end != ids.begin() && (kept.empty() || sum < options.top_p * total)) {
      kept.push_back(next());
      sum += weight(kept.back());
    }
    total = sum;
  }
  double remaining = RandomWords(options.seed, RandomStream::generation, index).uniform() * total;
  std::int32_t id = 0;
  const std::size_t count = kept.empty() ? ids.size() : kept.size();
  for (std::size_t i = 0; i < count && remaining >= 0.0; ++i) {
    id = kept.empty() ? next() : kept[i];
    remaining -= weight(id);
  }
  return id;
}

}  // namespace weft
