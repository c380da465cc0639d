// What the tests of the gated linear recurrence share: a problem declared by its shape, and the two ways to evaluate
// it.
#pragma once

#include <numeric>

#include "modules/families/gated_linear/gated_linear.h"
#include "modules/families/gated_linear/gated_linear_reference.h"
#include "tests/support/compare.h"
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

inline RecurrenceInputs rounded(const RecurrenceInputs& in, DType dtype) {
  const auto round = [&](const Tensor& t) { return t.defined() ? cast(t, dtype) : t; };
  return {round(in.q), round(in.k), round(in.v), round(in.g), round(in.s0), round(in.d_o), round(in.dst)};
}

struct RecurrenceResult {
  Tensor o, st, dq, dk, dv, dg, ds0;  // dg undefined for a constant decay, ds0 without an initial state
};

inline DocumentsPtr documents_of(const RecurrenceCase& c) {
  return Documents::from_lengths(c.lengths);
}

// The operation on a tape in hostile memory; the dtype is that of the inputs.
inline RecurrenceResult evaluate(const RecurrenceCase& c, const RecurrenceInputs& in) {
  Tape tape(heap_allocator(Hygiene::hostile));
  const Var q = tape.leaf(in.q), k = tape.leaf(in.k), v = tape.leaf(in.v);
  const Var g = c.kind == DecayKind::constant ? Tape::constant(in.g) : tape.leaf(in.g);
  const Var s0 = in.s0.defined() ? tape.leaf(in.s0) : Var{};
  const GatedLinearOutput out = gated_linear(tape, q, k, v, g, s0, documents_of(c), c.scale, c.plan);
  std::vector<Var> outputs{out.o};
  std::vector<Tensor> seeds{in.d_o};
  if (in.dst.defined()) outputs.push_back(out.final_state), seeds.push_back(in.dst);
  tape.backward(outputs, seeds);
  const auto keep = [](const Tensor& t) { return cast(t, t.dtype()); };
  return {.o = keep(out.o.value),
          .st = keep(out.final_state.value),
          .dq = keep(tape.gradient(q)),
          .dk = keep(tape.gradient(k)),
          .dv = keep(tape.gradient(v)),
          .dg = g.requires_grad() ? keep(tape.gradient(g)) : Tensor{},
          .ds0 = s0.requires_grad() ? keep(tape.gradient(s0)) : Tensor{}};
}

// The oracle on fp64 inputs.
inline RecurrenceResult evaluate_reference(const RecurrenceCase& c, const RecurrenceInputs& in) {
  const DocumentsPtr documents = documents_of(c);
  const auto like = [](const Tensor& t) { return Tensor::zeros(t.shape(), DType::f64); };
  const auto raw = [](const Tensor& t) { return t.defined() ? t.raw() : nullptr; };
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
                                   .s0 = raw(in.s0),
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
  backward.dst = raw(in.dst);
  backward.dq = r.dq.raw();
  backward.dk = r.dk.raw();
  backward.dv = r.dv.raw();
  backward.dg = raw(r.dg);
  backward.ds0 = raw(r.ds0);
  gated_linear_backward_reference(backward);
  return r;
}

// Calls f(name, tensor of x, tensor of y, whether it is a gradient) for whatever both results hold.
template <class F>
void for_each_pair(const RecurrenceResult& x, const RecurrenceResult& y, F&& f) {
  struct Field {
    const char* name;
    Tensor RecurrenceResult::*tensor;
    bool gradient;
  };
  for (const Field& field :
       {Field{"o", &RecurrenceResult::o, false}, Field{"final state", &RecurrenceResult::st, false},
        Field{"dq", &RecurrenceResult::dq, true}, Field{"dk", &RecurrenceResult::dk, true},
        Field{"dv", &RecurrenceResult::dv, true}, Field{"dg", &RecurrenceResult::dg, true},
        Field{"dS0", &RecurrenceResult::ds0, true}}) {
    ASSERT_EQ((x.*field.tensor).defined(), (y.*field.tensor).defined()) << field.name;
    if ((x.*field.tensor).defined()) f(field.name, x.*field.tensor, y.*field.tensor, field.gradient);
  }
}

inline void expect_close(const RecurrenceResult& x, const RecurrenceResult& reference, const Tolerance& tolerance) {
  for_each_pair(x, reference, [&](const char* name, const Tensor& a, const Tensor& b, bool gradient) {
    EXPECT_TRUE(close(a, b, gradient ? tolerance.backward : tolerance.forward, tolerance.max)) << name;
  });
}

inline void expect_bitwise_equal(const RecurrenceResult& x, const RecurrenceResult& y) {
  for_each_pair(
      x, y, [](const char* name, const Tensor& a, const Tensor& b, bool) { EXPECT_TRUE(bitwise_equal(a, b)) << name; });
}

inline constexpr DecayKind kAllKinds[] = {DecayKind::constant, DecayKind::scalar, DecayKind::vector};

}  // namespace weft::testing
