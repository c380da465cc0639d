// What is in a row: labels, pieces, positions, padding, anchor, in both ways of packing.
#include "data/sampler/row.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <map>
#include <numeric>
#include <set>

#include "data/dataset_test_support.h"
#include "data/sampler/bucket_source.h"
#include "data/sampler/pack_index.h"
#include "data/sampler/row_builder.h"
#include "data/sampler/row_source.h"

namespace weft {
namespace {

using data_test::counting_documents;
using data_test::Documents;
using data_test::make_dataset;
using data_test::message_of;
using data_test::TemporaryFolder;

using Ids = std::vector<std::int32_t>;
constexpr std::int32_t kEos = 256;
constexpr std::int32_t kNone = kIgnoredLabel;

RowOptions row_options(std::int64_t length, Packing packing) {
  RowOptions options;
  options.length = length;
  options.packing = packing;
  options.max_docs = length + 2;
  return options;
}

// What holds for every row, whatever is in it.
void check_row(const Row& row, std::int64_t length) {
  ASSERT_EQ(row.length(), length);
  ASSERT_EQ(row.labels.size(), row.tokens.size());
  ASSERT_EQ(row.positions.size(), row.tokens.size());
  ASSERT_EQ(row.cu_seqlens.front(), 0);
  ASSERT_EQ(row.cu_seqlens.back(), length);
  for (std::size_t piece = 0; piece + 1 < row.cu_seqlens.size(); ++piece) {
    ASSERT_LT(row.cu_seqlens[piece], row.cu_seqlens[piece + 1]);
    const bool is_anchor = row.anchor && piece == 0;
    std::int32_t position = row.anchor && !is_anchor ? 1 : 0;
    for (std::int32_t t = row.cu_seqlens[piece]; t < row.cu_seqlens[piece + 1]; ++t) {
      ASSERT_EQ(row.positions[static_cast<std::size_t>(t)], position++);
      // Inside a piece a label is the next input.
      if (t + 1 < row.cu_seqlens[piece + 1] && row.labels[static_cast<std::size_t>(t)] != kNone) {
        ASSERT_EQ(row.labels[static_cast<std::size_t>(t)], row.tokens[static_cast<std::size_t>(t) + 1]);
      }
    }
  }
}

// Two shards; documents a b c EOS | d EOS | EOS | e f g h i EOS ...
std::shared_ptr<const Dataset> small_dataset(const TemporaryFolder& folder) {
  return make_dataset(folder / "d", {{1, 2, 3, kEos}, {4, kEos}, {kEos}, {5, 6, 7, 8, 9, kEos}, {10, 11, kEos}}, 3);
}

// The windows of an epoch without its offset: rows of 4 over the stream, from where the offset says.
TEST(Concat, LabelsStopAtDocumentEnds) {
  const TemporaryFolder folder;
  const auto dataset = small_dataset(folder);
  const auto source = make_row_source(dataset, row_options(4, Packing::concat), 1);
  EXPECT_EQ(source->rows(), 15 / 4 - 1);
  const Ids stream = {1, 2, 3, kEos, 4, kEos, kEos, 5, 6, 7, 8, 9, kEos, 10, 11, kEos};
  const Ids labels = {2, 3, kEos, kNone, kEos, kNone, kNone, 6, 7, 8, 9, kEos, kNone, 11, kEos, kNone};
  const std::set<std::int64_t> starts = {0, 4, 6, 7, 13};
  std::set<std::int64_t> offsets;
  for (std::int64_t epoch = 0; epoch < 20; ++epoch) {
    const Row first = source->build(epoch, 0);
    // Token ids are unique up to EOS; the first four positions differ for each offset.
    std::int64_t offset = 0;
    while (!std::equal(first.tokens.begin(), first.tokens.end(), stream.begin() + offset)) ++offset;
    ASSERT_LT(offset, 4);
    offsets.insert(offset);
    for (std::int64_t r = 0; r < source->rows(); ++r) {
      const Row row = source->build(epoch, r);
      check_row(row, 4);
      const std::int64_t begin = offset + 4 * r;
      EXPECT_TRUE(std::equal(row.tokens.begin(), row.tokens.end(), stream.begin() + begin));
      EXPECT_TRUE(std::equal(row.labels.begin(), row.labels.end(), labels.begin() + begin));
      Ids cu = {0};
      for (std::int64_t t = 1; t < 4; ++t) {
        if (starts.contains(begin + t)) cu.push_back(static_cast<std::int32_t>(t));
      }
      cu.push_back(4);
      EXPECT_EQ(row.cu_seqlens, cu);
    }
  }
  EXPECT_EQ(offsets.size(), 4u);  // the cut points move between epochs
}

TEST(Concat, WithoutDocumentsThereIsOnePiece) {
  const TemporaryFolder folder;
  const auto dataset = small_dataset(folder);
  RowOptions options = row_options(4, Packing::concat);
  const Row with = make_row_source(dataset, options, 1)->build(0, 0);
  options.intra_document = false;
  const Row without = make_row_source(dataset, options, 1)->build(0, 0);
  EXPECT_EQ(without.tokens, with.tokens);
  EXPECT_EQ(without.labels, with.labels);
  EXPECT_EQ(without.cu_seqlens, (Ids{0, 4}));
  EXPECT_EQ(without.positions, (Ids{0, 1, 2, 3}));
}

TEST(Concat, AnEpochCoversTheStreamOnce) {
  const TemporaryFolder folder;
  const Documents documents = counting_documents(300, 60);
  const auto dataset = make_dataset(folder / "d", documents, 70);
  const auto source = make_row_source(dataset, row_options(32, Packing::concat), 3);
  std::vector<std::int32_t> stream(static_cast<std::size_t>(dataset->n_tokens()));
  dataset->read(0, stream);
  Ids joined;
  for (std::int64_t r = 0; r < source->rows(); ++r) {
    const Row row = source->build(1, r);
    joined.insert(joined.end(), row.tokens.begin(), row.tokens.end());
  }
  EXPECT_NE(std::search(stream.begin(), stream.end(), joined.begin(), joined.end()), stream.end());
  EXPECT_EQ(static_cast<std::int64_t>(joined.size()), source->rows() * 32);
  EXPECT_GE(static_cast<std::int64_t>(joined.size()) + 2 * 32, dataset->n_tokens() - 1);
}

TEST(Concat, TooManyDocumentsCutTheRow) {
  const TemporaryFolder folder;
  const auto dataset = make_dataset(folder / "d", Documents(100, {7, kEos}));
  RowOptions options = row_options(16, Packing::concat);
  options.max_docs = 5;
  const Row row = make_row_source(dataset, options, 1)->build(0, 0);
  check_row(row, 16);
  EXPECT_EQ(row.cu_seqlens.size(), 6u);  // four documents and padding
  EXPECT_EQ(row.cut_tokens, 16 - row.cu_seqlens[4]);
  for (std::int32_t t = row.cu_seqlens[4]; t < 16; ++t) {
    EXPECT_EQ(row.tokens[static_cast<std::size_t>(t)], kEos);
    EXPECT_EQ(row.labels[static_cast<std::size_t>(t)], kNone);
  }
}

TEST(Anchor, TakesTheFirstPosition) {
  const TemporaryFolder folder;
  const auto dataset = small_dataset(folder);
  RowOptions options = row_options(5, Packing::concat);
  options.anchor = true;
  const auto source = make_row_source(dataset, options, 1);
  EXPECT_EQ(source->rows(), 15 / 4 - 1);
  options.anchor = false;
  options.length = 4;
  const auto plain = make_row_source(dataset, options, 1);
  for (std::int64_t r = 0; r < source->rows(); ++r) {
    const Row row = source->build(0, r);
    const Row without = plain->build(0, r);
    check_row(row, 5);
    EXPECT_TRUE(row.anchor);
    EXPECT_EQ(row.tokens[0], kEos);
    EXPECT_EQ(row.labels[0], kNone);
    EXPECT_EQ(row.positions[0], 0);
    EXPECT_EQ(row.cu_seqlens[1], 1);
    EXPECT_TRUE(std::equal(without.tokens.begin(), without.tokens.end(), row.tokens.begin() + 1));
    EXPECT_TRUE(std::equal(without.labels.begin(), without.labels.end(), row.labels.begin() + 1));
    for (std::size_t t = 0; t < 4; ++t) EXPECT_EQ(row.positions[t + 1], without.positions[t] + 1);
  }
}

// Lengths 1, 2, T, T+1, 2T+1 (in tokens, EOS included), T = 8.
TEST(Pack, HandMadeDocuments) {
  const TemporaryFolder folder;
  Documents documents;
  std::uint16_t next = 0;
  for (const std::size_t length : {1, 2, 8, 9, 17}) {
    std::vector<std::uint16_t> document;
    for (std::size_t i = 0; i + 1 < length; ++i) document.push_back(next++);
    document.push_back(kEos);
    documents.push_back(document);
  }
  const auto dataset = make_dataset(folder / "d", documents);
  const auto source = make_row_source(dataset, row_options(8, Packing::pack), 0);
  // Predictions 0, 1, 7, 8, 8 + 8: three full bins, and 7 + 1.
  ASSERT_EQ(source->rows(), 4);
  const Ids row0 = source->build(0, 0).tokens;
  EXPECT_EQ(row0, (Ids{8, 9, 10, 11, 12, 13, 14, 15}));
  EXPECT_EQ(source->build(0, 0).labels, (Ids{9, 10, 11, 12, 13, 14, 15, kEos}));
  EXPECT_EQ(source->build(0, 2).tokens, (Ids{24, 25, 26, 27, 28, 29, 30, 31}));
  EXPECT_EQ(source->build(0, 2).labels, (Ids{25, 26, 27, 28, 29, 30, 31, kEos}));
  const Row last = source->build(0, 3);
  EXPECT_EQ(last.tokens, (Ids{1, 2, 3, 4, 5, 6, 7, 0}));
  EXPECT_EQ(last.labels, (Ids{2, 3, 4, 5, 6, 7, kEos, kEos}));
  EXPECT_EQ(last.cu_seqlens, (Ids{0, 7, 8}));
  for (std::int64_t r = 0; r < 4; ++r) check_row(source->build(0, r), 8);
}

TEST(Pack, PaddingIsADocumentWithoutLabels) {
  const TemporaryFolder folder;
  const auto dataset = make_dataset(folder / "d", {{1, 2, 3, kEos}});
  const Row row = make_row_source(dataset, row_options(8, Packing::pack), 0)->build(0, 0);
  EXPECT_EQ(row.tokens, (Ids{1, 2, 3, kEos, kEos, kEos, kEos, kEos}));
  EXPECT_EQ(row.labels, (Ids{2, 3, kEos, kNone, kNone, kNone, kNone, kNone}));
  EXPECT_EQ(row.cu_seqlens, (Ids{0, 3, 8}));
  EXPECT_EQ(row.positions, (Ids{0, 1, 2, 0, 1, 2, 3, 4}));
  EXPECT_EQ(row.valid_labels(), 3);
  EXPECT_TRUE(row.weight.empty());
}

TEST(Pack, EveryPredictionOnceAndNoShortDocumentCut) {
  const TemporaryFolder folder;
  const auto dataset = make_dataset(folder / "d", counting_documents(3000, 150), 1000);
  const std::int64_t length = 64;
  for (const std::int64_t max_docs : {100, 4}) {
    RowOptions options = row_options(length, Packing::pack);
    options.max_docs = max_docs;
    const PackIndex index = build_pack_index(dataset->doc_offsets(), length, max_docs - 1);
    std::vector<int> predicted(static_cast<std::size_t>(dataset->n_tokens()), 0);
    for (const Piece& piece : index.pieces) {
      for (std::int64_t t = piece.start; t < piece.start + piece.length; ++t) ++predicted[static_cast<std::size_t>(t)];
      const std::int64_t document = dataset->doc_of(piece.start);
      const std::int64_t begin = dataset->doc_offsets()[static_cast<std::size_t>(document)];
      const std::int64_t end = dataset->doc_offsets()[static_cast<std::size_t>(document) + 1];
      ASSERT_LT(piece.start + piece.length, end);
      if (end - begin - 1 <= length) {
        ASSERT_EQ(piece.length, end - begin - 1);
      }
    }
    std::int64_t total = 0;
    for (std::int64_t t = 0; t < dataset->n_tokens(); ++t) {
      const bool is_end = dataset->doc_of(t) + 1 < dataset->n_docs() ? dataset->doc_of(t + 1) != dataset->doc_of(t)
                                                                     : t + 1 == dataset->n_tokens();
      ASSERT_EQ(predicted[static_cast<std::size_t>(t)], is_end ? 0 : 1);
      total += is_end ? 0 : 1;
    }
    const auto source = make_row_source(dataset, options, 0);
    std::int64_t labels = 0;
    for (std::int64_t r = 0; r < source->rows(); ++r) {
      const Row row = source->build(0, r);
      check_row(row, length);
      ASSERT_LE(static_cast<std::int64_t>(row.cu_seqlens.size()) - 1, max_docs);
      ASSERT_EQ(row.cut_tokens, 0);
      labels += row.valid_labels();
    }
    EXPECT_EQ(labels, total);
    if (max_docs == 100) {
      EXPECT_LT(source->rows() * length - total, total / 100) << "waste over 1 %";
    }
  }
}

// Documents of several blocks, log-normal-like lengths: the waste of best fit decreasing stays below 0.01 % a block.
TEST(Pack, WasteBoundAndDeterminism) {
  std::vector<std::int64_t> offsets = {0};
  std::uint64_t state = 1;
  for (int d = 0; d < 150000; ++d) {
    double sum = 0;
    for (int i = 0; i < 12; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      sum += static_cast<double>(state >> 40) * 0x1p-24;
    }
    offsets.push_back(offsets.back() + 2 + static_cast<std::int64_t>(545 * std::exp(sum - 6)));
  }
  const std::int64_t length = 2048;
  const PackIndex index = build_pack_index(offsets, length, length);
  const std::int64_t predictions = offsets.back() - 150000;
  const std::int64_t room = static_cast<std::int64_t>(index.bins.size() - 1) * length;
  // Each of the three blocks may leave a few bins open.
  EXPECT_LT(room - predictions, predictions / 10000 + 3 * length);
  const PackIndex again = build_pack_index(offsets, length, length);
  EXPECT_EQ(again.bins, index.bins);
  EXPECT_EQ(again.pieces, index.pieces);
}

TEST(Evaluation, CoversEveryPredictionOnce) {
  const TemporaryFolder folder;
  const auto dataset = small_dataset(folder);
  const auto source = make_evaluation_source(dataset, row_options(4, Packing::concat));
  std::map<std::int32_t, int> seen;
  std::int64_t labels = 0;
  for (std::int64_t r = 0; r < source->rows(); ++r) {
    const Row row = source->build(0, r);
    for (std::size_t t = 0; t < row.tokens.size(); ++t) {
      if (row.labels[t] == kNone) continue;
      ++labels;
      ++seen[row.tokens[t]];
    }
  }
  EXPECT_EQ(labels, dataset->n_tokens() - dataset->n_docs());
  for (std::int32_t id = 1; id <= 11; ++id) EXPECT_EQ(seen[id], 1) << id;
  EXPECT_EQ(seen[kEos], 0);
}

TEST(JoinRows, IsOnePackedRow) {
  const TemporaryFolder folder;
  const auto source = make_row_source(small_dataset(folder), row_options(4, Packing::concat), 1);
  const std::vector<Row> rows = {source->build(0, 0), source->build(0, 1)};
  const Row joined = join_rows(rows);
  check_row(joined, 8);
  EXPECT_TRUE(std::equal(rows[1].labels.begin(), rows[1].labels.end(), joined.labels.begin() + 4));
  EXPECT_EQ(joined.cu_seqlens.size(), rows[0].cu_seqlens.size() + rows[1].cu_seqlens.size() - 1);
  EXPECT_EQ(joined.valid_labels(), rows[0].valid_labels() + rows[1].valid_labels());
}

TEST(RowDigest, SeesEveryField) {
  const TemporaryFolder folder;
  const Row row = make_row_source(small_dataset(folder), row_options(4, Packing::concat), 1)->build(0, 0);
  const std::uint64_t digest = row_digest(row);
  for (int field = 0; field < 5; ++field) {
    Row other = row;
    if (field == 0) other.tokens[3] ^= 1;
    if (field == 1) other.labels[0] ^= 1;
    if (field == 2) other.cu_seqlens.push_back(4);
    if (field == 3) other.positions[2] ^= 1;
    if (field == 4) other.weight.assign(4, 1.0f);
    EXPECT_NE(row_digest(other), digest) << field;
  }
  EXPECT_EQ(row_digest(row), digest);
}

TEST(RowErrors, ImpossibleOptions) {
  const TemporaryFolder folder;
  const auto dataset = small_dataset(folder);
  const auto error = [&](const RowOptions& options) {
    return message_of(ExitCode::config, [&] { make_row_source(dataset, options, 0); });
  };
  EXPECT_EQ(error(row_options(1, Packing::pack)), "sequence length 1: expected 2 to 67108864");
  EXPECT_EQ(error(row_options(9, Packing::concat)),
            "dataset " + (folder / "d") + ": 16 tokens are too few for rows of 9; at least 19 are needed");
  RowOptions options = row_options(4, Packing::concat);
  options.max_docs = 1;
  EXPECT_EQ(error(options), "max_docs 1: a row needs room for a document, padding");
  options = row_options(12, Packing::bucket);
  EXPECT_EQ(error(options), "sequence length 12: bucket packing needs a power of two");
  options.length = 16;
  options.anchor = true;
  EXPECT_EQ(error(options), "anchor: bucket packing fills rows exactly and leaves no room for the anchor");
  EXPECT_EQ(message_of(ExitCode::config, [] { packing_from_name("best"); }),
            "packing \"best\": expected \"concat\", \"pack\" or \"bucket\"");
  const auto empty = make_dataset(folder / "e", Documents(10, {kEos}));
  EXPECT_EQ(message_of(ExitCode::config, [&] { make_row_source(empty, row_options(4, Packing::pack), 0); }),
            "dataset " + (folder / "e") + ": no document has two tokens, so there is nothing to predict");
}

}  // namespace
}  // namespace weft
