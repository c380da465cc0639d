// The oracle against finite differences, the kernels against the oracle, and what must not change a bit.
#include <fmt/format.h>
#include <omp.h>

#include "modules/families/attention/attention.h"
#include "modules/families/attention/key_value_cache.h"
#include "modules/families/block_sparse/block_sparse_case.h"
#include "tests/support/derivative.h"
#include "tests/support/op_check.h"

namespace weft::testing::block_sparse {
namespace {

DocumentsPtr documents_of(const std::vector<std::int32_t>& lengths) {
  return Documents::from_lengths(lengths);
}

const std::vector<std::int32_t> kLengths = {0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129};

TEST(BlockSparseReference, BackwardIsTheDerivative) {
  const std::vector<BlockSparseCase> cases = {
      {.documents = documents_of({13}), .block = 4, .n = 2, .D = 4, .D_V = 3},
      {.documents = documents_of({5, 0, 1, 9}), .block = 2, .n = 3, .H_sel = 4, .H_KV = 2, .G = 2, .D = 3, .D_V = 4},
      {.documents = documents_of({9, 4}), .block = 1, .n = 4, .H_sel = 2, .H_KV = 2, .G = 2, .D = 3, .D_V = 2},
      {.documents = documents_of({11, 3}), .n = 0, .span = {4, 2}, .H_KV = 1, .G = 3, .D = 4, .D_V = 3}};
  for (const BlockSparseCase& c : cases) {
    const BlockSparseTensors in = random_tensors(c);
    const BlockSparseOutputs r = run_reference(c, in);
    const auto loss = [&] {
      const BlockSparseResult result = block_sparse_reference(problem(c, in));
      double total = 0.0;
      for (std::size_t i = 0; i < result.o.size(); ++i) total += result.o[i] * in.d_o.data<double>()[i];
      return total;
    };
    expect_derivative(in.q, r.dq, loss, "dq");
    expect_derivative(in.k, r.dk, loss, "dk");
    expect_derivative(in.v, r.dv, loss, "dv");
  }
}

OP_TEST(BlockSparseAttention, IsAWellBehavedOperation) {
  for (const BlockSparseCase& c :
       {BlockSparseCase{.documents = documents_of({40, 3}), .block = 8, .n = 3, .G = 2, .D = 5, .D_V = 3},
        BlockSparseCase{.documents = documents_of({30}), .n = 0, .span = {4, 2}, .G = 2, .D = 4, .D_V = 6},
        BlockSparseCase{.documents = documents_of({20, 3}), .block = 4, .n = 3, .G = 3, .D = 64, .D_V = 64},
        BlockSparseCase{.documents = documents_of({20, 3}), .n = 0, .span = {4, 2}, .G = 2, .D = 64, .D_V = 64}}) {
    const BlockSparseTensors in = random_tensors(c);
    check_op({.name = c.n == 0 ? "span attention" : "block-sparse attention",
              .inputs = {in.q, in.k, in.v},
              .function = [&](Tape& tape, std::span<const Var> x) {
                const Tensor idx = in.idx.defined() ? tape.here(in.idx) : Tensor{};
                return std::vector{apply(c, idx, tape, x[0], x[1], x[2]).o};
              }});
  }
}

BLOCK_SPARSE_TEST(BlockSparseAttention, EveryLengthAlone) {
  for (const std::int32_t length : kLengths) {
    for (const std::int64_t block : {16, 64}) {
      SCOPED_TRACE(fmt::format("length {} block {}", length, block));
      expect_matches_reference({.documents = documents_of({length}),
                                .block = block,
                                .n = 3,
                                .H_sel = 2,
                                .H_KV = 2,
                                .G = 2,
                                .D = 16,
                                .D_V = 24});
    }
  }
}

BLOCK_SPARSE_TEST(BlockSparseAttention, GroupsAndSelectionHeads) {
  for (const std::int64_t G : {1, 3, 4, 16}) {
    for (const std::int64_t H_sel : {std::int64_t{1}, std::int64_t{2}, 2 * G}) {
      SCOPED_TRACE(fmt::format("G {} H_sel {}", G, H_sel));
      expect_matches_reference({.documents = documents_of({70, 0, 129, 1}),
                                .block = 16,
                                .n = 4,
                                .H_sel = H_sel,
                                .H_KV = 2,
                                .G = G,
                                .D = 8,
                                .D_V = 12});
    }
  }
  // More heads to one entry than a tile has rows.
  expect_matches_reference({.documents = documents_of({20}), .block = 4, .n = 2, .G = 100, .D = 4, .D_V = 4});
}

BLOCK_SPARSE_TEST(BlockSparseAttention, BlocksOfAnySize) {
  for (const std::int64_t block : {1, 7, 33, 100, 300}) {
    SCOPED_TRACE(fmt::format("block {}", block));
    expect_matches_reference({.documents = documents_of({350, 17}), .block = block, .n = 3, .G = 2, .D = 7, .D_V = 5});
  }
}

BLOCK_SPARSE_TEST(BlockSparseAttention, KeysThatStandForSpans) {
  for (const KeySpan span : {KeySpan{1, 1}, KeySpan{4, 2}, KeySpan{8, 8}, KeySpan{3, 1}}) {
    SCOPED_TRACE(fmt::format("span {} every {}", span.length, span.stride));
    expect_matches_reference(
        {.documents = documents_of({1, 2, 3, 4, 5, 0, 7, 8, 9, 600}), .n = 0, .span = span, .G = 2, .D = 8, .D_V = 12});
  }
}

BLOCK_SPARSE_TEST(BlockSparseAttention, PackedAndLong) {
  expect_matches_reference({.documents = documents_of(kLengths), .block = 16, .n = 3, .G = 2});
  expect_matches_reference({.documents = documents_of({1000}), .block = 64, .n = 5, .G = 4, .D = 16, .D_V = 16});
}

// Wide heads and many slots: the partial results of a hundred queries fill a slab.
TEST(BlockSparseAttention, SlabsOfQueries) {
  const BlockSparseCase c{.documents = documents_of({200, 1, 100}),
                          .block = 16,
                          .n = 64,
                          .H_sel = 2,
                          .H_KV = 2,
                          .G = 4,
                          .D = 128,
                          .D_V = 128};
  const BlockSparseTensors in = random_tensors(c);
  expect_near(run_tiled(c, in, DType::f64), run_reference(c, in), kFp64Chunked);
}

// All blocks selected: causal attention.
TEST(BlockSparseAttention, OfEverythingIsFullAttention) {
  const BlockSparseCase c{.documents = documents_of({150, 31}), .block = 16, .n = 10, .G = 2, .D = 16, .D_V = 16};
  BlockSparseTensors in = random_tensors(c);
  for (std::int64_t t = 0; t < c.documents->tokens(); ++t) {
    const std::int32_t own = c.documents->positions()[static_cast<std::size_t>(t)] / 16;
    for (std::int32_t j = 0; j < 10; ++j) in.idx.data<std::int32_t>()[t * 10 + j] = j <= own ? j : -1;
  }
  Tape tape(heap_allocator());
  const auto full =
      attention_with_lse(tape, Tape::constant(in.q), Tape::constant(in.k), Tape::constant(in.v), {}, c.documents);
  const BlockSparseOutputs sparse = run_tiled(c, in, DType::f64);
  EXPECT_TRUE(close(sparse.o, full[0].value, 1e-13, 1e-12));
  EXPECT_TRUE(close(sparse.lse, full[1].value, 1e-13, 1e-12));
}

TEST(BlockSparseAttention, SameBitsForAnyThreadsAndNeighbours) {
  const BlockSparseCase c{.documents = documents_of({200, 90, 140}), .block = 16, .n = 4, .G = 2, .D = 16, .D_V = 8};
  const BlockSparseTensors in = random_tensors(c);
  const BlockSparseOutputs packed = run_tiled(c, in, DType::f32);
  const int threads = omp_get_max_threads();
  for (const int count : {1, 3}) {
    omp_set_num_threads(count);
    expect_equal_bits(run_tiled(c, in, DType::f32), packed);
  }
  omp_set_num_threads(threads);
  for (std::int64_t n = 0; n < 3; ++n) {
    const std::int64_t begin = c.documents->begin(n), end = c.documents->end(n);
    BlockSparseCase alone = c;
    alone.documents = Documents::single(end - begin);
    const auto rows = [&](const Tensor& t) { return t.rows(begin, end); };
    expect_equal_bits(run_tiled(alone, {rows(in.q), rows(in.k), rows(in.v), rows(in.idx), rows(in.d_o)}, DType::f32),
                      {rows(packed.o), rows(packed.lse), rows(packed.dq), rows(packed.dk), rows(packed.dv)});
  }
}

// Lists that are cut into pieces, whose sums are added up.
TEST(BlockSparseAttentionGpu, BlocksThatManyChose) {
  WEFT_NEEDS_GPU();
  for (const std::int64_t n : {2, 0}) {
    const BlockSparseCase c{.documents = documents_of({2300, 100}),
                            .block = 16,
                            .n = n,
                            .span = n == 0 ? KeySpan{512, 256} : KeySpan{},
                            .H_KV = 1,
                            .G = 16,
                            .D = 64,
                            .D_V = 64};
    BlockSparseTensors in = rounded(random_tensors(c), DType::bf16);
    for (std::int64_t t = 0; n > 0 && t < c.documents->tokens(); ++t) {
      const std::int32_t own = c.documents->positions()[static_cast<std::size_t>(t)] / 16;
      in.idx.data<std::int32_t>()[t * n] = 0;
      in.idx.data<std::int32_t>()[t * n + 1] = own == 0 ? -1 : own;
    }
    const BlockSparseOutputs reference = run_reference(c, in);
    expect_near(run_on_gpu(c, in, DType::bf16), reference, kBf16);
    expect_near(run_on_gpu(c, in, DType::f32), reference, kFp32);
  }
}

// Neither documents beside nor later tokens change a bit, and no gradient reaches what nobody saw.
TEST(BlockSparseAttentionGpu, SameBitsForAnyNeighboursAndFutures) {
  WEFT_NEEDS_GPU();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t n : {4, 0}) {
      SCOPED_TRACE(fmt::format("{} n {}", name_of(dtype), n));
      const BlockSparseCase c{
          .documents = documents_of({200, 90, 140}), .block = 16, .n = n, .G = 2, .D = 64, .D_V = 64};
      BlockSparseTensors in = rounded(random_tensors(c), dtype);
      const BlockSparseOutputs packed = run_on_gpu(c, in, dtype);
      for (std::int64_t d = 0; d < 3; ++d) {
        const std::int64_t begin = c.documents->begin(d), end = c.documents->end(d);
        BlockSparseCase alone = c;
        alone.documents = Documents::single(end - begin);
        const auto rows = [&](const Tensor& t) { return t.defined() ? t.rows(begin, end) : t; };
        expect_equal_bits(run_on_gpu(alone, {rows(in.q), rows(in.k), rows(in.v), rows(in.idx), rows(in.d_o)}, dtype),
                          {rows(packed.o), rows(packed.lse), rows(packed.dq), rows(packed.dk), rows(packed.dv)});
      }
      // The last document changes from its 70th token on, where no loss comes from.
      const std::int64_t from = c.documents->begin(2) + 70, T = c.documents->tokens();
      const auto zero = [&](const Tensor& t) {
        for (double& x : t.rows(from, T).span<double>()) x = 0.0;
      };
      zero(in.d_o);
      const BlockSparseOutputs before = run_on_gpu(c, in, dtype);
      for (const Tensor& t : {in.q, in.k, in.v}) {
        for (double& x : t.rows(from, T).span<double>()) x = -x;
      }
      const BlockSparseOutputs after = run_on_gpu(c, in, dtype);
      EXPECT_TRUE(bitwise_equal(after.o.rows(0, from), before.o.rows(0, from)));
      for (const auto& [x, y] : {std::pair{after.dq, before.dq}, {after.dk, before.dk}, {after.dv, before.dv}}) {
        EXPECT_TRUE(bitwise_equal(x.rows(0, from), y.rows(0, from)));
        const Tensor rest = cast(x.rows(from, T), DType::f64);
        for (const double g : rest.span<double>()) ASSERT_EQ(g, 0.0);
      }
    }
  }
}

