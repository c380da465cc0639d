#include "data/sampler/permutation.h"

#include <cmath>
#include <gtest/gtest.h>
#include <vector>

namespace weft {
namespace {

TEST(Philox, CheckValue) {
  const PhiloxCounter words = philox({0, 0, 0, 0}, 0);
  EXPECT_EQ(words[0], 0x6627e8d5u);
  EXPECT_EQ(words[1], 0xe169c58du);
  EXPECT_EQ(words[2], 0xbc57ac4cu);
  EXPECT_EQ(words[3], 0x9b00dbd8u);
}

TEST(KeyedPermutation, IsABijectionWithInverse) {
  std::vector<char> seen;
  for (std::uint64_t n = 1; n <= 4096; n = n < 300 ? n + 1 : n + 37) {
    const KeyedPermutation order(7, static_cast<std::uint32_t>(n), n);
    seen.assign(n, 0);
    for (std::uint64_t i = 0; i < n; ++i) {
      const std::uint64_t value = order(i);
      ASSERT_LT(value, n);
      ASSERT_FALSE(seen[value]) << "n = " << n;
      seen[value] = 1;
      if (n % 5 == 0) {
        ASSERT_EQ(order.inverse(value), i);
      }
    }
  }
}

TEST(KeyedPermutation, LargeDomains) {
  RandomWords words(3, RandomStream::test, 0);
  for (int trial = 0; trial < 20; ++trial) {
    const std::uint64_t n = 2 + words.below(std::uint64_t{1} << (20 + 2 * trial));
    const KeyedPermutation order(words.word64(), 0, n);
    for (int sample = 0; sample < 200; ++sample) {
      const std::uint64_t i = words.below(n);
      const std::uint64_t value = order(i);
      ASSERT_LT(value, n);
      ASSERT_EQ(order.inverse(value), i);
    }
  }
}

TEST(KeyedPermutation, WalksAtMostFourStepsOnAverage) {
  for (const std::uint64_t n : {std::uint64_t{4097}, std::uint64_t{65537}, (std::uint64_t{1} << 30) + 1}) {
    const KeyedPermutation order(11, 0, n);
    double steps = 0;
    const std::uint64_t samples = 4000;
    for (std::uint64_t i = 0; i < samples; ++i) steps += order.walk_length(i * (n / samples));
    EXPECT_LE(steps / static_cast<double>(samples), 4.2) << n;
  }
  const KeyedPermutation full(11, 0, 4096);
  for (std::uint64_t i = 0; i < 4096; ++i) ASSERT_EQ(full.walk_length(i), 1);
}

// Where element 0 goes, over 3,000 keys, is uniform: chi-square with n-1 degrees of freedom, five standard deviations.
TEST(KeyedPermutation, FirstElementIsUniform) {
  for (const std::uint64_t n : {std::uint64_t{10}, std::uint64_t{100}}) {
    std::vector<double> count(n, 0.0);
    const int keys = 3000;
    for (int key = 0; key < keys; ++key) {
      ++count[KeyedPermutation(permutation_key(5, RandomStream::test, static_cast<std::uint64_t>(key)), 0, n)(0)];
    }
    const double expected = static_cast<double>(keys) / static_cast<double>(n);
    double chi_square = 0;
    for (const double c : count) chi_square += (c - expected) * (c - expected) / expected;
    const double freedom = static_cast<double>(n) - 1;
    EXPECT_LT(chi_square, freedom + 5 * std::sqrt(2 * freedom)) << n;
  }
}

TEST(KeyedPermutation, DependsOnKeyAndEpoch) {
  const KeyedPermutation a(1, 0, 1000), b(2, 0, 1000), c(1, 1, 1000);
  int same_key = 0, same_epoch = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    same_key += a(i) == b(i);
    same_epoch += a(i) == c(i);
  }
  EXPECT_LT(same_key, 12);
  EXPECT_LT(same_epoch, 12);
}

}  // namespace
}  // namespace weft
