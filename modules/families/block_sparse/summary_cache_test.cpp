// Summaries that inference makes piece by piece are those of the whole sequence, each as soon as it is whole.
#include "modules/families/block_sparse/summary_cache.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "modules/families/block_sparse/compression.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft::testing::block_sparse {
namespace {

constexpr std::int64_t H = 2, D = 3, D_V = 4;

// Row i of sequence n's summaries, keys then values.
std::vector<double> summary(const KeyValueCache& cache, std::int64_t n, std::int64_t i) {
  std::vector<double> row;
  const auto* page = static_cast<const double*>(cache.keys(n).page(static_cast<std::int32_t>(i / kKeyTile)));
  for (std::int64_t h = 0; h < H; ++h) {
    const double* k = page + (h * kKeyTile + i % kKeyTile) * D;
    row.insert(row.end(), k, k + D);
  }
  for (std::int64_t h = 0; h < H; ++h) {
    const double* v = page + H * kKeyTile * D + (h * kKeyTile + i % kKeyTile) * D_V;
    row.insert(row.end(), v, v + D_V);
  }
  return row;
}

void extend(Tape& tape, SummaryCache& cache, KeySpan span, const Tensor& k, const Tensor& v,
            const Documents& documents) {
  const SummaryCache::Pending pending = cache.extend(tape, k, v, documents);
  const Var k_means = compress(tape, Tape::constant(pending.k), {}, span, pending.documents);
  const Var v_means = compress(tape, Tape::constant(pending.v), {}, span, pending.documents);
  EXPECT_EQ(k_means.dim(0), static_cast<std::int64_t>(pending.positions.size()));
  for (const std::int32_t position : pending.positions) EXPECT_EQ(position % span.stride, 0);
  cache.append(pending, k_means.value, v_means.value);
}

TEST(SummaryCache, InPiecesIsTheWhole) {
  const std::int32_t T = 30;
  for (const KeySpan span : {KeySpan{1, 1}, KeySpan{6, 3}, KeySpan{8, 2}, KeySpan{5, 5}}) {
    SCOPED_TRACE(fmt::format("{} tokens every {}", span.length, span.stride));
    const Tensor k = normal({2 * T, H, D}, 1), v = normal({2 * T, H, D_V}, 2);
    Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
    SummaryCache cache(2, H, D, D_V, span, cpu_place(DType::f64));
    // Sequence 0 comes one by one after its first 7 tokens; sequence 1 at once, and waits.
    const Tensor first_k = Tensor::empty({7 + T, H, D}, DType::f64),
                 first_v = Tensor::empty({7 + T, H, D_V}, DType::f64);
    first_k.rows(0, 7).copy_from(k.rows(0, 7));
    first_k.rows(7, 7 + T).copy_from(k.rows(T, 2 * T));
    first_v.rows(0, 7).copy_from(v.rows(0, 7));
    first_v.rows(7, 7 + T).copy_from(v.rows(T, 2 * T));
    extend(tape, cache, span, first_k, first_v, *Documents::from_lengths(std::vector<std::int32_t>{7, T}));
    const SummaryCache other = cache;
    for (std::int32_t t = 7; t < T; ++t) {
      EXPECT_EQ(cache.summaries().length(0), span.count(t));
      const Documents one({0, 1, 1}, {t, T});
      extend(tape, cache, span, k.rows(t, t + 1), v.rows(t, t + 1), one);
    }
    EXPECT_EQ(other.summaries().length(0), span.count(7)) << "a copy stays where it was";
    const DocumentsPtr whole = Documents::from_lengths(std::vector<std::int32_t>{T, T});
    const Tensor k_means = compress(tape, Tape::constant(k), {}, span, whole).value;
    const Tensor v_means = compress(tape, Tape::constant(v), {}, span, whole).value;
    for (std::int64_t n = 0; n < 2; ++n) {
      ASSERT_EQ(cache.summaries().length(n), span.count(T));
      for (std::int64_t i = 0; i < span.count(T); ++i) {
        const std::int64_t row = n * span.count(T) + i;
        std::vector<double> expected(k_means.data<double>() + row * H * D, k_means.data<double>() + (row + 1) * H * D);
        expected.insert(expected.end(), v_means.data<double>() + row * H * D_V,
                        v_means.data<double>() + (row + 1) * H * D_V);
        EXPECT_EQ(summary(cache.summaries(), n, i), expected);
      }
    }
    EXPECT_EQ(static_cast<double>(cache.bytes()), 2.0 * SummaryCache::bytes_for(T, H, D, D_V, span, DType::f64));
  }
}

TEST(SummaryCache, RefusesTokensOutOfTurn) {
  Tape tape(heap_allocator(), Tape::Mode::inference);
  SummaryCache cache(1, H, D, D_V, {4, 2}, cpu_place(DType::f64));
  const Tensor k = normal({3, H, D}, 1), v = normal({3, H, D_V}, 2);
  EXPECT_THROW(cache.extend(tape, k, v, *Documents::single(3, 1)), Error);
  EXPECT_THROW(cache.extend(tape, k, v, *Documents::single(2)), Error);
}

}  // namespace
}  // namespace weft::testing::block_sparse
