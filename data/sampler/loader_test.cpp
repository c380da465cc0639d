// Rows of a step on their groups: the same for any number of ranks; errors and their repetition.
#include "data/sampler/loader.h"

#include <gtest/gtest.h>
#include <set>

#include "data/sampler/sampler_test_support.h"

namespace weft {
namespace {

using namespace data_test;

TEST(Sampler, StepsAreEqualForAnyRanks) {
  const SamplerFixture f;
  for (const Packing packing : {Packing::concat, Packing::pack, Packing::bucket}) {
    const SamplerOptions options = f.options(packing, packing != Packing::bucket);
    // Digests and rows of the first steps for one group without accumulation.
    struct Step {
      std::string order;
      std::uint64_t content = 0;
      std::int64_t labels = 0;
      std::multiset<std::uint64_t> rows;
    };
    std::vector<Step> reference;
    for (const std::int64_t dp : {1, 2, 4, 8}) {
      for (const std::int64_t accumulation : {1, 2, 4}) {
        if (8 % (dp * accumulation) != 0) continue;
        std::vector<Step> steps(6);
        for (std::int64_t rank = 0; rank < dp; ++rank) {
          LoaderOptions load;
          load.dp_rank = rank;
          load.dp_size = dp;
          load.accumulation = accumulation;
          Loader loader(std::make_unique<Sampler>(options), load);
          for (Step& step : steps) {
            const auto loaded = loader.next();
            ASSERT_TRUE(loaded.has_value());
            ASSERT_EQ(static_cast<std::int64_t>(loaded->micro_batches.size()), accumulation);
            step.order = loaded->order_digest;
            step.content += loaded->content_digest;
            step.labels += loaded->valid_labels;
            for (const auto& batch : loaded->micro_batches) {
              ASSERT_EQ(static_cast<std::int64_t>(batch.size()), 8 / dp / accumulation);
              for (const Row& row : batch) step.rows.insert(row_digest(row));
            }
          }
        }
        if (reference.empty()) reference = steps;
        for (std::size_t k = 0; k < steps.size(); ++k) {
          EXPECT_EQ(steps[k].order, reference[k].order);
          EXPECT_EQ(steps[k].content, reference[k].content);
          EXPECT_EQ(steps[k].labels, reference[k].labels);
          EXPECT_EQ(steps[k].rows, reference[k].rows);
        }
      }
    }
    EXPECT_NE(reference[0].order, reference[1].order);
    EXPECT_NE(reference[0].content, reference[1].content);
  }
}

TEST(Loader, TakesTheRowsOfItsGroup) {
  const SamplerFixture f;
  const SamplerOptions options = f.options(Packing::concat, true);
  Sampler sampler(options);
  const auto plan = sampler.next();
  LoaderOptions load;
  load.dp_rank = 1;
  load.dp_size = 2;
  load.accumulation = 2;
  Loader loader(std::make_unique<Sampler>(options), load);
  const auto step = loader.next();
  for (std::size_t a = 0; a < 2; ++a) {
    for (std::size_t r = 0; r < 2; ++r) {
      EXPECT_EQ(row_digest(step->micro_batches[a][r]), row_digest(sampler.build(plan->rows[(a * 2 + 1) * 2 + r])));
    }
  }
  EXPECT_EQ(step->stream_state, sampler.state());
  EXPECT_EQ(step->tokens_drawn, 8 * 64);
}

TEST(Loader, EndsAndPassesErrorsOn) {
  SamplerFixture f;
  {
    Loader loader(std::make_unique<Sampler>(f.options(Packing::pack)), {});
    while (loader.next()) {
    }
    EXPECT_FALSE(loader.next().has_value());
    EXPECT_GE(loader.wait_seconds(), 0.0);
  }
  data_test::flip_bit(f.folder / "a/tokens-00001.h5", f.a->manifest().shards[1].offsets.at("tokens") + 1, 0);
  f.a = std::make_shared<const Dataset>(f.folder / "a");
  Loader loader(std::make_unique<Sampler>(f.options(Packing::pack)), {});
  EXPECT_NE(message_of(ExitCode::config,
                       [&] {
                         while (loader.next()) {
                         }
                       })
                .find("do not match their checksum"),
            std::string::npos);
  EXPECT_EQ(message_of(ExitCode::config,
                       [&] {
                         LoaderOptions load;
                         load.dp_size = 3;
                         Loader(std::make_unique<Sampler>(f.options(Packing::pack)), load);
                       }),
            "8 rows a step do not divide into 3 data-parallel groups times 1 accumulation steps");
}

TEST(Loader, RetriesReads) {
  SamplerFixture f;
  std::filesystem::resize_file(f.folder / "a/tokens-00000.h5", 4096);
  LoaderOptions load;
  load.retry_waits = {std::chrono::milliseconds(20), std::chrono::milliseconds(30)};
  const auto start = std::chrono::steady_clock::now();
  Loader loader(std::make_unique<Sampler>(f.options(Packing::pack)), load);
  EXPECT_NE(message_of(ExitCode::storage,
                       [&] {
                         while (loader.next()) {
                         }
                       })
                .find("tokens-00000.h5"),
            std::string::npos);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(50));
}

}  // namespace
}  // namespace weft
