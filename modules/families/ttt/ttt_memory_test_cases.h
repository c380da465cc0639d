// What the tests of ttt_memory share: a problem declared by its shape, and the two ways to evaluate it.
#pragma once

#include <numeric>

#include "modules/families/ttt/ttt_memory.h"
#include "modules/families/ttt/ttt_memory_reference.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace weft::testing {

struct TttCase {
  std::vector<std::int32_t> lengths;
  std::int64_t m = 0;
  std::int64_t H = 2, d = 6, b = 16;
  std::vector<std::int32_t> phase = {};  // of the initial states; none: the documents start from the weights
  bool final_gradient = true;

  std::int64_t tokens() const { return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}); }
  std::int64_t documents() const { return static_cast<std::int64_t>(lengths.size()); }
  bool continues() const { return !phase.empty(); }
  std::int64_t P() const { return ttt_memory_size(d, m); }
  Shape state_shape() const { return {documents(), H, 2 * P()}; }
  std::string str() const {
    return fmt::format("T {} N {} H {} d {} m {} b {} state {} dST {}", tokens(), documents(), H, d, m, b, continues(),
                       final_gradient);
  }
};

// Tensors by role, in the order of the operation's inputs; undefined where the case has none.
struct TttTensors {
  Tensor q, k, v, rate, offset, gamma, beta, w1, b1, w2, b2, state;
};
inline constexpr const char* kTttNames[] = {"q",    "k",  "v",  "rate", "offset", "gamma",
                                            "beta", "w1", "b1", "w2",   "b2",     "state"};
inline constexpr Tensor TttTensors::*kTttMembers[] = {
    &TttTensors::q,    &TttTensors::k,  &TttTensors::v,  &TttTensors::rate, &TttTensors::offset, &TttTensors::gamma,
    &TttTensors::beta, &TttTensors::w1, &TttTensors::b1, &TttTensors::w2,   &TttTensors::b2,     &TttTensors::state};

// fp64 inputs and the gradients that arrive.
struct TttData {
  TttTensors x;
  Tensor d_o, dfinal;
};

inline TttData make_data(const TttCase& c, std::uint64_t seed = 1) {
  const std::int64_t T = c.tokens(), into = c.m > 0 ? c.m : c.d;
  TttData data;
  data.x = {.q = normal({T, c.H, c.d}, seed),
            .k = normal({T, c.H, c.d}, seed + 1),
            .v = normal({T, c.H, c.d}, seed + 2),
            .rate = uniform({T, c.H}, seed + 3, 0.02, 0.2),
            .offset = uniform({c.b}, seed + 4, -0.2, 0.2),
            .gamma = uniform({c.H, c.d}, seed + 5, 0.5, 1.5),
            .beta = normal({c.H, c.d}, seed + 6, 0.2),
            .w1 = c.m > 0 ? normal({c.H, c.d, c.m}, seed + 7, 0.4) : Tensor{},
            .b1 = c.m > 0 ? normal({c.H, c.m}, seed + 8, 0.2) : Tensor{},
            .w2 = normal({c.H, into, c.d}, seed + 9, 0.4),
            .b2 = normal({c.H, c.d}, seed + 10, 0.2),
            .state = {}};
  data.d_o = normal({T, c.H, c.d}, seed + 11);
  if (c.final_gradient) data.dfinal = normal(c.state_shape(), seed + 12);
  if (c.continues()) {
    data.x.state = normal(c.state_shape(), seed + 13, 0.4);
    for (std::int64_t n = 0; n < c.documents(); ++n) {  // nothing is pending at the start of a batch
      if (c.phase[static_cast<std::size_t>(n)] > 0) continue;
      for (std::int64_t h = 0; h < c.H; ++h) {
        double* pending = data.x.state.data<double>() + ((n * c.H + h) * 2 + 1) * c.P();
        std::fill(pending, pending + c.P(), 0.0);
      }
    }
  }
  return data;
}

inline TttData rounded(const TttData& data, DType dtype) {
  const auto round = [&](const Tensor& t) { return t.defined() ? cast(t, dtype) : t; };
  TttData r;
  for (const auto member : kTttMembers) r.x.*member = round(data.x.*member);
  r.d_o = round(data.d_o);
  r.dfinal = round(data.dfinal);
  return r;
}

struct TttResult {
  Tensor o, final_state;
  TttTensors d;  // gradients
};

inline TttOutput ttt_memory(Tape& tape, const TttCase& c, std::span<const Var> x, const DocumentsPtr& documents) {
  const TttStart start{x[11], c.phase};
  return ttt_memory(tape, {x[0], x[1], x[2], x[3], x[4], x[5], x[6]}, {x[7], x[8], x[9], x[10]}, documents,
                    FinalState::keep, c.continues() ? &start : nullptr);
}

// The operation on a tape in hostile memory; the dtype is that of the data.
inline TttResult evaluate(const TttCase& c, const TttData& data) {
  Tape tape(heap_allocator(Hygiene::hostile));
  std::vector<Var> x;
  for (const auto member : kTttMembers) {
    x.push_back((data.x.*member).defined() ? tape.leaf(data.x.*member) : Var{});
  }
  const TttOutput out = ttt_memory(tape, c, x, Documents::from_lengths(c.lengths));
  std::vector<Var> outputs{out.o};
  std::vector<Tensor> seeds{data.d_o};
  if (c.final_gradient) outputs.push_back(out.final_state), seeds.push_back(data.dfinal);
  tape.backward(outputs, seeds);
  TttResult r{cast(out.o.value, out.o.dtype()), cast(out.final_state.value, out.o.dtype()), {}};
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (x[i].value.defined()) r.d.*kTttMembers[i] = cast(tape.gradient(x[i]), x[i].dtype());
  }
  return r;
}

