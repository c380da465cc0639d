// What the tests of the delta rule share: a problem declared by its shape, and the two ways to evaluate it.
#pragma once

#include <numeric>

#include "autograd/ops/l2_norm/l2_norm.h"
#include "modules/families/delta_rule/delta_rule.h"
#include "modules/families/delta_rule/delta_rule_reference.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft::testing {

struct DeltaCase {
  std::vector<std::int32_t> lengths;
  DeltaDecay decay = DeltaDecay::channel;
  std::int64_t H = 2, H_K = 2, d_k = 5, d_v = 3;
  bool initial_state = true;
  bool final_gradient = true;
  double gate = 0.3;  // mean size of a log decay
  double largest_beta = 1.0;
  double scale = 0.7;
  DeltaRulePlan plan = {};

  std::int64_t tokens() const { return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}); }
  std::int64_t documents() const { return static_cast<std::int64_t>(lengths.size()); }
  Shape state_shape() const { return {documents(), H, d_k, d_v}; }
  std::string str() const {
    return fmt::format("decay {} T {} N {} H {}/{} d_k {} d_v {} S0 {} dST {} C {}", static_cast<int>(decay), tokens(),
                       documents(), H, H_K, d_k, d_v, initial_state, final_gradient, plan.chunk);
  }
};

// Inputs and the gradients that arrive, fp64; undefined where the case has none.
struct DeltaInputs {
  Tensor q, k, v, g, beta, s0, d_o, dst;
};

// Queries and keys have unit norms.
inline DeltaInputs make_inputs(const DeltaCase& c, std::uint64_t seed = 1) {
  const std::int64_t T = c.tokens();
  Tape tape(heap_allocator(), Tape::Mode::inference);
  const auto unit = [&](std::uint64_t own_seed) {
    return cast(l2_norm(tape, Tape::constant(normal({T, c.H_K, c.d_k}, own_seed))).value, DType::f64);
  };
  DeltaInputs in{.q = unit(seed),
                 .k = unit(seed + 1),
                 .v = normal({T, c.H, c.d_v}, seed + 2),
                 .g = {},
                 .beta = uniform({T, c.H}, seed + 3, 0.0, c.largest_beta),
                 .s0 = {},
                 .d_o = normal({T, c.H, c.d_v}, seed + 4),
                 .dst = {}};
  if (c.decay == DeltaDecay::scalar) in.g = uniform({T, c.H}, seed + 5, -2.0 * c.gate, 0.0);
  if (c.decay == DeltaDecay::channel) in.g = uniform({T, c.H, c.d_k}, seed + 5, -2.0 * c.gate, 0.0);
  if (c.initial_state) in.s0 = normal(c.state_shape(), seed + 6);
  if (c.final_gradient) in.dst = normal(c.state_shape(), seed + 7);
  return in;
}

inline DeltaInputs rounded(const DeltaInputs& in, DType dtype) {
  const auto round = [&](const Tensor& t) { return t.defined() ? cast(t, dtype) : t; };
  return {round(in.q),    round(in.k),  round(in.v),   round(in.g),
          round(in.beta), round(in.s0), round(in.d_o), round(in.dst)};
}

struct DeltaResult {
  Tensor o, st, dq, dk, dv, dg, dbeta, ds0;  // dg undefined without decay, ds0 without an initial state
};

inline DocumentsPtr documents_of(const DeltaCase& c) {
  return Documents::from_lengths(c.lengths);
}

// The operation on a tape in hostile memory; the dtype is that of the inputs.
inline DeltaResult evaluate(const DeltaCase& c, const DeltaInputs& in) {
  Tape tape(heap_allocator(Hygiene::hostile));
  const auto leaf = [&](const Tensor& t) { return t.defined() ? tape.leaf(t) : Var{}; };
  const Var q = leaf(in.q), k = leaf(in.k), v = leaf(in.v), g = leaf(in.g), beta = leaf(in.beta), s0 = leaf(in.s0);
  const DeltaRuleOutput out = delta_rule(tape, q, k, v, g, beta, s0, documents_of(c), c.scale, c.plan);
  std::vector<Var> outputs{out.o};
  std::vector<Tensor> seeds{in.d_o};
  if (in.dst.defined()) outputs.push_back(out.final_state), seeds.push_back(in.dst);
  tape.backward(outputs, seeds);
  const auto keep = [](const Tensor& t) { return cast(t, t.dtype()); };
  const auto gradient = [&](const Var& x) { return x.requires_grad() ? keep(tape.gradient(x)) : Tensor{}; };
  return {.o = keep(out.o.value),
          .st = keep(out.final_state.value),
          .dq = gradient(q),
          .dk = gradient(k),
          .dv = gradient(v),
          .dg = gradient(g),
          .dbeta = gradient(beta),
          .ds0 = gradient(s0)};
}

