// For the tests of this folder: one problem with random inputs and a random selection, through the oracle, or through
// the tape in hostile memory.
#pragma once

#include <fmt/format.h>

#include "autograd/philox.h"
#include "autograd/transfer.h"
#include "modules/families/block_sparse/block_sparse_reference.h"
#include "tests/support/compare.h"
#include "tests/support/gpu.h"
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

// `idx` where the tape computes.
inline BlockSparseOutputs run_on(Tape& tape, const BlockSparseCase& c, const BlockSparseTensors& in, DType dtype) {
  const auto leaf = [&](const Tensor& t) { return tape.leaf(tape.here(cast(t, dtype))); };
  const Var q = leaf(in.q), k = leaf(in.k), v = leaf(in.v);
  const AttentionWithStatistics r = apply(c, in.idx.defined() ? tape.here(in.idx) : Tensor{}, tape, q, k, v);
  const auto fetch = [&](const Tensor& t) { return cast(to_host(t, tape.stream()), t.dtype()); };
  const Tensor o = fetch(r.o.value), lse = fetch(r.lse);
  tape.backward(r.o, tape.here(cast(in.d_o, dtype)));
  return {o, lse, fetch(tape.gradient(q)), fetch(tape.gradient(k)), fetch(tape.gradient(v))};
}

inline BlockSparseOutputs run_tiled(const BlockSparseCase& c, const BlockSparseTensors& in, DType dtype) {
  Tape tape(heap_allocator(Hygiene::hostile));
  return run_on(tape, c, in, dtype);
}

inline BlockSparseOutputs run_on_gpu(const BlockSparseCase& c, const BlockSparseTensors& in, DType dtype) {
  Tape tape(gpu_memory(), Tape::Mode::record, gpu_stream());
  return run_on(tape, c, in, dtype);
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

// The same on the GPU, in f32 and bf16, and repeated; bf16 also with the widths that the tensor cores take, where the
// case is small enough for the oracle.
inline void expect_matches_reference_on_gpu(const BlockSparseCase& given) {
  const auto check = [](const BlockSparseCase& c, DType dtype) {
    SCOPED_TRACE(fmt::format("{} D {} D_V {}", name_of(dtype), c.D, c.D_V));
    const BlockSparseTensors in = rounded(random_tensors(c), dtype);
    const BlockSparseOutputs first = run_on_gpu(c, in, dtype);
    expect_near(first, run_reference(c, in), dtype == DType::f32 ? kFp32 : kBf16);
    expect_equal_bits(run_on_gpu(c, in, dtype), first);
  };
  check(given, DType::f32);
  check(given, DType::bf16);
  for (const std::int64_t D : {64, 128}) {
    BlockSparseCase c = given;
    c.D = c.D_V = D;
    const std::int64_t keys = c.n == 0 ? c.shape().S : c.n * c.block;
    if (c.documents->tokens() * std::min(keys, c.shape().S) * c.H_KV * c.G * D < 40'000'000) check(c, DType::bf16);
  }
}

// A test of both devices: the body calls `expect_matches_reference(case)` for each of its cases.
#define BLOCK_SPARSE_TEST(suite, name)                                               \
  using suite##_##name##_check = void (*)(const BlockSparseCase&);                   \
  static void suite##_##name(suite##_##name##_check expect_matches_reference);       \
  TEST(suite, name) {                                                                \
    suite##_##name(&::weft::testing::block_sparse::expect_matches_reference);        \
  }                                                                                  \
  TEST(suite##Gpu, name) {                                                           \
    WEFT_NEEDS_GPU();                                                                \
    suite##_##name(&::weft::testing::block_sparse::expect_matches_reference_on_gpu); \
  }                                                                                  \
  static void suite##_##name(suite##_##name##_check expect_matches_reference)

}  // namespace weft::testing::block_sparse