// The oracle on fp64 data.
inline TttResult evaluate_reference(const TttCase& c, const TttData& data) {
  const DocumentsPtr documents = Documents::from_lengths(c.lengths);
  const auto raw = [](const Tensor& t) { return t.defined() ? t.raw() : nullptr; };
  const TttTensors& x = data.x;
  TttBackward a{{.dtype = DType::f64,
                 .T = c.tokens(),
                 .N = c.documents(),
                 .H = c.H,
                 .d = c.d,
                 .m = c.m,
                 .C = c.b,
                 .q = x.q.raw(),
                 .k = x.k.raw(),
                 .v = x.v.raw(),
                 .rate = x.rate.raw(),
                 .offset = x.offset.raw(),
                 .gamma = x.gamma.raw(),
                 .beta = x.beta.raw(),
                 .w1 = raw(x.w1),
                 .b1 = raw(x.b1),
                 .w2 = x.w2.raw(),
                 .b2 = x.b2.raw(),
                 .state = raw(x.state),
                 .cu_seqlens = documents->cu_seqlens().data(),
                 .phase = c.phase.empty() ? nullptr : c.phase.data()}};
  TttResult r{Tensor::zeros(x.q.shape(), DType::f64), Tensor::zeros(c.state_shape(), DType::f64), {}};
  for (const auto member : kTttMembers) {
    if ((x.*member).defined()) r.d.*member = Tensor::zeros((x.*member).shape(), DType::f64);
  }
  a.d_o = data.d_o.raw();
  a.dfinal_state = raw(data.dfinal);
  a.dq = r.d.q.raw();
  a.dk = r.d.k.raw();
  a.dv = r.d.v.raw();
  a.drate = r.d.rate.raw();
  const std::int64_t P = c.P();
  for (std::int64_t n = 0; n < c.documents(); ++n) {
    for (std::int64_t h = 0; h < c.H; ++h) {
      TttReference reference(a, n, h);
      reference.forward(r.o.data<double>(), r.final_state.data<double>());
      const auto zeros = [](std::int64_t size) { return std::vector<double>(static_cast<std::size_t>(size), 0.0); };
      TttReference::Sums sums{{}, zeros(c.d), zeros(c.d), zeros(c.b)};
      std::vector<double> dW, dG;
      reference.backward(a, sums, dW, dG);
      std::size_t read = 0;
      const auto add = [&](const Tensor& to, std::int64_t at, const std::vector<double>& from, std::int64_t count) {
        for (std::int64_t i = 0; i < count; ++i) to.data<double>()[at + i] += from[read + static_cast<std::size_t>(i)];
      };
      add(r.d.gamma, h * c.d, sums.gamma, c.d);
      add(r.d.beta, h * c.d, sums.beta, c.d);
      add(r.d.offset, 0, sums.offset, c.b);
      if (c.continues()) {
        const bool pending = c.phase[static_cast<std::size_t>(n)] > 0 || c.lengths[static_cast<std::size_t>(n)] == 0;
        add(r.d.state, (n * c.H + h) * 2 * P, dW, P);
        if (pending) add(r.d.state, ((n * c.H + h) * 2 + 1) * P, dG, P);
        continue;
      }
      const auto part = [&](const Tensor& to) {
        const std::int64_t count = to.numel() / c.H;
        add(to, h * count, dW, count);
        read += static_cast<std::size_t>(count);
      };
      if (c.m > 0) part(r.d.w1), part(r.d.b1);
      part(r.d.w2);
      part(r.d.b2);
    }
  }
  return r;
}

// Calls f(name, tensor of x, tensor of y, whether it is a gradient) for whatever both results hold.
template <class F>
void for_each_pair(const TttResult& x, const TttResult& y, F&& f) {
  f("o", x.o, y.o, false);
  f("final state", x.final_state, y.final_state, false);
  for (std::size_t i = 0; i < std::size(kTttMembers); ++i) {
    const Tensor &a = x.d.*kTttMembers[i], &b = y.d.*kTttMembers[i];
    ASSERT_EQ(a.defined(), b.defined()) << kTttNames[i];
    if (a.defined()) f(kTttNames[i], a, b, true);
  }
}

inline void expect_close(const TttResult& x, const TttResult& reference, const Tolerance& tolerance) {
  for_each_pair(x, reference, [&](const char* name, const Tensor& a, const Tensor& b, bool gradient) {
    EXPECT_TRUE(close(a, b, gradient ? tolerance.backward : tolerance.forward, tolerance.max)) << name;
  });
}

inline void expect_bitwise_equal(const TttResult& x, const TttResult& y) {
  for_each_pair(
      x, y, [](const char* name, const Tensor& a, const Tensor& b, bool) { EXPECT_TRUE(bitwise_equal(a, b)) << name; });
}

}  // namespace weft::testing
