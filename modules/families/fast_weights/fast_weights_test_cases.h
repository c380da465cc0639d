// What the tests of the fast-weight memory share: a problem declared by its shape, and the two ways to evaluate it.
#pragma once

#include <cmath>
#include <fmt/format.h>
#include <numeric>

#include "autograd/transfer.h"
#include "modules/families/fast_weights/fast_weights.h"
#include "modules/families/fast_weights/fast_weights_reference.h"
#include "modules/families/operation_arguments.h"
#include "tests/support/gpu.h"
#include "tests/support/packed_tensors.h"
#include "tests/support/random.h"

namespace weft::testing {

struct MemoryCase {
  std::vector<std::int32_t> lengths;
  FastWeightConfig config;
  std::int64_t H = 2, d_m = 5, d_h = 4;
  bool momentum = true, forget = true;
  bool initial_state = false;
  bool final_gradient = true;
  double rate = 0.1;  // largest learning rate

  std::int64_t tokens() const { return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0}); }
  std::int64_t documents() const { return static_cast<std::int64_t>(lengths.size()); }
  Shape state_shape() const { return {documents(), H, 3 * d_m * d_h}; }
  std::string str() const {
    return fmt::format(
        "T {} N {} H {} d_m {} d_h {} L {} loss {} norm {} residual {} NS {} mu {} lambda {} initial {} final {}",
        tokens(), documents(), H, d_m, d_h, config.chunk, static_cast<int>(config.loss), static_cast<int>(config.norm),
        config.residual, config.orthogonalise, momentum, forget, initial_state, final_gradient);
  }
};

// Every norm mode with every loss, with and without orthogonalisation.
inline std::vector<FastWeightConfig> all_configs(std::int64_t chunk) {
  std::vector<FastWeightConfig> list;
  for (const NormMode norm : {NormMode::none, NormMode::post, NormMode::pre, NormMode::read_raw}) {
    for (const InnerLoss loss : {InnerLoss::dot, InnerLoss::l2}) {
      for (const bool orthogonalise : {false, true}) {
        list.push_back({.chunk = chunk,
                        .loss = loss,
                        .norm = norm,
                        .residual = loss == InnerLoss::l2,
                        .orthogonalise = orthogonalise});
      }
    }
  }
  return list;
}

// Inputs and the gradients that arrive; undefined where the case has none.
struct MemoryTensors {
  Tensor q, k, v, eta, mu, lambda, w0, w1, w2, weights, momentum;
  Tensor dout, dweights, dmomentum;

  Fields fields() {
    return {{"q", &q, RowsOf::tokens},
            {"k", &k, RowsOf::tokens},
            {"v", &v, RowsOf::tokens},
            {"eta", &eta, RowsOf::tokens},
            {"mu", &mu, RowsOf::tokens},
            {"lambda", &lambda, RowsOf::tokens},
            {"w0", &w0, RowsOf::parameters},
            {"w1", &w1, RowsOf::parameters},
            {"w2", &w2, RowsOf::parameters},
            {"initial weights", &weights, RowsOf::documents},
            {"initial momentum", &momentum, RowsOf::documents},
            {"d out", &dout, RowsOf::tokens, Role::gradient},
            {"d final weights", &dweights, RowsOf::documents, Role::gradient},
            {"d final momentum", &dmomentum, RowsOf::documents, Role::gradient}};
  }
};

