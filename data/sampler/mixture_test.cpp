#include "data/sampler/mixture.h"

#include <cmath>
#include <gtest/gtest.h>
#include <numeric>

namespace weft {
namespace {

TEST(Mixture, SharesSumToOne) {
  for (const std::vector<double>& weights :
       {std::vector<double>{1}, std::vector<double>{1, 1, 1}, std::vector<double>{0.7, 0.2, 0.1, 0},
        std::vector<double>{1e-12, 1, 3, 5, 7, 11, 13}}) {
    const auto shares = share_units(weights);
    EXPECT_EQ(std::accumulate(shares.begin(), shares.end(), std::int64_t{0}), std::int64_t{1} << 32);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      if (weights[i] == 0) {
        EXPECT_EQ(shares[i], 0);
      }
    }
  }
  EXPECT_EQ(share_units(std::vector<double>{0, 0}), (std::vector<std::int64_t>{0, 0}));
}

TEST(Mixture, EveryPrefixKeepsTheShares) {
  const std::vector<double> weights = {0.5, 0.25, 0.1, 0.08, 0.04, 0.02, 0.007, 0.003};
  const auto shares = share_units(weights);
  std::vector<std::int64_t> credits(weights.size(), 0);
  std::vector<double> drawn(weights.size(), 0);
  double worst = 0;
  for (int draw = 1; draw <= 20000; ++draw) {
    ++drawn[static_cast<std::size_t>(draw_source(shares, credits))];
    for (std::size_t i = 0; i < weights.size(); ++i) worst = std::max(worst, std::abs(drawn[i] - weights[i] * draw));
  }
  // Credits stay within about one row; independent draws would be off by 70.
  EXPECT_LT(worst, 1.1);
}

TEST(Mixture, SchedulesAreLinearBetweenPoints) {
  const std::vector<WeightPoint> points = {{100, 1.0}, {200, 3.0}, {400, 0.0}};
  EXPECT_EQ(weight_at(points, 0), 1.0);
  EXPECT_EQ(weight_at(points, 100), 1.0);
  EXPECT_EQ(weight_at(points, 150), 2.0);
  EXPECT_EQ(weight_at(points, 200), 3.0);
  EXPECT_EQ(weight_at(points, 300), 1.5);
  EXPECT_EQ(weight_at(points, 1000), 0.0);
}

}  // namespace
}  // namespace weft
