// What the tests of titans_memory share: a problem declared by its shape, and the two ways to evaluate it.
#pragma once

#include <numeric>

#include "modules/families/memory_walk_test_cases.h"
#include "modules/families/operation_arguments.h"
#include "modules/families/titans_memory/titans_memory.h"
#include "modules/families/titans_memory/titans_memory_reference.h"
#include "tests/support/random.h"

namespace weft::testing {

struct TitansCase {
  std::vector<std::int32_t> lengths;
  std::int64_t m = 0;
  std::int64_t H = 2, d_k = 5, d_v = 3, C = 16;
  std::vector<std::int32_t> phase = {};  // of the initial states; none: the documents start from the weights
  bool final_gradient = true;
  double rate = 0.1;  // largest

  std::int64_t tokens() const { return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}); }
  std::int64_t documents() const { return static_cast<std::int64_t>(lengths.size()); }
  bool continues() const { return !phase.empty(); }
  std::int64_t P() const { return titans_memory_size(d_k, m, d_v); }
  Shape state_shape() const { return {documents(), H, 3, P()}; }
  std::string str() const {
    return fmt::format("T {} N {} H {} d_k {} d_v {} m {} C {} state {} dST {}", tokens(), documents(), H, d_k, d_v, m,
                       C, continues(), final_gradient);
  }
};

// Tensors by role, in the order of the operation's inputs; undefined where the case has none.
struct TitansTensors {
  Tensor q, k, v, keep, momentum, rate, w1, w2, state;

  Fields fields(Role role = Role::value) {
    return {{"q", &q, RowsOf::tokens, role},
            {"k", &k, RowsOf::tokens, role},
            {"v", &v, RowsOf::tokens, role},
            {"keep", &keep, RowsOf::tokens, role},
            {"momentum", &momentum, RowsOf::tokens, role},
            {"rate", &rate, RowsOf::tokens, role},
            {"w1", &w1, RowsOf::parameters, role},
            {"w2", &w2, RowsOf::parameters, role},
            {"state", &state, RowsOf::documents, role}};
  }
};

using TitansData = MemoryWalkData<TitansTensors>;
using TitansResult = MemoryWalkResult<TitansTensors>;

// fp64.
inline TitansData make_data(const TitansCase& c, std::uint64_t seed = 1) {
  const std::int64_t T = c.tokens();
  const double unit = 1.0 / std::sqrt(static_cast<double>(c.d_k));  // keys of about unit length
  TitansData data;
  data.x = {.q = normal({T, c.H, c.d_k}, seed, unit),
            .k = normal({T, c.H, c.d_k}, seed + 1, unit),
            .v = normal({T, c.H, c.d_v}, seed + 2),
            .keep = uniform({T, c.H}, seed + 3, 0.8, 1.0),
            .momentum = uniform({T, c.H}, seed + 4, 0.1, 0.9),
            .rate = uniform({T, c.H}, seed + 5, 0.0, c.rate),
            .w1 = c.m > 0 ? normal({c.H, c.d_k, c.m}, seed + 10) : Tensor{},
            .w2 = normal({c.H, c.m > 0 ? c.m : c.d_k, c.d_v}, seed + 6, c.m > 0 ? 0.5 : 1.0),
            .state = c.continues() ? normal(c.state_shape(), seed + 7, c.m > 0 ? 0.5 : 1.0) : Tensor{}};
  data.d_o = normal({T, c.H, c.d_v}, seed + 8);
  if (c.final_gradient) data.dfinal = normal(c.state_shape(), seed + 9);
  return data;
}

inline TitansOutput titans_memory(Tape& tape, const TitansCase& c, std::span<const Var> x,
                                  const DocumentsPtr& documents) {
  const TitansStart start{x[8], c.phase};
  return titans_memory(tape, {x[0], x[1], x[2], x[3], x[4], x[5]}, {x[6], x[7]}, c.C, documents, FinalState::keep,
                       c.continues() ? &start : nullptr);
}

inline TitansResult evaluate(const TitansCase& c, const TitansData& data) {
  return run_on_tape<TitansResult>(data, [&](Tape& tape, std::span<const Var> x) {
    const TitansOutput out = titans_memory(tape, c, x, Documents::from_lengths(c.lengths));
    return std::vector{out.o, out.final_state};
  });
}

// The oracle on fp64 data.
inline TitansResult evaluate_reference(const TitansCase& c, const TitansData& data) {
  const DocumentsPtr documents = Documents::from_lengths(c.lengths);
  const TitansTensors& x = data.x;
  TitansBackward a{{.dtype = DType::f64,
                    .T = c.tokens(),
                    .N = c.documents(),
                    .H = c.H,
                    .d_k = c.d_k,
                    .d_v = c.d_v,
                    .m = c.m,
                    .C = c.C,
                    .q = x.q.raw(),
                    .k = x.k.raw(),
                    .v = x.v.raw(),
                    .keep = x.keep.raw(),
                    .momentum = x.momentum.raw(),
                    .rate = x.rate.raw(),
                    .w1 = raw_or_null(x.w1),
                    .w2 = raw_or_null(x.w2),
                    .state = raw_or_null(x.state),
                    .cu_seqlens = documents->cu_seqlens().data(),
                    .phase = c.phase.empty() ? nullptr : c.phase.data()}};
  TitansResult r{Tensor::zeros(x.v.shape(), DType::f64), Tensor::zeros(c.state_shape(), DType::f64), zeros_like(x)};
  a.d_o = data.d_o.raw();
  a.dfinal_state = raw_or_null(data.dfinal);
  a.dq = r.d.q.raw();
  a.dk = r.d.k.raw();
  a.dv = r.d.v.raw();
  a.dkeep = r.d.keep.raw();
  a.dmomentum = r.d.momentum.raw();
  a.drate = r.d.rate.raw();
  a.dw1 = raw_or_null(r.d.w1);
  a.dw2 = raw_or_null(r.d.w2);
  a.dstate = raw_or_null(r.d.state);
  for (std::int64_t n = 0; n < c.documents(); ++n) {
    for (std::int64_t h = 0; h < c.H; ++h) {
      TitansReference reference(a, n, h);
      reference.forward(r.o.data<double>(), r.final_state.data<double>());
      reference.backward(a);
    }
  }
  return r;
}

}  // namespace weft::testing