// The oracle on fp64 inputs.
inline DeltaResult evaluate_reference(const DeltaCase& c, const DeltaInputs& in) {
  const DocumentsPtr documents = documents_of(c);
  const auto like = [](const Tensor& t) { return t.defined() ? Tensor::zeros(t.shape(), DType::f64) : Tensor{}; };
  const auto raw = [](const Tensor& t) { return t.defined() ? t.raw() : nullptr; };
  DeltaResult r{.o = like(in.v),
                .st = Tensor::zeros(c.state_shape(), DType::f64),
                .dq = like(in.q),
                .dk = like(in.k),
                .dv = like(in.v),
                .dg = like(in.g),
                .dbeta = like(in.beta),
                .ds0 = like(in.s0)};
  const DeltaRuleProblem problem{.dtype = DType::f64,
                                 .decay = c.decay,
                                 .schedule = DeltaSchedule::automatic,
                                 .T = c.tokens(),
                                 .N = c.documents(),
                                 .H = c.H,
                                 .H_K = c.H_K,
                                 .d_k = c.d_k,
                                 .d_v = c.d_v,
                                 .C = 0,
                                 .scale = c.scale,
                                 .q = in.q.raw(),
                                 .k = in.k.raw(),
                                 .v = in.v.raw(),
                                 .g = raw(in.g),
                                 .beta = in.beta.raw(),
                                 .s0 = raw(in.s0),
                                 .cu_seqlens = documents->cu_seqlens().data(),
                                 .chunks = nullptr,
                                 .document_offset = nullptr,
                                 .chunk_count = 0};
  DeltaRuleForward forward{problem};
  forward.o = r.o.raw();
  forward.st = r.st.raw();
  delta_rule_forward_reference(forward);
  DeltaRuleBackward backward{problem};
  backward.d_o = in.d_o.raw();
  backward.dst = raw(in.dst);
  backward.dq = r.dq.raw();
  backward.dk = r.dk.raw();
  backward.dv = r.dv.raw();
  backward.dg = raw(r.dg);
  backward.dbeta = r.dbeta.raw();
  backward.ds0 = raw(r.ds0);
  delta_rule_backward_reference(backward);
  return r;
}

// Calls f(name, tensor of x, tensor of y, whether it is a gradient) for whatever both results hold.
template <class F>
void for_each_pair(const DeltaResult& x, const DeltaResult& y, F&& f) {
  struct Field {
    const char* name;
    Tensor DeltaResult::*tensor;
    bool gradient;
  };
  for (const Field& field : {Field{"o", &DeltaResult::o, false}, Field{"final state", &DeltaResult::st, false},
                             Field{"dq", &DeltaResult::dq, true}, Field{"dk", &DeltaResult::dk, true},
                             Field{"dv", &DeltaResult::dv, true}, Field{"dg", &DeltaResult::dg, true},
                             Field{"dbeta", &DeltaResult::dbeta, true}, Field{"dS0", &DeltaResult::ds0, true}}) {
    ASSERT_EQ((x.*field.tensor).defined(), (y.*field.tensor).defined()) << field.name;
    if ((x.*field.tensor).defined()) f(field.name, x.*field.tensor, y.*field.tensor, field.gradient);
  }
}

inline void expect_close(const DeltaResult& x, const DeltaResult& reference, const Tolerance& tolerance) {
  for_each_pair(x, reference, [&](const char* name, const Tensor& a, const Tensor& b, bool gradient) {
    EXPECT_TRUE(close(a, b, gradient ? tolerance.backward : tolerance.forward, tolerance.max)) << name;
  });
}

inline void expect_bitwise_equal(const DeltaResult& x, const DeltaResult& y) {
  for_each_pair(
      x, y, [](const char* name, const Tensor& a, const Tensor& b, bool) { EXPECT_TRUE(bitwise_equal(a, b)) << name; });
}

// The fp64 kernels against the oracle, and the fp32 ones against it on the rounded inputs.
inline void expect_the_recurrence(const DeltaCase& c, const DeltaInputs& in) {
  expect_close(evaluate(c, in), evaluate_reference(c, in), kFp64Chunked);
  const DeltaInputs single = rounded(in, DType::f32);
  expect_close(evaluate(c, single), evaluate_reference(c, rounded(single, DType::f64)), kFp32);
}

inline constexpr DeltaDecay kAllDecays[] = {DeltaDecay::none, DeltaDecay::scalar, DeltaDecay::channel};

}  // namespace weft::testing
