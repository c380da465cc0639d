// The mapping of probabilities to blocks, the rule on scores made by hand, and choices against plain loops.
#include "modules/families/block_sparse/block_choice.h"

#include <cmath>
#include <fmt/format.h>
#include <omp.h>

#include "autograd/transfer.h"
#include "modules/families/block_sparse/block_choice_cpu.h"
#include "tests/support/compare.h"
#include "tests/support/gpu.h"
#include "tests/support/random.h"

namespace weft::testing::block_sparse {
namespace {

// Three ways to write the weight of summary i in block j: the double sum of the paper, the strides that both cover, and
// the convolution of two boxes.
TEST(BlockMapping, FormulaIsOverlapIsConvolution) {
  struct Triple {
    std::int64_t l, delta, block;
  };
  for (const auto& [l, delta, block] : {Triple{32, 16, 64}, Triple{16, 16, 16}, Triple{32, 8, 64}, Triple{64, 16, 64},
                                        Triple{8, 4, 4}, Triple{12, 3, 24}}) {
    const std::int64_t per_block = block / delta, strides = l / delta, count = 40;
    for (std::int64_t j = 0; j < 5; ++j) {
      std::vector<std::int64_t> formula(count, 0);
      for (std::int64_t m = 0; m < per_block; ++m) {
        for (std::int64_t r = 0; r < strides; ++r) {
          const std::int64_t i = j * per_block + m - r;
          if (i >= 0 && i < count) ++formula[static_cast<std::size_t>(i)];
        }
      }
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t overlap =
            std::max<std::int64_t>(0, std::min(i * delta + l, (j + 1) * block) - std::max(i * delta, j * block));
        std::int64_t convolution = 0;
        for (std::int64_t u = 0; u < per_block; ++u) {
          const std::int64_t v = j * per_block + u - i;
          convolution += v >= 0 && v < strides ? 1 : 0;
        }
        EXPECT_EQ(formula[static_cast<std::size_t>(i)] * delta, overlap);
        EXPECT_EQ(formula[static_cast<std::size_t>(i)], convolution);
      }
    }
  }
}

std::vector<std::int32_t> take(const std::vector<double>& score, const BlockRule& rule) {
  std::vector<std::int32_t> best(static_cast<std::size_t>(rule.selected)), idx(static_cast<std::size_t>(rule.slots()));
  take_blocks(score.data(), static_cast<std::int64_t>(score.size()) - 1, rule, best.data(), idx.data());
  return idx;
}

TEST(BlockRule, OnScoresMadeByHand) {
  using List = std::vector<std::int32_t>;
  const BlockRule rule{.block = 8, .selected = 4, .first = 1, .local = 2};
  // One free place: the best of 1 ... 4, whatever forced blocks score.
  EXPECT_EQ(take({9, 1, 3, 2, 0, 0, 0}, rule), (List{0, 2, 5, 6}));
  EXPECT_EQ(take({0, 1, 3, 3, 3, 9, 9}, rule), (List{0, 2, 5, 6})) << "ties go to the smaller index";
  EXPECT_EQ(take({0, 0, 0, 0, 0, 0, 0}, rule), (List{0, 1, 5, 6})) << "also those of nothing";
  const BlockRule wide{.block = 8, .selected = 6, .first = 0, .local = 1};
  EXPECT_EQ(take({1, 5, 2, 4, 3, 5, 0, 0}, wide), (List{1, 2, 3, 4, 5, 7}));
  EXPECT_EQ(take({1, 5, 2}, wide), (List{0, 1, 2, -1, -1, -1})) << "fewer candidates";
  EXPECT_EQ(take({7}, rule), (List{0, -1, -1, -1})) << "first and local are the same block";
  const BlockRule full{.block = 8, .selected = 3, .first = 1, .local = 2};
  EXPECT_EQ(take({0, 9, 9, 9, 0, 0}, full), (List{0, 4, 5})) << "forced blocks leave no room";
  const BlockRule dense{.block = 8, .selected = 2, .first = 0, .local = 1, .dense = 33};
  EXPECT_EQ(dense.slots(), 5);
  EXPECT_EQ(take({0, 1, 0, 0, 0, 0, 0}, dense), (List{1, 6, -1, -1, -1}));
}

struct Case {
  BlockRule rule;
  KeySpan span;
  BlockScore score;
  std::int64_t H_KV, G;
  std::int64_t D = 6;
};

// For one query: scores by the definitions.
std::vector<double> naive_scores(const Case& c, const Tensor& q, const Tensor& k, std::int64_t first_key,
                                 std::int64_t row, std::int64_t position, std::int64_t list) {
  const std::int64_t H_Q = c.H_KV * c.G, own = position / c.rule.block;
  std::vector<double> score(static_cast<std::size_t>(own + 1), 0.0);
  const std::int64_t visible = c.span.count(position + 1);
  const std::int64_t heads = c.score == BlockScore::logit ? 1 : c.G;
  std::vector<double> total(static_cast<std::size_t>(visible), 0.0);
  for (std::int64_t g = 0; g < heads; ++g) {
    const std::int64_t h = list * heads + g;
    std::vector<double> logit;
    double mass = 0.0;
    for (std::int64_t i = 0; i < visible; ++i) {
      double dot = 0.0;
      for (std::int64_t x = 0; x < c.D; ++x) {
        dot += q.data<double>()[(row * H_Q + h) * c.D + x] *
               k.data<double>()[((first_key + i) * c.H_KV + h / c.G) * c.D + x];
      }
      logit.push_back(dot / std::sqrt(static_cast<double>(c.D)));
      mass += std::exp(logit.back());
    }
    for (std::int64_t i = 0; i < visible; ++i) {
      const auto at = static_cast<std::size_t>(i);
      total[at] += c.score == BlockScore::logit ? logit[at] : std::exp(logit[at]) / mass;
    }
  }
  for (std::int64_t j = 0; j <= own; ++j) {
    for (std::int64_t i = 0; i < visible; ++i) {
      const std::int64_t overlap = std::min(i * c.span.stride + c.span.length, (j + 1) * c.rule.block) -
                                   std::max(i * c.span.stride, j * c.rule.block);
      if (overlap <= 0) continue;
      double& s = score[static_cast<std::size_t>(j)];
      const double p = total[static_cast<std::size_t>(i)];
      if (c.score == BlockScore::overlap_sum) s += p * static_cast<double>(overlap / c.span.stride);
      if (c.score == BlockScore::overlap_max) s = std::max(s, p);
      if (c.score == BlockScore::logit) s = p;
    }
  }
  return score;
}

// Then a stable sort.
std::vector<std::int32_t> naive(const Case& c, const std::vector<double>& score, std::int64_t position) {
  const std::int64_t own = position / c.rule.block;
  std::vector<std::int32_t> order;
  for (std::int64_t j = 0; j <= own; ++j) order.push_back(static_cast<std::int32_t>(j));
  const auto forced = [&](std::int32_t j) { return j < c.rule.first || j > own - c.rule.local; };
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    if (forced(a) != forced(b)) return forced(a);
    return !forced(a) && score[static_cast<std::size_t>(a)] > score[static_cast<std::size_t>(b)];
  });
  const std::int64_t most = position < c.rule.dense ? c.rule.slots() : c.rule.selected;
  if (static_cast<std::int64_t>(order.size()) > most) order.resize(static_cast<std::size_t>(most));
  std::sort(order.begin(), order.end());
  order.resize(static_cast<std::size_t>(c.rule.slots()), -1);
  return order;
}

