#include "data/sampler/mixture.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "autograd/check.h"

namespace weft {

namespace {
constexpr std::int64_t kOne = std::int64_t{1} << 32;
}

double weight_at(std::span<const WeightPoint> points, std::int64_t tokens) {
  if (tokens <= points.front().tokens) return points.front().weight;
  for (std::size_t i = 1; i < points.size(); ++i) {
    if (tokens > points[i].tokens) continue;
    const WeightPoint& a = points[i - 1];
    const WeightPoint& b = points[i];
    const double x = static_cast<double>(tokens - a.tokens) / static_cast<double>(b.tokens - a.tokens);
    return a.weight + (b.weight - a.weight) * x;
  }
  return points.back().weight;
}

std::vector<std::int64_t> share_units(std::span<const double> weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<std::int64_t> shares(weights.size(), 0);
  if (sum <= 0) return shares;
  std::int64_t rest = kOne;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    shares[i] = static_cast<std::int64_t>(std::floor(weights[i] / sum * static_cast<double>(kOne) + 0.5));
    rest -= shares[i];
  }
  // Rounding leaves a few units; the largest share takes them.
  *std::max_element(shares.begin(), shares.end()) += rest;
  return shares;
}

std::int32_t draw_source(std::span<const std::int64_t> shares, std::span<std::int64_t> credits) {
  std::int32_t chosen = -1;
  for (std::size_t i = 0; i < shares.size(); ++i) {
    if (shares[i] == 0) continue;
    credits[i] += shares[i];
    if (chosen < 0 || credits[i] > credits[static_cast<std::size_t>(chosen)]) chosen = static_cast<std::int32_t>(i);
  }
  WEFT_CHECK(chosen >= 0, "no source has a share");
  credits[static_cast<std::size_t>(chosen)] -= kOne;
  return chosen;
}

}  // namespace weft
