// What the tests of the delta rule share: a problem declared by its shape, and the two ways to evaluate it.
#pragma once

#include <numeric>

#include "autograd/ops/l2_norm/l2_norm.h"
#include "modules/families/delta_rule/delta_rule.h"
#include "modules/families/delta_rule/delta_rule_reference.h"
#include "modules/families/operation_arguments.h"
#include "tests/support/packed_tensors.h"
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

  Fields fields() {
    return {{"q", &q, RowsOf::tokens},
            {"k", &k, RowsOf::tokens},
            {"v", &v, RowsOf::tokens},
            {"g", &g, RowsOf::tokens},
            {"beta", &beta, RowsOf::tokens},
            {"S0", &s0, RowsOf::documents},
            {"d o", &d_o, RowsOf::tokens, Role::gradient},
            {"d final state", &dst, RowsOf::documents, Role::gradient}};
  }
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

struct DeltaResult {
  Tensor o, st, dq, dk, dv, dg, dbeta, ds0;  // dg undefined without decay, ds0 without an initial state

  Fields fields() {
    return {{"o", &o, RowsOf::tokens},
            {"final state", &st, RowsOf::documents},
            {"dq", &dq, RowsOf::tokens, Role::gradient},
            {"dk", &dk, RowsOf::tokens, Role::gradient},
            {"dv", &dv, RowsOf::tokens, Role::gradient},
            {"dg", &dg, RowsOf::tokens, Role::gradient},
            {"dbeta", &dbeta, RowsOf::tokens, Role::gradient},
            {"dS0", &ds0, RowsOf::documents, Role::gradient}};
  }
};

inline DocumentsPtr documents_of(const DeltaCase& c) {
  return Documents::from_lengths(c.lengths);
}

inline DeltaResult evaluate(const DeltaCase& c, const DeltaInputs& in) {
  return run_on_tape<DeltaResult>(in, [&](Tape& tape, std::span<const Var> x) {
    const DeltaRuleOutput out = delta_rule(tape, x[0], x[1], x[2], x[3], x[4], x[5], documents_of(c), c.scale, c.plan);
    return std::vector{out.o, out.final_state};
  });
}

// The oracle on fp64 inputs.
inline DeltaResult evaluate_reference(const DeltaCase& c, const DeltaInputs& in) {
  const DocumentsPtr documents = documents_of(c);
  const auto like = [](const Tensor& t) { return t.defined() ? Tensor::zeros(t.shape(), DType::f64) : Tensor{}; };
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
                                 .g = raw_or_null(in.g),
                                 .beta = in.beta.raw(),
                                 .s0 = raw_or_null(in.s0),
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
  backward.dst = raw_or_null(in.dst);
  backward.dq = r.dq.raw();
  backward.dk = r.dk.raw();
  backward.dv = r.dv.raw();
  backward.dg = raw_or_null(r.dg);
  backward.dbeta = r.dbeta.raw();
  backward.ds0 = raw_or_null(r.ds0);
  delta_rule_backward_reference(backward);
  return r;
}

inline constexpr DeltaDecay kAllDecays[] = {DeltaDecay::none, DeltaDecay::scalar, DeltaDecay::channel};

}  // namespace weft::testing
