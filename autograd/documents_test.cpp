#include "autograd/documents.h"

#include <gtest/gtest.h>

#include "autograd/check.h"
#include "autograd/document_tables.h"
#include "autograd/ops/rope/rope.h"
#include "tests/support/compare.h"
#include "tests/support/gpu.h"
#include "tests/support/random.h"

namespace weft {
namespace {

TEST(Documents, PositionsRestartAndEmptyDocumentsAreLegal) {
  const Documents d({0, 3, 3, 5}, {0, 7, 10});
  EXPECT_EQ(d.tokens(), 5);
  EXPECT_EQ(d.count(), 3);
  EXPECT_EQ(d.length(1), 0);
  EXPECT_EQ(d.begin(2), 3);
  EXPECT_EQ(d.end(2), 5);
  EXPECT_EQ(d.positions(), (std::vector<std::int32_t>{0, 1, 2, 10, 11}));
  EXPECT_EQ(d.max_position(), 11);
  EXPECT_EQ(d.pos0(1), 7);
}

TEST(Documents, Makers) {
  EXPECT_EQ(Documents::single(4, 2)->positions(), (std::vector<std::int32_t>{2, 3, 4, 5}));
  const std::vector<std::int32_t> lengths{2, 0, 1};
  EXPECT_EQ(Documents::from_lengths(lengths)->cu_seqlens(), (std::vector<std::int32_t>{0, 2, 2, 3}));
  const std::vector<std::int32_t> positions{4, 0, 9};
  const auto tokens = Documents::single_tokens(positions);
  EXPECT_EQ(tokens->cu_seqlens(), (std::vector<std::int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(tokens->positions(), positions);
  EXPECT_EQ(Documents::single_tokens({})->count(), 0);
  const auto nothing = Documents::single(0);
  EXPECT_EQ(nothing->tokens(), 0);
  EXPECT_EQ(nothing->max_position(), 0);
  EXPECT_TRUE(nothing->chunks(16).chunks.empty());
  EXPECT_EQ(Documents({0}).count(), 0);
}

TEST(Documents, ChunksRestartAtEachDocumentAndNeverStraddle) {
  const Documents d({0, 5, 5, 9, 10});
  const ChunkTable& table = d.chunks(2);
  const std::vector<Chunk> expected{{0, 0, 0, 2}, {0, 1, 2, 4}, {0, 2, 4, 5},
                                    {2, 0, 5, 7}, {2, 1, 7, 9}, {3, 0, 9, 10}};
  ASSERT_EQ(table.chunks.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(table.chunks[i].document, expected[i].document) << i;
    EXPECT_EQ(table.chunks[i].index, expected[i].index) << i;
    EXPECT_EQ(table.chunks[i].begin, expected[i].begin) << i;
    EXPECT_EQ(table.chunks[i].end, expected[i].end) << i;
  }
  EXPECT_EQ(table.document_offset, (std::vector<std::int32_t>{0, 3, 3, 5, 6}));
  EXPECT_EQ(&d.chunks(2), &table) << "tables are kept";
  EXPECT_EQ(d.chunks(100).chunks.size(), 3u);
}

TEST(Documents, AnAnchorIsADocumentOfOneToken) {
  const Documents d({0, 1, 4}, {0, 1}, Anchor::first_token);
  EXPECT_TRUE(d.anchored());
  EXPECT_EQ(d.positions(), (std::vector<std::int32_t>{0, 1, 2, 3}));
  EXPECT_THROW(Documents({0, 2, 4}, {}, Anchor::first_token), Error);
  EXPECT_THROW(Documents({0}, {}, Anchor::first_token), Error);
}

TEST(Documents, RefusesImpossibleTables) {
  EXPECT_THROW(Documents({}), Error);
  EXPECT_THROW(Documents({1, 2}), Error);
  EXPECT_THROW(Documents({0, 3, 2}), Error);
  EXPECT_THROW(Documents({0, 3}, {0, 0}), Error);
  EXPECT_THROW(Documents({0, 3}).chunks(0), Error);
}

// Many rows loaded while the stream still works on those before, as in a step of many micro-batches: what was computed
// from each equals what tables of its own give.
TEST(DocumentTablesGpu, LoadsDoNotDisturbThoseBeforeThem) {
  WEFT_NEEDS_GPU();
  constexpr std::int32_t T = 4096;
  Tape tape(testing::gpu_memory(), Tape::Mode::inference, testing::gpu_stream());
  const Var x = Tape::constant(tape.here(testing::cast(testing::normal({T, 1, 64}, 1), DType::f32)));
  const RopeTable angles(RopeConfig{.rotary_dim = 64});
  const auto turned = [&](const DocumentsPtr& documents) { return rope(tape, x, documents, angles).value; };
  const auto tables = std::make_shared<DocumentTables>(tape.stream(), T, 2);
  std::vector<DocumentsPtr> rows;
  std::vector<Tensor> results;
  for (const int step : {0, 1}) {
    for (std::int32_t i = 0; i < 40; ++i) {
      const std::int32_t cut = (40 * step + i) * T / 80;
      rows.push_back(Documents::from_lengths(std::vector<std::int32_t>{cut, T - cut}));
      const DocumentsPtr attached = std::make_shared<const Documents>(*rows.back());
      tables->load(*attached);
      attached->attach(tables);
      results.push_back(turned(attached));
    }
    synchronize(tape.stream());
    tables->rewind();
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    EXPECT_TRUE(testing::bitwise_equal(to_host(results[i], tape.stream()), to_host(turned(rows[i]), tape.stream())))
        << i;
  }
}

}  // namespace
}  // namespace weft
