// What the tests of ttt_memory share: a problem declared by its shape, and the two ways to evaluate it.
#pragma once

#include <numeric>

#include "modules/families/memory_walk_test_cases.h"
#include "modules/families/operation_arguments.h"
#include "modules/families/ttt/ttt_memory.h"
#include "modules/families/ttt/ttt_memory_reference.h"
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

  Fields fields(Role role = Role::value) {
    return {{"q", &q, RowsOf::tokens, role},
            {"k", &k, RowsOf::tokens, role},
            {"v", &v, RowsOf::tokens, role},
            {"rate", &rate, RowsOf::tokens, role},
            {"offset", &offset, RowsOf::parameters, role},
            {"gamma", &gamma, RowsOf::parameters, role},
            {"beta", &beta, RowsOf::parameters, role},
            {"w1", &w1, RowsOf::parameters, role},
            {"b1", &b1, RowsOf::parameters, role},
            {"w2", &w2, RowsOf::parameters, role},
            {"b2", &b2, RowsOf::parameters, role},
            {"state", &state, RowsOf::documents, role}};
  }
};

using TttData = MemoryWalkData<TttTensors>;
using TttResult = MemoryWalkResult<TttTensors>;

// fp64.
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

inline TttOutput ttt_memory(Tape& tape, const TttCase& c, std::span<const Var> x, const DocumentsPtr& documents) {
  const TttStart start{x[11], c.phase};
  return ttt_memory(tape, {x[0], x[1], x[2], x[3], x[4], x[5], x[6]}, {x[7], x[8], x[9], x[10]}, documents,
                    FinalState::keep, c.continues() ? &start : nullptr);
}

inline TttResult evaluate(const TttCase& c, const TttData& data) {
  return run_on_tape<TttResult>(data, [&](Tape& tape, std::span<const Var> x) {
    const TttOutput out = ttt_memory(tape, c, x, Documents::from_lengths(c.lengths));
    return std::vector{out.o, out.final_state};
  });
}

// The oracle on fp64 data.
inline TttResult evaluate_reference(const TttCase& c, const TttData& data) {
  const DocumentsPtr documents = Documents::from_lengths(c.lengths);
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
                 .w1 = raw_or_null(x.w1),
                 .b1 = raw_or_null(x.b1),
                 .w2 = x.w2.raw(),
                 .b2 = x.b2.raw(),
                 .state = raw_or_null(x.state),
                 .cu_seqlens = documents->cu_seqlens().data(),
                 .phase = c.phase.empty() ? nullptr : c.phase.data()}};
  TttResult r{Tensor::zeros(x.q.shape(), DType::f64), Tensor::zeros(c.state_shape(), DType::f64), zeros_like(x)};
  a.d_o = data.d_o.raw();
  a.dfinal_state = raw_or_null(data.dfinal);
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

}  // namespace weft::testing