inline MemoryTensors make_tensors(const MemoryCase& c, std::uint64_t seed = 1) {
  const std::int64_t T = c.tokens();
  const Shape tokens{T, c.H, c.d_m};
  const double narrow = 1.0 / std::sqrt(static_cast<double>(c.d_m)), wide = 1.0 / std::sqrt(static_cast<double>(c.d_h));
  MemoryTensors t{.q = normal(tokens, seed, narrow),
                  .k = normal(tokens, seed + 1, narrow),
                  .v = normal(tokens, seed + 2),
                  .eta = uniform({T, c.H, 3}, seed + 3, 0.0, c.rate),
                  .mu = {},
                  .lambda = {},
                  .w0 = normal({c.H, c.d_h, c.d_m}, seed + 4, narrow),
                  .w1 = normal({c.H, c.d_m, c.d_h}, seed + 5, wide),
                  .w2 = normal({c.H, c.d_h, c.d_m}, seed + 6, narrow),
                  .weights = {},
                  .momentum = {},
                  .dout = normal(tokens, seed + 7),
                  .dweights = {},
                  .dmomentum = {}};
  if (c.momentum) t.mu = uniform({T, c.H}, seed + 8, 0.0, 1.0);
  if (c.forget) t.lambda = uniform({T, c.H}, seed + 9, 0.0, 0.3);
  if (c.initial_state) {
    t.weights = normal(c.state_shape(), seed + 10, narrow);
    t.momentum = normal(c.state_shape(), seed + 11, 0.3 * narrow);
  }
  if (c.final_gradient) {
    t.dweights = normal(c.state_shape(), seed + 12);
    t.dmomentum = normal(c.state_shape(), seed + 13);
  }
  return t;
}

// Undefined where the case has no such input.
struct MemoryResult {
  Tensor out, weights, momentum;
  Tensor dq, dk, dv, deta, dmu, dlambda, dw0, dw1, dw2, dinitial_weights, dinitial_momentum;

  Fields fields() {
    return {{"out", &out, RowsOf::tokens},
            {"final weights", &weights, RowsOf::documents},
            {"final momentum", &momentum, RowsOf::documents},
            {"dq", &dq, RowsOf::tokens, Role::gradient},
            {"dk", &dk, RowsOf::tokens, Role::gradient},
            {"dv", &dv, RowsOf::tokens, Role::gradient},
            {"deta", &deta, RowsOf::tokens, Role::gradient},
            {"dmu", &dmu, RowsOf::tokens, Role::gradient},
            {"dlambda", &dlambda, RowsOf::tokens, Role::gradient},
            {"dw0", &dw0, RowsOf::parameters, Role::gradient},
            {"dw1", &dw1, RowsOf::parameters, Role::gradient},
            {"dw2", &dw2, RowsOf::parameters, Role::gradient},
            {"initial weights", &dinitial_weights, RowsOf::documents, Role::gradient},
            {"initial momentum", &dinitial_momentum, RowsOf::documents, Role::gradient}};
  }
};

inline DocumentsPtr documents_of(const MemoryCase& c) {
  return Documents::from_lengths(c.lengths);
}

inline FastWeightInputs constants(const MemoryTensors& t) {
  const auto constant = [](const Tensor& x) { return x.defined() ? Tape::constant(x) : Var{}; };
  return {constant(t.q),      constant(t.k),  constant(t.v),  constant(t.eta), constant(t.mu),
          constant(t.lambda), constant(t.w0), constant(t.w1), constant(t.w2)};
}

// The operation on a tape in hostile memory; the dtype is that of the inputs.
inline MemoryResult evaluate(const MemoryCase& c, const MemoryTensors& in) {
  const Stream stream = on_gpu() ? gpu_stream() : Stream{};
  Tape tape(on_gpu() ? gpu_memory() : heap_allocator(Hygiene::hostile), Tape::Mode::record, stream);
  const auto leaf = [&](const Tensor& x) { return x.defined() ? tape.leaf(tape.here(x)) : Var{}; };
  const auto parameter = [&](const Tensor& x) { return tape.leaf(tape.here(x), accumulator_dtype(x.dtype())); };
  const FastWeightInputs x{leaf(in.q),      leaf(in.k),       leaf(in.v),       leaf(in.eta),    leaf(in.mu),
                           leaf(in.lambda), parameter(in.w0), parameter(in.w1), parameter(in.w2)};
  const FastWeights initial{leaf(in.weights), leaf(in.momentum)};
  std::vector<Var> outputs;
  std::vector<Tensor> seeds{tape.here(in.dout)};
  MemoryResult r;
  const auto keep = [&](const Tensor& t) { return cast(to_host(t, stream), t.dtype()); };
  if (in.dweights.defined()) {
    const FastWeightOutput y = fast_weight_memory_with_state(tape, x, initial, documents_of(c), c.config);
    outputs = {y.out, y.final.weights, y.final.momentum};
    seeds = {tape.here(in.dout), tape.here(in.dweights), tape.here(in.dmomentum)};
    r.weights = keep(y.final.weights.value);
    r.momentum = keep(y.final.momentum.value);
  } else if (in.weights.defined()) {
    outputs = {fast_weight_memory_with_state(tape, x, initial, documents_of(c), c.config).out};
  } else {
    outputs = {fast_weight_memory(tape, x, documents_of(c), c.config)};
  }
  r.out = keep(outputs[0].value);
  tape.backward(outputs, seeds);
  const auto gradient = [&](const Var& v) {
    if (!v.value.defined()) return Tensor{};
    const Tensor g = tape.gradient(v);
    return g.defined() ? keep(g) : Tensor::zeros(v.shape(), v.dtype());
  };
  r.dq = gradient(x.q);
  r.dk = gradient(x.k);
  r.dv = gradient(x.v);
  r.deta = gradient(x.eta);
  r.dmu = gradient(x.mu);
  r.dlambda = gradient(x.lambda);
  r.dw0 = gradient(x.w0);
  r.dw1 = gradient(x.w1);
  r.dw2 = gradient(x.w2);
  r.dinitial_weights = gradient(initial.weights);
  r.dinitial_momentum = gradient(initial.momentum);
  return r;
}