const std::vector<Case> kCases = {
    {{.block = 8, .selected = 4, .first = 1, .local = 2}, {8, 4}, BlockScore::overlap_sum, 2, 2},
    {{.block = 16, .selected = 3, .first = 0, .local = 1}, {8, 2}, BlockScore::overlap_sum, 1, 5},
    {{.block = 4, .selected = 9, .first = 2, .local = 3}, {8, 4}, BlockScore::overlap_sum, 1, 1},
    {{.block = 8, .selected = 5, .first = 1, .local = 2, .dense = 50}, {8, 4}, BlockScore::overlap_max, 2, 3},
    {{.block = 10, .selected = 3, .first = 0, .local = 1}, {10, 10}, BlockScore::logit, 2, 2}};

Tensor choice(const Case& c, const Tensor& q, const Tensor& k, const Documents& documents, DType dtype) {
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  return choose_blocks(tape, cast(q, dtype), cast(k, dtype), {}, c.rule, c.span, c.score, documents);
}

TEST(BlockChoice, IsThatOfPlainLoops) {
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{300, 0, 1, 7, 8, 9, 140});
  for (std::size_t i = 0; i < kCases.size(); ++i) {
    const Case& c = kCases[i];
    const std::vector<std::int32_t> rows = key_rows(*documents, c.span);
    const Tensor q = normal({documents->tokens(), c.H_KV * c.G, c.D}, 1), k = normal({rows.back(), c.H_KV, c.D}, 2);
    const Tensor idx = choice(c, q, k, *documents, DType::f64);
    const std::int64_t lists = c.score == BlockScore::logit ? c.H_KV * c.G : c.H_KV;
    ASSERT_EQ(idx.shape(), Shape({documents->tokens(), lists, c.rule.slots()}));
    for (std::int64_t n = 0; n < documents->count(); ++n) {
      for (std::int64_t t = documents->begin(n); t < documents->end(n); ++t) {
        for (std::int64_t list = 0; list < lists; ++list) {
          const std::int32_t* chosen = idx.data<std::int32_t>() + (t * lists + list) * c.rule.slots();
          ASSERT_EQ(std::vector<std::int32_t>(chosen, chosen + c.rule.slots()),
                    naive(c, naive_scores(c, q, k, rows[static_cast<std::size_t>(n)], t, t - documents->begin(n), list),
                          t - documents->begin(n)))
              << "case " << i << ", document " << n << ", position " << t - documents->begin(n);
        }
      }
    }
  }
}

