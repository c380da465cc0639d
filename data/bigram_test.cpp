#include "data/bigram.h"

#include <cmath>
#include <gtest/gtest.h>

#include "data/dataset_test_support.h"

namespace weft {
namespace {

using data_test::Documents;
using data_test::make_dataset;
using data_test::TemporaryFolder;

TEST(Bigram, HandComputed) {
  const TemporaryFolder folder;
  // Training bigrams: 1-2 twice, 1-3 once, 2-1 once, 2-EOS once, 3-EOS once; nothing across documents.
  const auto train = make_dataset(folder / "t", {{1, 2, 1, 2, 256}, {1, 3, 256}});
  const auto validation = make_dataset(folder / "v", {{1, 3, 256}, {5, 256}, {256}}, 1);
  const BigramEntropy entropy = bigram_entropy(*train, *validation, 0.5);
  const double v = 257;
  const double first = -std::log(1.5 / (3 + 0.5 * v));   // 1 -> 3
  const double second = -std::log(1.5 / (1 + 0.5 * v));  // 3 -> EOS
  const double third = std::log(v);                      // 5 was never seen: uniform
  EXPECT_EQ(entropy.predictions, 3);
  EXPECT_NEAR(entropy.nats_per_token, (first + second + third) / 3, 1e-14);
  EXPECT_NEAR(entropy.bits_per_byte, first / std::log(2.0) / 3, 1e-14);
}

// Longer than a reading chunk, documents cut anywhere: a deterministic cycle costs next to nothing.
TEST(Bigram, ReadsInChunks) {
  const TemporaryFolder folder;
  Documents documents;
  for (int d = 0; d < 30; ++d) {
    std::vector<std::uint16_t> document;
    for (int i = 0; i < 70001; ++i) document.push_back(static_cast<std::uint16_t>(i % 7));
    document.push_back(256);
    documents.push_back(document);
  }
  const auto data = make_dataset(folder / "d", documents, 11);
  const BigramEntropy entropy = bigram_entropy(*data, *data, 1e-3);
  EXPECT_EQ(entropy.predictions, 30 * 70001);
  EXPECT_LT(entropy.nats_per_token, 1e-3);
}

}  // namespace
}  // namespace weft
