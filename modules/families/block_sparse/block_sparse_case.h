// For the tests of this folder: one problem with random inputs and a random selection, through the oracle, or through
// the tape in hostile memory.
#pragma once

#include "autograd/philox.h"
#include "modules/families/block_sparse/block_sparse_reference.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft::testing::block_sparse {

struct BlockSparseCase {
  DocumentsPtr documents;
  std::int64_t block = 16;
  std::int64_t n = 3;      // slots; 0 = every block
  std::int64_t H_sel = 1;  // 1, H_KV or H_KV G
  KeySpan span{};          // other than tokens only with n = 0
  std::int64_t H_KV = 1, G = 1, D = 8, D_V = 8;
  std::uint64_t seed = 1;

  BlockSparseShape shape() const {
    return {.T = documents->tokens(),
            .S = key_rows(*documents, span).back(),
            .H_Q = H_KV * G,
            .H_KV = H_KV,
            .D = D,
            .D_V = D_V,
            .H_sel = n == 0 ? 0 : H_sel,
            .n = n};
  }
};

struct BlockSparseTensors {
  Tensor q, k, v, idx, d_o;
};
struct BlockSparseOutputs {
  Tensor o, lse, dq, dk, dv;
};

// The query's own block and others at random.
inline Tensor random_selection(const BlockSparseCase& c) {
  const Tensor idx = Tensor::empty({c.documents->tokens(), c.H_sel, c.n}, DType::i32);
  const Tensor draws = uniform({idx.numel(), 1}, c.seed + 9, 0.0, 1.0);
  for (std::int64_t n = 0; n < c.documents->count(); ++n) {
    for (std::int64_t t = c.documents->begin(n); t < c.documents->end(n); ++t) {
      for (std::int64_t h = 0; h < c.H_sel; ++h) {
        const std::int64_t row = (t * c.H_sel + h) * c.n;
        const auto own = static_cast<std::int32_t>((t - c.documents->begin(n)) / c.block);
        std::vector<std::int32_t> chosen{own};
        for (std::int64_t slot = 1; slot < c.n; ++slot) {
          chosen.push_back(static_cast<std::int32_t>(draws.data<double>()[row + slot] * own));
        }
        std::sort(chosen.begin(), chosen.end());
        chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
        chosen.resize(static_cast<std::size_t>(c.n), -1);
        std::copy(chosen.begin(), chosen.end(), idx.data<std::int32_t>() + row);
      }
    }
  }
  return idx;
}

inline BlockSparseTensors random_tensors(const BlockSparseCase& c) {
  const BlockSparseShape s = c.shape();
  return {.q = normal({s.T, s.H_Q, s.D}, c.seed),
          .k = normal({s.S, s.H_KV, s.D}, c.seed + 1),
          .v = normal({s.S, s.H_KV, s.D_V}, c.seed + 2),
          .idx = c.n == 0 ? Tensor{} : random_selection(c),
          .d_o = normal({s.T, s.H_Q, s.D_V}, c.seed + 3)};
}

inline BlockSparseTensors rounded(const BlockSparseTensors& in, DType dtype) {
  const auto round = [&](const Tensor& t) { return cast(cast(t, dtype), DType::f64); };
  return {round(in.q), round(in.k), round(in.v), in.idx, round(in.d_o)};
}

inline BlockSparseProblem problem(const BlockSparseCase& c, const BlockSparseTensors& in) {
  return {.shape = c.shape(),
          .block = c.block,
          .span = c.span,
          .documents = c.documents.get(),
          .idx = in.idx.defined() ? in.idx.data<std::int32_t>() : nullptr,
          .q = in.q.data<double>(),
          .k = in.k.data<double>(),
          .v = in.v.data<double>()};
}

