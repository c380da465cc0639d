#include "autograd/philox.h"

#include <cmath>
#include <gtest/gtest.h>
#include <vector>

namespace weft {
namespace {

// The known answers that the authors of Philox publish with their code.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox({0, 0, 0, 0}, 0), (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, 0xffffffffffffffffull),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822ull),
            (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, WordsAreTheBlocksInOrder) {
  RandomWords words(9, RandomStream::test, 1ull << 40);
  for (std::uint32_t block = 0; block < 3; ++block) {
    for (const std::uint32_t expected : random_block(9, RandomStream::test, 1ull << 40, block)) {
      EXPECT_EQ(words.word(), expected);
    }
  }
}

TEST(Philox, SeedStreamIndexAndBlockAllMatter) {
  const PhiloxCounter base = random_block(1, RandomStream::test, 2, 3);
  EXPECT_NE(random_block(2, RandomStream::test, 2, 3), base);
  EXPECT_NE(random_block(1ull << 32 | 1, RandomStream::test, 2, 3), base);
  EXPECT_NE(random_block(1, RandomStream::generation, 2, 3), base);
  EXPECT_NE(random_block(1, RandomStream::test, 3, 3), base);
  EXPECT_NE(random_block(1, RandomStream::test, 1ull << 32 | 2, 3), base);
  EXPECT_NE(random_block(1, RandomStream::test, 2, 4), base);
}

TEST(Philox, UniformHasTheRightMoments) {
  double sum = 0.0, squares = 0.0;
  constexpr int kDraws = 200000;
  RandomWords words(4, RandomStream::test, 0);
  for (int i = 0; i < kDraws; ++i) {
    const double u = words.uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    squares += u * u;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.003);
  EXPECT_NEAR(squares / kDraws, 1.0 / 3.0, 0.003);
}

// n = 3 * 2^30: the multiply alone would draw a third of the numbers twice as often as the others.
TEST(Philox, BelowIsUnbiasedForAwkwardRanges) {
  constexpr std::uint64_t kRange = 3ull << 30;
  constexpr int kDraws = 90000;
  int by_remainder[3] = {}, by_third[3] = {};
  RandomWords words(5, RandomStream::test, 1);
  for (int i = 0; i < kDraws; ++i) {
    const std::uint64_t x = words.below(kRange);
    ASSERT_LT(x, kRange);
    ++by_remainder[x % 3];
    ++by_third[x >> 30];
  }
  // Five standard deviations of a binomial count.
  const double tolerance = 5.0 * std::sqrt(kDraws * (1.0 / 3.0) * (2.0 / 3.0));
  for (int k = 0; k < 3; ++k) {
    EXPECT_NEAR(by_remainder[k], kDraws / 3.0, tolerance);
    EXPECT_NEAR(by_third[k], kDraws / 3.0, tolerance);
  }
}

TEST(Philox, BelowCoversSmallAndHugeRanges) {
  RandomWords words(6, RandomStream::test, 2);
  std::vector<int> seen(7);
  for (int i = 0; i < 1000; ++i) ++seen[words.below(7)];
  for (const int count : seen) EXPECT_GT(count, 80);
  EXPECT_EQ(words.below(1), 0u);
  constexpr std::uint64_t kHuge = (1ull << 63) + 12345;
  int upper_half = 0;
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t x = words.below(kHuge);
    ASSERT_LT(x, kHuge);
    upper_half += x >= kHuge / 2;
  }
  EXPECT_NEAR(upper_half, 500, 80);
}

}  // namespace
}  // namespace weft