// Neither threads, nor documents beside, nor later tokens, nor whose denominators they are.
TEST(BlockChoice, DependsOnNothingElse) {
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{150, 230});
  for (const Case& c : kCases) {
    const std::vector<std::int32_t> rows = key_rows(*documents, c.span);
    const Tensor q = normal({documents->tokens(), c.H_KV * c.G, c.D}, 1), k = normal({rows.back(), c.H_KV, c.D}, 2);
    const Tensor idx = choice(c, q, k, *documents, DType::f32);
    const int threads = omp_get_max_threads();
    omp_set_num_threads(threads == 1 ? 3 : 1);
    EXPECT_TRUE(bitwise_equal(choice(c, q, k, *documents, DType::f32), idx));
    omp_set_num_threads(threads);
    const std::int32_t some = 117;
    const Tensor alone = choice(c, q.rows(150, 150 + some), k.rows(rows[1], rows[1] + c.span.count(some)),
                                *Documents::single(some), DType::f32);
    EXPECT_TRUE(bitwise_equal(alone, idx.rows(150, 150 + some)));
  }
}

Tensor choice_on_gpu(const Case& c, const Tensor& q, const Tensor& k, const Tensor& lse, const Documents& documents,
                     DType dtype) {
  Tape tape(gpu_memory(), Tape::Mode::inference, gpu_stream());
  const Tensor statistics = lse.defined() ? tape.here(cast(lse, DType::f32)) : Tensor{};
  const Tensor idx = choose_blocks(tape, tape.here(cast(q, dtype)), tape.here(cast(k, dtype)), statistics, c.rule,
                                   c.span, c.score, documents);
  return to_host(idx, tape.stream()).clone();
}

// Forced blocks and the best others, ascending, as many as there is room for. Scores in fp64 decide; where rounding may
// have swapped two blocks, their scores are almost the same. Returns whether it is the choice of plain loops.
bool expect_good_choice(const Case& c, const std::vector<double>& score, const std::vector<std::int32_t>& expected,
                        const std::int32_t* idx, std::int64_t slots) {
  std::vector<bool> taken(score.size(), false);
  std::int64_t count = 0;
  for (; count < slots && idx[count] >= 0; ++count) {
    EXPECT_TRUE(idx[count] < static_cast<std::int64_t>(score.size()) && (count == 0 || idx[count] > idx[count - 1]));
    if (::testing::Test::HasFailure()) return false;
    taken[static_cast<std::size_t>(idx[count])] = true;
  }
  for (std::int64_t i = count; i < slots; ++i) EXPECT_EQ(idx[i], -1);
  std::vector<std::int32_t> list(idx, idx + slots);
  list.resize(expected.size(), -1);
  if (list == expected) return true;
  const auto own = static_cast<std::int64_t>(score.size()) - 1;
  double least = std::numeric_limits<double>::infinity(), most = -least, largest = 0.0;
  std::int64_t others = 0;
  for (std::int64_t j = 0; j <= own; ++j) {
    const auto i = static_cast<std::size_t>(j);
    largest = std::max(largest, std::abs(score[i]));
    const bool wanted = std::find(expected.begin(), expected.end(), static_cast<std::int32_t>(j)) != expected.end();
    if (wanted == taken[i]) continue;
    EXPECT_FALSE(j < c.rule.first || j > own - c.rule.local) << "forced block " << j;
    others += taken[i] ? 1 : -1;
    (taken[i] ? least : most) = taken[i] ? std::min(least, score[i]) : std::max(most, score[i]);
  }
  EXPECT_EQ(others, 0);
  EXPECT_GE(least, most - 1e-5 * largest);
  return false;
}

