// For the tests of this folder: one attention problem with random inputs, run through the oracle, or through the tape
// in hostile memory.
#pragma once

#include <cmath>

#include "modules/families/attention/attention_reference.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft::testing {

struct AttentionCase {
  DocumentsPtr documents;
  AttentionOptions options{};
  std::int64_t H_KV = 1, G = 1, D = 8, D_V = 8;
  bool sink_logit = false;
  std::uint64_t seed = 1;

  AttentionShape shape() const {
    const std::int64_t T = documents->tokens();
    return {T, T, H_KV * G, H_KV, D, D_V};
  }
};

inline DocumentsPtr documents_of(const std::vector<std::int32_t>& lengths) {
  return Documents::from_lengths(lengths);
}

// A row that starts with an anchor token.
inline DocumentsPtr anchored_documents(const std::vector<std::int32_t>& lengths) {
  std::vector<std::int32_t> cu{0, 1}, pos0{0};
  for (const std::int32_t n : lengths) {
    cu.push_back(cu.back() + n);
    pos0.push_back(1);
  }
  return std::make_shared<const Documents>(std::move(cu), std::move(pos0), Anchor::first_token);
}

struct AttentionInputs {
  Tensor q, k, v, sink_logit, d_o, dlse;
};

struct AttentionOutputs {
  Tensor o, lse, dq, dk, dv, dsink_logit;
};

inline AttentionInputs random_inputs(const AttentionCase& c) {
  const AttentionShape s = c.shape();
  return {.q = normal({s.T, s.H_Q, s.D}, c.seed),
          .k = normal({s.S, s.H_KV, s.D}, c.seed + 1),
          .v = normal({s.S, s.H_KV, s.D_V}, c.seed + 2),
          .sink_logit = c.sink_logit ? normal({s.H_Q}, c.seed + 3) : Tensor{},
          .d_o = normal({s.T, s.H_Q, s.D_V}, c.seed + 4),
          .dlse = normal({s.T, s.H_Q}, c.seed + 5)};
}

// The same numbers rounded to a type, kept in fp64.
inline AttentionInputs rounded(const AttentionInputs& in, DType dtype) {
  const auto round = [&](const Tensor& t) { return t.defined() ? cast(cast(t, dtype), DType::f64) : Tensor{}; };
  return {round(in.q), round(in.k), round(in.v), round(in.sink_logit), round(in.d_o), round(in.dlse)};
}

// Tokens [begin, end) of every per-token input.
inline AttentionInputs tokens_of(const AttentionInputs& in, std::int64_t begin, std::int64_t end) {
  return {in.q.rows(begin, end), in.k.rows(begin, end),   in.v.rows(begin, end),
          in.sink_logit,         in.d_o.rows(begin, end), in.dlse.rows(begin, end)};
}

inline AttentionProblem problem(const AttentionCase& c, const AttentionInputs& in) {
  return {.shape = c.shape(),
          .options = c.options,
          .documents = c.documents.get(),
          .q = in.q.data<double>(),
          .k = in.k.data<double>(),
          .v = in.v.data<double>(),
          .sink_logit = c.sink_logit ? in.sink_logit.data<double>() : nullptr};
}

inline AttentionOutputs run_reference(const AttentionCase& c, const AttentionInputs& in) {
  const AttentionProblem p = problem(c, in);
  const AttentionResult r = attention_reference(p);
  const AttentionGradients g = attention_reference_backward(p, r, in.d_o.data<double>(), in.dlse.data<double>());
  return {.o = Tensor::from(in.d_o.shape(), r.o),
          .lse = Tensor::from(in.dlse.shape(), r.lse),
          .dq = Tensor::from(in.q.shape(), g.dq),
          .dk = Tensor::from(in.k.shape(), g.dk),
          .dv = Tensor::from(in.v.shape(), g.dv),
          .dsink_logit = c.sink_logit ? Tensor::from(in.sink_logit.shape(), g.dsink_logit) : Tensor{}};
}

// Outputs and workspaces start as NaN, canaries are checked.
inline AttentionOutputs run_tiled(const AttentionCase& c, const AttentionInputs& in, DType dtype) {
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var q = tape.leaf(cast(in.q, dtype)), k = tape.leaf(cast(in.k, dtype)), v = tape.leaf(cast(in.v, dtype));
  const Var sink = c.sink_logit ? tape.leaf(cast(in.sink_logit, dtype)) : Var{};
  const std::array<Var, 2> out = attention_with_lse(tape, q, k, v, sink, c.documents, c.options);
  const Tensor o = cast(out[0].value, dtype), lse = cast(out[1].value, dtype);
  const std::array<Tensor, 2> seeds{cast(in.d_o, dtype), cast(in.dlse, dtype)};
  tape.backward(out, seeds);
  const auto gradient = [&](const Var& x) {
    const Tensor g = tape.gradient(x);
    return g.defined() ? cast(g, dtype) : Tensor::zeros(x.shape(), dtype);
  };
  return {o, lse, gradient(q), gradient(k), gradient(v), c.sink_logit ? gradient(sink) : Tensor{}};
}

// A gradient that the definition makes 0 (a softmax over one key) is compared with the inputs, which are of size 1.
inline ::testing::AssertionResult near(const Tensor& x, const Tensor& reference, double rel_f, double rel_max) {
  double largest = 0.0;
  for (const double y : reference.span<double>()) largest = std::max(largest, std::abs(y));
  if (largest > 1e-12) return close(x, reference, rel_f, rel_max);
  const Tensor values = cast(x, DType::f64);
  for (const double y : values.span<double>()) {
    if (!(std::abs(y) <= rel_max)) return ::testing::AssertionFailure() << y << " where 0 was expected";
  }
  return ::testing::AssertionSuccess();
}

inline void expect_near(const AttentionOutputs& x, const AttentionOutputs& y, const Tolerance& t) {
  EXPECT_TRUE(near(x.o, y.o, t.forward, t.max)) << "o";
  EXPECT_TRUE(near(x.lse, y.lse, t.forward, t.max)) << "lse";
  EXPECT_TRUE(near(x.dq, y.dq, t.backward, t.max)) << "dq";
  EXPECT_TRUE(near(x.dk, y.dk, t.backward, t.max)) << "dk";
  EXPECT_TRUE(near(x.dv, y.dv, t.backward, t.max)) << "dv";
  if (y.dsink_logit.defined()) {
    EXPECT_TRUE(near(x.dsink_logit, y.dsink_logit, t.backward, t.max)) << "dsink_logit";
  }
}

inline void expect_equal_bits(const AttentionOutputs& x, const AttentionOutputs& y) {
  EXPECT_TRUE(bitwise_equal(x.o, y.o)) << "o";
  EXPECT_TRUE(bitwise_equal(x.lse, y.lse)) << "lse";
  EXPECT_TRUE(bitwise_equal(x.dq, y.dq)) << "dq";
  EXPECT_TRUE(bitwise_equal(x.dk, y.dk)) << "dk";
  EXPECT_TRUE(bitwise_equal(x.dv, y.dv)) << "dv";
}

// The tiled kernels in fp64 and in fp32 against the oracle on the same inputs.
inline void expect_matches_reference(const AttentionCase& c) {
  const AttentionInputs in = rounded(random_inputs(c), DType::f32);
  const AttentionOutputs reference = run_reference(c, in);
  {
    SCOPED_TRACE("fp64");
    expect_near(run_tiled(c, in, DType::f64), reference, kFp64Chunked);
  }
  {
    SCOPED_TRACE("fp32");
    expect_near(run_tiled(c, in, DType::f32), reference, kFp32);
  }
}

}  // namespace weft::testing
