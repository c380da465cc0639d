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
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  const double largest = logits[static_cast<std::size_t>(order.front())];
  if (options.top_k > 0 && options.top_k < static_cast<std::int64_t>(order.size())) {
    order.resize(static_cast<std::size_t>(options.top_k));
  }
  std::vector<double> weight;
  double total = 0.0;
  for (const std::int32_t id : order) {
    weight.push_back(std::exp((logits[static_cast<std::size_t>(id)] - largest) / options.temperature));
    total += weight.back();
  }
  if (options.top_p < 1.0) {
    double sum = 0.0;
    std::size_t kept = 0;
    while (kept < weight.size() && sum < options.top_p * total) sum += weight[kept++];
    weight.resize(std::max<std::size_t>(kept, 1));
    total = std::accumulate(weight.begin(), weight.end(), 0.0);
  }
  double remaining = RandomWords(options.seed, RandomStream::generation, index).uniform() * total;
  for (std::size_t i = 0; i < weight.size(); ++i) {
    remaining -= weight[i];
    if (remaining < 0.0) return order[i];
  }
  return order[weight.size() - 1];
}

}  // namespace weft