TEST(BlockChoiceGpu, IsThatOfPlainLoops) {
  WEFT_NEEDS_GPU();
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{300, 0, 1, 7, 8, 9, 140});
  std::vector<Case> cases = kCases;
  for (Case c : kCases) {  // widths of the tensor cores, and groups of more heads than a fragment has rows
    c.D = 64;
    cases.push_back(c);
    if (c.H_KV == 1) c.G = 20;
    c.D = 128;
    cases.push_back(c);
    c.G = 16;
    cases.push_back(c);
  }
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Case& c = cases[i];
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(fmt::format("case {} {}", i, name_of(dtype)));
      const std::vector<std::int32_t> rows = key_rows(*documents, c.span);
      const auto round = [&](const Tensor& t) { return cast(cast(t, dtype), DType::f64); };
      const Tensor q = round(normal({documents->tokens(), c.H_KV * c.G, c.D}, 1));
      const Tensor k = round(normal({rows.back(), c.H_KV, c.D}, 2));
      const Tensor idx = choice_on_gpu(c, q, k, {}, *documents, dtype);
      EXPECT_TRUE(bitwise_equal(choice_on_gpu(c, q, k, {}, *documents, dtype), idx));
      const std::int64_t lists = c.score == BlockScore::logit ? c.H_KV * c.G : c.H_KV, slots = idx.dim(2);
      std::int64_t others = 0;
      for (std::int64_t n = 0; n < documents->count(); ++n) {
        const std::int32_t first_key = rows[static_cast<std::size_t>(n)];
        for (std::int64_t t = documents->begin(n); t < documents->end(n); ++t) {
          const std::int64_t position = t - documents->begin(n);
          for (std::int64_t list = 0; list < lists; ++list) {
            SCOPED_TRACE(fmt::format("document {} position {} list {}", n, position, list));
            const std::vector<double> score = naive_scores(c, q, k, first_key, t, position, list);
            const bool same = expect_good_choice(c, score, naive(c, score, position),
                                                 idx.data<std::int32_t>() + (t * lists + list) * slots, slots);
            if (HasFailure()) return;
            others += same ? 0 : 1;
          }
        }
      }
      EXPECT_LE(others, documents->tokens() * lists / 100) << "choices that rounding decided";
      if (c.score == BlockScore::logit) continue;
      // Denominators may come from attention to the summaries.
      Tape tape(gpu_memory(), Tape::Mode::inference, gpu_stream());
      const Var keys = Tape::constant(tape.here(cast(k, dtype)));
      const AttentionWithStatistics attention = span_attention(tape, Tape::constant(tape.here(cast(q, dtype))), keys,
                                                               keys, c.span, std::make_shared<Documents>(*documents));
      const Tensor lse = to_host(attention.lse, tape.stream());
      const Tensor other = choice_on_gpu(c, q, k, lse, *documents, dtype);
      std::int64_t different = 0;
      for (std::int64_t x = 0; x < idx.numel(); ++x) {
        different += other.data<std::int32_t>()[x] != idx.data<std::int32_t>()[x] ? 1 : 0;
      }
      EXPECT_LE(different, idx.numel() / 100);
    }
  }
}

// Rows that take more than one slab of scores, against documents alone that take one.
TEST(BlockChoiceGpu, DoesNotDependOnSlabsOrNeighbours) {
  WEFT_NEEDS_GPU();
  const std::int32_t L = 3000;
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{L, L});
  const Case c{{.block = 4, .selected = 9, .first = 1, .local = 2}, {8, 4}, BlockScore::overlap_sum, 4, 16, 64};
  const std::int64_t S = c.span.count(L);
  const Tensor q = normal({2 * L, 64, c.D}, 1), k = normal({2 * S, c.H_KV, c.D}, 2);
  const Tensor idx = choice_on_gpu(c, q, k, {}, *documents, DType::bf16);
  for (std::int64_t n = 0; n < 2; ++n) {
    const Tensor alone = choice_on_gpu(c, q.rows(n * L, (n + 1) * L), k.rows(n * S, (n + 1) * S), {},
                                       *Documents::single(L), DType::bf16);
    EXPECT_TRUE(bitwise_equal(alone, idx.rows(n * L, (n + 1) * L)));
  }
}