TEST(BlockSparseAttention, FromACacheInAnyPieces) {
  const BlockSparseCase c{
      .documents = documents_of({150}), .block = 24, .n = 3, .H_sel = 2, .H_KV = 2, .G = 2, .D = 6, .D_V = 10};
  const BlockSparseTensors in = random_tensors(c);
  const BlockSparseOutputs whole = run_tiled(c, in, DType::f64);
  KeyValueCache cache(1, 2, 6, 10, {}, cpu_place(DType::f64));
  Tape tape(heap_allocator(Hygiene::hostile), Tape::Mode::inference);
  std::int32_t begin = 0;
  for (const std::int32_t end : {1, 2, 70, 71, 150}) {
    cache.append(0, in.k.rows(begin, end), in.v.rows(begin, end));
    const CachedAttention r =
        block_sparse_attention_cached(tape, in.q.rows(begin, end), cache, 2, 10, in.idx.rows(begin, end), c.block,
                                      *Documents::single(end - begin, begin));
    EXPECT_TRUE(bitwise_equal(r.o, whole.o.rows(begin, end)));
    EXPECT_TRUE(bitwise_equal(r.lse, whole.lse.rows(begin, end)));
    begin = end;
  }
}

TEST(BlockSparseAttention, RefusesWhatDoesNotFit) {
  Tape tape(heap_allocator());
  const auto var = [&](const Shape& s) { return tape.leaf(normal(s, 1)); };
  const DocumentsPtr documents = documents_of({4});
  const auto idx = [](const Shape& shape, std::int32_t value) {
    return Tensor::from(shape, std::vector<std::int32_t>(static_cast<std::size_t>(shape.numel()), value));
  };
  const Var q = var({4, 4, 8}), k = var({4, 2, 8});
  EXPECT_NO_THROW(block_sparse_attention(tape, q, k, k, idx({4, 2, 1}, 0), 4, documents));
  EXPECT_THROW(block_sparse_attention(tape, q, k, k, idx({4, 3, 1}, 0), 4, documents), Error);
  EXPECT_THROW(block_sparse_attention(tape, q, k, k, idx({3, 2, 1}, 0), 4, documents), Error);
  EXPECT_THROW(block_sparse_attention(tape, q, k, k, {}, 4, documents), Error);
  EXPECT_THROW(block_sparse_attention(tape, q, k, k, idx({4, 2, 1}, 1), 4, documents), Error) << "a future block";
  EXPECT_THROW(block_sparse_attention(tape, q, var({5, 2, 8}), var({5, 2, 8}), idx({4, 2, 1}, 0), 4, documents), Error);
  EXPECT_THROW(span_attention(tape, q, k, k, {2, 1}, documents), Error) << "3 keys, not 4";
}

}  // namespace
}  // namespace weft::testing::block_sparse
