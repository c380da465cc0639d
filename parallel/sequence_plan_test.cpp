#include "parallel/sequence_plan.h"

#include <gtest/gtest.h>
#include <numeric>

#include "autograd/check.h"

namespace weft {
namespace {

DocumentsPtr row_of(const std::vector<std::int32_t>& lengths) {
  return Documents::from_lengths(lengths);
}

// What the plan must say, found token by token.
void expect_plan_by_tokens(const DocumentsPtr& row, int P) {
  const std::int64_t T = row->tokens();
  const std::int64_t share = T / P;
  std::vector<std::int64_t> document(static_cast<std::size_t>(T));
  for (std::int64_t n = 0; n < row->count(); ++n) {
    for (std::int64_t t = row->begin(n); t < row->end(n); ++t) document[static_cast<std::size_t>(t)] = n;
  }
  const auto document_at = [&](std::int64_t t) { return document[static_cast<std::size_t>(t)]; };
  for (int r = 0; r < P; ++r) {
    SCOPED_TRACE(fmt::format("rank {} of {}", r, P));
    const SequencePlan plan = plan_sequence(row, P, r);
    ASSERT_EQ(plan.begin, r * share);
    ASSERT_EQ(plan.end, (r + 1) * share);
    ASSERT_EQ(plan.local->tokens(), share);

    std::vector<std::int32_t> cu{0};
    std::vector<std::int32_t> positions;
    std::int64_t carry_in = 0;
    std::int64_t carry_out = 0;
    bool has_reset = false;
    for (std::int64_t t = 0; t < T; ++t) {
      if (t < plan.begin && document_at(t) == document_at(plan.begin)) ++carry_in;
      if (t >= plan.end && document_at(t) == document_at(plan.end - 1)) ++carry_out;
      if (t < plan.begin || t >= plan.end) continue;
      positions.push_back(row->positions()[static_cast<std::size_t>(t)]);
      const bool starts = t == 0 || document_at(t) != document_at(t - 1);
      has_reset |= starts;
      if (starts && t > plan.begin) cu.push_back(static_cast<std::int32_t>(t - plan.begin));
    }
    cu.push_back(static_cast<std::int32_t>(share));
    EXPECT_EQ(plan.local->cu_seqlens(), cu);
    EXPECT_EQ(plan.positions(), positions);
    EXPECT_EQ(plan.carry_in, carry_in);
    EXPECT_EQ(plan.carry_out, carry_out);
    EXPECT_EQ(plan.starts_inside(), carry_in == 0);
    EXPECT_EQ(plan.has_reset, has_reset);
    const auto holders = [&](std::int64_t n) {
      RankRange range{P, -1};
      for (std::int64_t t = 0; t < T; ++t) {
        if (document_at(t) != n) continue;
        range.first = std::min(range.first, static_cast<int>(t / share));
        range.last = std::max(range.last, static_cast<int>(t / share));
      }
      return range;
    };
    EXPECT_EQ(plan.first_document, holders(document_at(plan.begin)));
    EXPECT_EQ(plan.last_document, holders(document_at(plan.end - 1)));
  }
}

struct Packing {
  const char* name;
  std::vector<std::int32_t> lengths;  // of a row of 64 tokens, 16 on each of 4 ranks
};

const Packing kPackings[] = {
    {"one document", {64}},
    {"boundary on a rank boundary", {32, 32}},
    {"boundary before a rank boundary", {31, 33}},
    {"boundary after a rank boundary", {33, 31}},
    {"short documents", {1, 2, 3, 4, 7, 8, 9, 1, 1, 1, 15, 12}},
    {"single tokens", std::vector<std::int32_t>(64, 1)},
    {"three ranks, then one that starts inside", {40, 24}},
    {"three ranks from inside the first", {5, 38, 21}},
    {"padding at the end", {20, 30, 14}},
    {"a rank of padding only", {10, 38, 16}},
    {"empty documents", {0, 16, 0, 0, 20, 0, 28, 0}},
};

TEST(SequencePlan, AgreesWithATokenByTokenPlan) {
  for (const Packing& packing : kPackings) {
    SCOPED_TRACE(packing.name);
    const DocumentsPtr row = row_of(packing.lengths);
    ASSERT_EQ(row->tokens(), 64);
    for (const int P : {2, 4, 8, 16, 64}) expect_plan_by_tokens(row, P);
  }
}

TEST(SequencePlan, OneDocumentOverThreeRanksThenOneFromInside) {
  const DocumentsPtr row = row_of({40, 24});
  const SequencePlan plan = plan_sequence(row, 4, 2);
  EXPECT_EQ(plan.begin, 32);
  EXPECT_EQ(plan.end, 48);
  EXPECT_EQ(plan.local->cu_seqlens(), (std::vector<std::int32_t>{0, 8, 16}));
  EXPECT_EQ(plan.local->pos0(0), 32);
  EXPECT_EQ(plan.local->pos0(1), 0);
  EXPECT_EQ(plan.carry_in, 32);
  EXPECT_EQ(plan.carry_out, 16);
  EXPECT_FALSE(plan.starts_inside());
  EXPECT_TRUE(plan.has_reset);
  EXPECT_EQ(plan.first_document, (RankRange{0, 2}));
  EXPECT_EQ(plan.last_document, (RankRange{2, 3}));
  EXPECT_EQ(plan.earlier_ranks(), 2);
  EXPECT_EQ(plan.later_ranks(), 1);
  const SequencePlan middle = plan_sequence(row, 4, 1);
  EXPECT_FALSE(middle.has_reset);
  EXPECT_EQ(middle.carry_in, 16);
  EXPECT_EQ(middle.carry_out, 8);
  EXPECT_EQ(middle.first_document, middle.last_document);
}

TEST(SequencePlan, PositionsContinueACachedPrefix) {
  const auto row =
      std::make_shared<const Documents>(std::vector<std::int32_t>{0, 6, 8}, std::vector<std::int32_t>{100, 7});
  const SequencePlan plan = plan_sequence(row, 2, 1);
  EXPECT_EQ(plan.positions(), (std::vector<std::int32_t>{104, 105, 7, 8}));
  EXPECT_EQ(plan.carry_in, 4);
}

TEST(SequencePlan, OneRankHasTheDocumentsAsTheyAre) {
  const DocumentsPtr row = row_of({0, 5, 0, 2});
  const SequencePlan plan = plan_sequence(row, 1, 0);
  EXPECT_EQ(plan.local, row);
  EXPECT_EQ(plan.tokens(), 7);
  EXPECT_TRUE(plan.starts_inside());
  EXPECT_EQ(plan.carry_out, 0);
  EXPECT_TRUE(plan.has_reset);
}

TEST(SequencePlan, RowsThatCannotBeCutAreRefused) {
  EXPECT_THROW(plan_sequence(row_of({7}), 2, 0), Error);
  EXPECT_THROW(plan_sequence(row_of({0}), 2, 0), Error);
  EXPECT_THROW(plan_sequence(row_of({8}), 2, 2), Error);
}

}  // namespace
}  // namespace weft