// The oracle on fp64 inputs.
inline MemoryResult evaluate_reference(const MemoryCase& c, const MemoryTensors& in) {
  const DocumentsPtr documents = documents_of(c);
  const auto like = [](const Tensor& t) { return t.defined() ? Tensor::zeros(t.shape(), DType::f64) : Tensor{}; };
  MemoryResult r{.out = like(in.q),
                 .weights = like(in.dweights),
                 .momentum = like(in.dmomentum),
                 .dq = like(in.q),
                 .dk = like(in.k),
                 .dv = like(in.v),
                 .deta = like(in.eta),
                 .dmu = like(in.mu),
                 .dlambda = like(in.lambda),
                 .dw0 = like(in.w0),
                 .dw1 = like(in.w1),
                 .dw2 = like(in.w2),
                 .dinitial_weights = like(in.weights),
                 .dinitial_momentum = like(in.momentum)};
  const FastWeightProblem problem{.dtype = DType::f64,
                                  .config = c.config,
                                  .T = c.tokens(),
                                  .N = c.documents(),
                                  .H = c.H,
                                  .d_m = c.d_m,
                                  .d_h = c.d_h,
                                  .q = raw_or_null(in.q),
                                  .k = raw_or_null(in.k),
                                  .v = raw_or_null(in.v),
                                  .eta = raw_or_null(in.eta),
                                  .mu = raw_or_null(in.mu),
                                  .lambda = raw_or_null(in.lambda),
                                  .w0 = raw_or_null(in.w0),
                                  .w1 = raw_or_null(in.w1),
                                  .w2 = raw_or_null(in.w2),
                                  .cu_seqlens = documents->cu_seqlens().data()};
  FastWeightForward forward{problem};
  forward.initial_weights = raw_or_null(in.weights);
  forward.initial_momentum = raw_or_null(in.momentum);
  forward.out = raw_or_null(r.out);
  forward.final_weights = raw_or_null(r.weights);
  forward.final_momentum = raw_or_null(r.momentum);
  FastWeightBackward backward{problem};
  backward.dout = raw_or_null(in.dout);
  backward.dfinal_weights = raw_or_null(in.dweights);
  backward.dfinal_momentum = raw_or_null(in.dmomentum);
  backward.dq = raw_or_null(r.dq);
  backward.dk = raw_or_null(r.dk);
  backward.dv = raw_or_null(r.dv);
  backward.deta = raw_or_null(r.deta);
  backward.dmu = raw_or_null(r.dmu);
  backward.dlambda = raw_or_null(r.dlambda);
  backward.dw0 = raw_or_null(r.dw0);
  backward.dw1 = raw_or_null(r.dw1);
  backward.dw2 = raw_or_null(r.dw2);
  backward.dinitial_weights = raw_or_null(r.dinitial_weights);
  backward.dinitial_momentum = raw_or_null(r.dinitial_momentum);
  fast_weight_reference::memory(forward, &backward);
  return r;
}

}  // namespace weft::testing
