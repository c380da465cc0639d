// What the tests of the gated linear recurrence share: a problem declared by its shape, and the two ways to evaluate
// it.
#pragma once

#include <numeric>

#include "modules/families/gated_linear/gated_linear.h"
#include "modules/families/gated_linear/gated_linear_reference.h"
#include "modules/families/operation_arguments.h"
#include "tests/support/packed_tensors.h"
#include "tests/support/random.h"

namespace weft::testing {

struct RecurrenceCase {
  std::vector<std::int32_t> lengths;
  DecayKind kind = DecayKind::vector;
  std::int64_t H = 2, d_k = 5, d_v = 3;
  bool initial_state = true;
  bool final_gradient = true;
  double gate = 0.3;  // mean size of a log decay
  double scale = 0.7;
  GatedLinearPlan plan = {};

  std::int64_t tokens() const { return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}); }
  std::int64_t documents() const { return static_cast<std::int64_t>(lengths.size()); }
  Shape state_shape() const { return {documents(), H, d_k, d_v}; }
  std::string str() const {
    return fmt::format("kind {} T {} N {} H {} d_k {} d_v {} S0 {} dST {} C {}", static_cast<int>(kind), tokens(),
                       documents(), H, d_k, d_v, initial_state, final_gradient, plan.chunk);
  }
};

// Inputs and the gradients that arrive, fp64; undefined where the case has none.
struct RecurrenceInputs {
  Tensor q, k, v, g, s0, d_o, dst;

  Fields fields() {
    const bool constant = g.rank() == 1;
    return {{"q", &q, RowsOf::tokens},
            {"k", &k, RowsOf::tokens},
            {"v", &v, RowsOf::tokens},
            {"g", &g, constant ? RowsOf::parameters : RowsOf::tokens, constant ? Role::constant : Role::value},
            {"S0", &s0, RowsOf::documents},
            {"d o", &d_o, RowsOf::tokens, Role::gradient},
            {"d final state", &dst, RowsOf::documents, Role::gradient}};
  }
};

inline Shape decay_shape(const RecurrenceCase& c) {
  if (c.kind == DecayKind::constant) return {c.H};
  if (c.kind == DecayKind::scalar) return {c.tokens(), c.H};
  return {c.tokens(), c.H, c.d_k};
}

inline RecurrenceInputs make_inputs(const RecurrenceCase& c, std::uint64_t seed = 1) {
  const std::int64_t T = c.tokens();
  RecurrenceInputs in{.q = normal({T, c.H, c.d_k}, seed),
                      .k = normal({T, c.H, c.d_k}, seed + 1),
                      .v = normal({T, c.H, c.d_v}, seed + 2),
                      .g = uniform(decay_shape(c), seed + 3, -2.0 * c.gate, 0.0),
                      .s0 = {},
                      .d_o = normal({T, c.H, c.d_v}, seed + 4),
                      .dst = {}};
  if (c.initial_state) in.s0 = normal(c.state_shape(), seed + 5);
  if (c.final_gradient) in.dst = normal(c.state_shape(), seed + 6);
  return in;
}

struct RecurrenceResult {
  Tensor o, st, dq, dk, dv, dg, ds0;  // dg undefined for a constant decay, ds0 without an initial state

  Fields fields() {
    return {{"o", &o, RowsOf::tokens},
            {"final state", &st, RowsOf::documents},
            {"dq", &dq, RowsOf::tokens, Role::gradient},
            {"dk", &dk, RowsOf::tokens, Role::gradient},
            {"dv", &dv, RowsOf::tokens, Role::gradient},
            {"dg", &dg, RowsOf::tokens, Role::gradient},
            {"dS0", &ds0, RowsOf::documents, Role::gradient}};
  }
};

inline DocumentsPtr documents_of(const RecurrenceCase& c) {
  return Documents::from_lengths(c.lengths);
}

inline RecurrenceResult evaluate(const RecurrenceCase& c, const RecurrenceInputs& in) {
  return run_on_tape<RecurrenceResult>(in, [&](Tape& tape, std::span<const Var> x) {
    const GatedLinearOutput out = gated_linear(tape, x[0], x[1], x[2], x[3], x[4], documents_of(c), c.scale, c.plan);
    return std::vector{out.o, out.final_state};
  });
}

// The oracle on fp64 inputs.
inline RecurrenceResult evaluate_reference(const RecurrenceCase& c, const RecurrenceInputs& in) {
  const DocumentsPtr documents = documents_of(c);
  const auto like = [](const Tensor& t) { return Tensor::zeros(t.shape(), DType::f64); };
  RecurrenceResult r{.o = like(in.v),
                     .st = Tensor::zeros(c.state_shape(), DType::f64),
                     .dq = like(in.q),
                     .dk = like(in.k),
                     .dv = like(in.v),
                     .dg = c.kind == DecayKind::constant ? Tensor{} : like(in.g),
                     .ds0 = in.s0.defined() ? like(in.s0) : Tensor{}};
  const GatedLinearProblem problem{.dtype = DType::f64,
                                   .kind = c.kind,
                                   .schedule = ChunkSchedule::automatic,
                                   .T = c.tokens(),
                                   .N = c.documents(),
                                   .H = c.H,
                                   .d_k = c.d_k,
                                   .d_v = c.d_v,
                                   .C = 0,
                                   .scale = c.scale,
                                   .q = in.q.raw(),
                                   .k = in.k.raw(),
                                   .v = in.v.raw(),
                                   .g = in.g.raw(),
                                   .s0 = raw_or_null(in.s0),
                                   .cu_seqlens = documents->cu_seqlens().data(),
                                   .chunks = nullptr,
                                   .document_offset = nullptr,
                                   .chunk_count = 0};
  GatedLinearForward forward{problem};
  forward.o = r.o.raw();
  forward.st = r.st.raw();
  gated_linear_forward_reference(forward);
  GatedLinearBackward backward{problem};
  backward.d_o = in.d_o.raw();
  backward.dst = raw_or_null(in.dst);
  backward.dq = r.dq.raw();
  backward.dk = r.dk.raw();
  backward.dv = r.dv.raw();
  backward.dg = raw_or_null(r.dg);
  backward.ds0 = raw_or_null(r.ds0);
  gated_linear_backward_reference(backward);
  return r;
}

inline constexpr DecayKind kAllKinds[] = {DecayKind::constant, DecayKind::scalar, DecayKind::vector};

}  // namespace weft::testing