// Scores that are equal, negative, zero of either sign: as on the CPU.
TEST(BlockChoiceGpu, TiesGoToTheSmallerIndex) {
  WEFT_NEEDS_GPU();
  const std::int64_t T = 400;
  const DocumentsPtr documents = Documents::single(T);
  const Tensor q = Tensor::empty({T, 1, 1}, DType::f64), k = Tensor::empty({T / 2, 1, 1}, DType::f64);
  for (double& x : q.span<double>()) x = 1.0;
  const Tensor draws = uniform({T / 2, 1}, 5, -2.5, 2.5);
  for (std::int64_t j = 0; j < T / 2; ++j) {
    k.data<double>()[j] = std::round(draws.data<double>()[j]);
    if (k.data<double>()[j] == 0.0 && j % 2 == 0) k.data<double>()[j] = -0.0;
  }
  for (const std::int64_t selected : {2, 5, 33, 70}) {
    const Case c{{.block = 2, .selected = selected, .first = 1, .local = 1}, {2, 2}, BlockScore::logit, 1, 1, 1};
    EXPECT_TRUE(
        bitwise_equal(choice_on_gpu(c, q, k, {}, *documents, DType::f32), choice(c, q, k, *documents, DType::f32)));
  }
}

// A rule that names more blocks than there are ("always dense") takes no memory for them.
TEST(BlockChoice, HasNoSlotsForBlocksThatAreNotThere) {
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{33, 0, 7});
  const Tensor q = normal({40, 2, 4}, 1), k = normal({7, 1, 4}, 2);
  const BlockRule sparse{.block = 8, .selected = 3, .first = 1, .local = 2};
  BlockRule dense = sparse, wide = sparse;
  dense.dense = std::int64_t{1} << 40;
  wide.selected = std::int64_t{1} << 40;
  for (const BlockRule& rule : {dense, wide}) {
    Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
    const Tensor idx = choose_blocks(tape, q, k, {}, rule, {8, 4}, BlockScore::overlap_sum, *documents);
    ASSERT_EQ(idx.shape(), Shape({40, 1, 5}));
    for (std::int64_t t = 0; t < 40; ++t) {
      const std::int32_t own = documents->positions()[static_cast<std::size_t>(t)] / 8;
      for (std::int32_t j = 0; j < 5; ++j) EXPECT_EQ(idx.data<std::int32_t>()[t * 5 + j], j <= own ? j : -1);
    }
  }
  EXPECT_EQ(sparse.within(1000).slots(), 3);
  EXPECT_EQ(sparse.within(0).slots(), 1);
}

TEST(BlockChoice, RefusesWhatDoesNotFit) {
  const DocumentsPtr documents = Documents::single(40);
  Tape tape(heap_allocator());
  const Tensor q = normal({40, 2, 4}, 1), k = normal({9, 1, 4}, 2);
  const BlockRule rule{.block = 8, .selected = 3, .first = 1, .local = 2};
  EXPECT_NO_THROW(choose_blocks(tape, q, k, {}, rule, {8, 4}, BlockScore::overlap_sum, *documents));
  EXPECT_THROW(choose_blocks(tape, q, k, {}, rule, {8, 8}, BlockScore::overlap_sum, *documents), Error) << "rows";
  EXPECT_THROW(choose_blocks(tape, q, k, {}, rule, {8, 4}, BlockScore::logit, *documents), Error);
  EXPECT_THROW(choose_blocks(tape, q, k, normal({40, 1}, 3), rule, {8, 4}, BlockScore::overlap_sum, *documents), Error);
  BlockRule tight = rule;
  tight.selected = 2;
  EXPECT_THROW(choose_blocks(tape, q, k, {}, tight, {8, 4}, BlockScore::overlap_sum, *documents), Error);
}

}  // namespace
}  // namespace weft::testing::block_sparse