inline BlockSparseOutputs run_reference(const BlockSparseCase& c, const BlockSparseTensors& in) {
  const BlockSparseProblem p = problem(c, in);
  const BlockSparseResult r = block_sparse_reference(p);
  const BlockSparseGradients g = block_sparse_reference_backward(p, r, in.d_o.data<double>());
  return {.o = Tensor::from(in.d_o.shape(), r.o),
          .lse = Tensor::from({p.shape.T, p.shape.H_Q}, r.lse),
          .dq = Tensor::from(in.q.shape(), g.dq),
          .dk = Tensor::from(in.k.shape(), g.dk),
          .dv = Tensor::from(in.v.shape(), g.dv)};
}

inline AttentionWithStatistics apply(const BlockSparseCase& c, const Tensor& idx, Tape& tape, const Var& q,
                                     const Var& k, const Var& v) {
  return c.n == 0 ? span_attention(tape, q, k, v, c.span, c.documents)
                  : block_sparse_attention(tape, q, k, v, idx, c.block, c.documents);
}

inline BlockSparseOutputs run_tiled(const BlockSparseCase& c, const BlockSparseTensors& in, DType dtype) {
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var q = tape.leaf(cast(in.q, dtype)), k = tape.leaf(cast(in.k, dtype)), v = tape.leaf(cast(in.v, dtype));
  const AttentionWithStatistics r = apply(c, in.idx, tape, q, k, v);
  const Tensor o = cast(r.o.value, dtype), lse = cast(r.lse, dtype);
  tape.backward(r.o, cast(in.d_o, dtype));
  return {o, lse, tape.gradient(q), tape.gradient(k), tape.gradient(v)};
}

// A gradient that the definition makes 0 (a softmax over one key) is compared with the inputs, which are of size 1.
inline ::testing::AssertionResult near(const Tensor& x, const Tensor& reference, double rel_f, double rel_max) {
  double largest = 0.0;
  for (const double y : reference.span<double>()) largest = std::isinf(y) ? largest : std::max(largest, std::abs(y));
  if (largest > 1e-12) return close(x, reference, rel_f, rel_max);
  const Tensor values = cast(x, DType::f64);
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    const double y = values.data<double>()[i];
    if (!(std::abs(y) <= rel_max) && y != reference.data<double>()[i]) {
      return ::testing::AssertionFailure() << y << " where 0 was expected";
    }
  }
  return ::testing::AssertionSuccess();
}

inline void expect_near(const BlockSparseOutputs& x, const BlockSparseOutputs& y, const Tolerance& t) {
  EXPECT_TRUE(near(x.o, y.o, t.forward, t.max)) << "o";
  EXPECT_TRUE(near(x.lse, y.lse, t.forward, t.max)) << "lse";
  EXPECT_TRUE(near(x.dq, y.dq, t.backward, t.max)) << "dq";
  EXPECT_TRUE(near(x.dk, y.dk, t.backward, t.max)) << "dk";
  EXPECT_TRUE(near(x.dv, y.dv, t.backward, t.max)) << "dv";
}

inline void expect_equal_bits(const BlockSparseOutputs& x, const BlockSparseOutputs& y) {
  EXPECT_TRUE(bitwise_equal(x.o, y.o)) << "o";
  EXPECT_TRUE(bitwise_equal(x.lse, y.lse)) << "lse";
  EXPECT_TRUE(bitwise_equal(x.dq, y.dq)) << "dq";
  EXPECT_TRUE(bitwise_equal(x.dk, y.dk)) << "dk";
  EXPECT_TRUE(bitwise_equal(x.dv, y.dv)) << "dv";
}

inline void expect_matches_reference(const BlockSparseCase& c) {
  const BlockSparseTensors in = rounded(random_tensors(c), DType::f32);
  const BlockSparseOutputs reference = run_reference(c, in);
  {
    SCOPED_TRACE("fp64");
    expect_near(run_tiled(c, in, DType::f64), reference, kFp64Chunked);
  }
  {
    SCOPED_TRACE("fp32");
    expect_near(run_tiled(c, in, DType::f32), reference, kFp32);
  }
}

}  // namespace weft::testing::block_sparse
