#include "modules/families/fast_weights/fast_weights.h"

#include "autograd/ops/cast/cast.h"
#include "autograd/transfer.h"
#include "modules/families/fast_weights/fast_weights_backward_cpu.h"
#include "modules/families/operation_arguments.h"

namespace weft {
namespace {

std::size_t cpu_workspace(const FastWeightProblem& p, FastWeightPass pass) {
  return dispatch_real(p.dtype, "fast_weight_memory",
                       [&]<class T>() { return FastWeightWalk<T>(p, pass, nullptr).bytes(); });
}

constexpr Dispatch<FastWeightForward> kForward{
    .op = "fast_weight_memory forward",
    .cpu =
        [](const FastWeightForward& args, const Launch& launch) {
          dispatch_real(args.dtype, "fast_weight_memory", [&]<class T>() {
            FastWeightWalk<T>(args, FastWeightPass::forward, launch.workspace).forward(args);
          });
        },
    .cuda = WEFT_ON_CUDA(fast_weight_forward_cuda),
    .cpu_workspace = [](const FastWeightForward& args) { return cpu_workspace(args, FastWeightPass::forward); },
    .cuda_workspace = WEFT_ON_CUDA(fast_weight_forward_cuda_workspace)};
constexpr Dispatch<FastWeightBackward> kBackward{
    .op = "fast_weight_memory backward",
    .cpu =
        [](const FastWeightBackward& args, const Launch& launch) {
          dispatch_real(args.dtype, "fast_weight_memory", [&]<class T>() {
            FastWeightWalk<T>(args, FastWeightPass::backward, launch.workspace).backward(args);
          });
        },
    .cuda = WEFT_ON_CUDA(fast_weight_backward_cuda),
    .cpu_workspace = [](const FastWeightBackward& args) { return cpu_workspace(args, FastWeightPass::backward); },
    .cuda_workspace = WEFT_ON_CUDA(fast_weight_backward_cuda_workspace)};
constexpr Dispatch<FastWeightContinue> kContinue{
    .op = "fast_weight_memory continue",
    .cpu =
        [](const FastWeightContinue& args, const Launch& launch) {
          dispatch_real(args.dtype, "fast_weight_memory", [&]<class T>() {
            FastWeightWalk<T>(args, FastWeightPass::proceed, launch.workspace).proceed(args);
          });
        },
    .cpu_workspace = [](const FastWeightContinue& args) { return cpu_workspace(args, FastWeightPass::proceed); }};

// What backward reads: the inputs alone.
struct FastWeightSaved {
  FastWeightInputs in;
  FastWeights initial;
  DocumentsPtr documents;
  FastWeightConfig config;

  void backward(Backward& pass) const;
};

FastWeightProblem problem(const FastWeightInputs& in, const FastWeights& initial, const Documents& documents,
                          const FastWeightConfig& config, const Stream& stream) {
  return {.dtype = in.q.dtype(),
          .config = config,
          .T = in.q.dim(0),
          .N = documents.count_on(stream),
          .H = in.q.dim(1),
          .d_m = in.q.dim(2),
          .d_h = in.w0.dim(1),
          .q = in.q.value.raw(),
          .k = in.k.value.raw(),
          .v = in.v.value.raw(),
          .eta = in.eta.value.raw(),
          .mu = raw_or_null(in.mu.value),
          .lambda = raw_or_null(in.lambda.value),
          .w0 = in.w0.value.raw(),
          .w1 = in.w1.value.raw(),
          .w2 = in.w2.value.raw(),
          .cu_seqlens = documents.cu_seqlens_on(stream),
          .initial_weights = raw_or_null(initial.weights.value),
          .initial_momentum = raw_or_null(initial.momentum.value)};
}

void FastWeightSaved::backward(Backward& pass) const {
  FastWeightBackward args{problem(in, initial, *documents, config, pass.tape().stream())};
  const Tensor dout = pass.grad_or_zero(0);
  const Tensor dweights = pass.grad(1), dmomentum = pass.grad(2);
  args.dout = dout.raw();
  args.dfinal_weights = raw_or_null(dweights);
  args.dfinal_momentum = raw_or_null(dmomentum);
  GradientTargets gradients(pass);
  gradients.next(args.dq, args.write_dq);
  gradients.next(args.dk, args.write_dk);
  gradients.next(args.dv, args.write_dv);
  gradients.next(args.deta, args.write_deta);
  gradients.next(args.dmu, args.write_dmu);
  gradients.next(args.dlambda, args.write_dlambda);
  gradients.next(args.dw0, args.write_dw0);
  gradients.next(args.dw1, args.write_dw1);
  gradients.next(args.dw2, args.write_dw2);
  gradients.next(args.dinitial_weights, args.write_dinitial_weights);
  gradients.next(args.dinitial_momentum, args.write_dinitial_momentum);
  kBackward.run(pass, args);
}

// [N, H, P]
Shape state_shape(const FastWeightInputs& in, const Documents& documents) {
  return {documents.count(), in.q.dim(1), 3 * in.q.dim(2) * in.w0.dim(1)};
}

void check_inputs(const FastWeightInputs& in, const Documents& documents, const FastWeightConfig& config) {
  const Shape& q = in.q.shape();
  WEFT_CHECK(q.rank() == 3 && q[1] > 0 && q[2] > 0 && in.k.shape() == q && in.v.shape() == q,
             "fast_weight_memory: q {}, k {}, v {}", q.str(), in.k.shape().str(), in.v.shape().str());
  WEFT_CHECK(q[0] == documents.tokens(), "fast_weight_memory: {} tokens in q, {} in the documents", q[0],
             documents.tokens());
  WEFT_CHECK((in.eta.shape() == Shape{q[0], q[1], 3}), "fast_weight_memory: eta {} for q {}", in.eta.shape().str(),
             q.str());
  for (const Var* x : {&in.mu, &in.lambda}) {
    WEFT_CHECK(!x->value.defined() || (x->shape() == Shape{q[0], q[1]}), "fast_weight_memory: mu or lambda {} for q {}",
               x->shape().str(), q.str());
  }
  const Shape& w0 = in.w0.shape();
  WEFT_CHECK(w0.rank() == 3 && w0[0] == q[1] && w0[1] > 0 && w0[2] == q[2] && in.w2.shape() == w0 &&
                 (in.w1.shape() == Shape{q[1], q[2], w0[1]}),
             "fast_weight_memory: w0 {}, w1 {}, w2 {} for q {}", w0.str(), in.w1.shape().str(), in.w2.shape().str(),
             q.str());
  for (const Var* x : {&in.k, &in.v, &in.w0, &in.w1, &in.w2}) {
    WEFT_CHECK(x->dtype() == in.q.dtype(), "fast_weight_memory: {} among {}", name_of(x->dtype()),
               name_of(in.q.dtype()));
  }
  const DType rates = accumulator_dtype(in.q.dtype());
  for (const Var* x : {&in.eta, &in.mu, &in.lambda}) {
    WEFT_CHECK(!x->value.defined() || x->dtype() == rates, "fast_weight_memory: rates in {}, expected {}",
               name_of(x->dtype()), name_of(rates));
  }
  WEFT_CHECK(config.chunk > 0, "fast_weight_memory: chunks of {} tokens", config.chunk);
}

// Records the node; the final state is computed if `final` is given.
std::array<Var, 3> run(Tape& tape, const FastWeightInputs& in, const FastWeights& initial,
                       const DocumentsPtr& documents, const FastWeightConfig& config, bool final_state) {
  check_inputs(in, *documents, config);
  FastWeightForward args{problem(in, initial, *documents, config, tape.stream())};
  const Tensor out = tape.empty(in.q.shape(), in.q.dtype());
  args.out = out.raw();
  Tensor weights, momentum;
  if (final_state) {
    weights = tape.empty({args.N, args.H, 3 * args.d_m * args.d_h}, accumulator_dtype(in.q.dtype()));
    momentum = tape.empty(weights.shape(), weights.dtype());
    args.final_weights = weights.raw();
    args.final_momentum = momentum.raw();
  }
  kForward.run(tape, args);
  return tape.record(
      "fast_weight_memory",
      {in.q, in.k, in.v, in.eta, in.mu, in.lambda, in.w0, in.w1, in.w2, initial.weights, initial.momentum},
      std::array{out, weights, momentum}, [&] {
        return FastWeightSaved{in, initial, documents, config};
      });
}

}  // namespace

Var fast_weight_memory(Tape& tape, const FastWeightInputs& in, const DocumentsPtr& documents,
                       const FastWeightConfig& config) {
  return run(tape, in, {}, documents, config, false)[0];
}

FastWeightOutput fast_weight_memory_with_state(Tape& tape, const FastWeightInputs& in, const FastWeights& initial,
                                               const DocumentsPtr& documents, const FastWeightConfig& config) {
  const bool given = initial.weights.value.defined();
  WEFT_CHECK(given == initial.momentum.value.defined(), "fast_weight_memory: initial weights and momentum go together");
  if (given) {
    check_inputs(in, *documents, config);
    const Shape expected = state_shape(in, *documents);
    for (const Var* x : {&initial.weights, &initial.momentum}) {
      WEFT_CHECK(x->shape() == expected && x->dtype() == accumulator_dtype(in.q.dtype()),
                 "fast_weight_memory: initial state {} {}, expected {} {}", x->shape().str(), name_of(x->dtype()),
                 expected.str(), name_of(accumulator_dtype(in.q.dtype())));
    }
  }
  const auto [out, weights, momentum] = run(tape, in, initial, documents, config, true);
  return {out, {weights, momentum}};
}

FastWeightState::FastWeightState(std::int64_t sequences, const Tensor& w0, const Tensor& w1, const Tensor& w2,
                                 std::int64_t chunk, const Place& place)
    : pending(static_cast<std::size_t>(sequences), 0), place_(place) {
  const std::int64_t H = w0.dim(0), d_h = w0.dim(1), d_m = w0.dim(2), matrix = d_h * d_m;
  const DType exact = accumulator_dtype(place.dtype);
  weights = Tensor({sequences, H, 3 * matrix}, exact, place.lasting);
  momentum = place.zeros(weights.shape(), exact);
  keys = place.zeros({sequences, H, chunk, d_m}, place.dtype);
  values = place.zeros(keys.shape(), place.dtype);
  rates = place.zeros({sequences, H, chunk, 5}, exact);
  Tape tape(place.arena, Tape::Mode::inference, place.stream);
  const Tensor parts = weights.reshape({sequences * H * 3, matrix});
  std::int64_t at = 0;
  for (const Tensor* w : {&w0, &w2, &w1}) {
    const Tensor heads = cast(tape, Tape::constant(*w), exact).value;
    for (std::int64_t i = 0; i < sequences * H; ++i) {
      copy(parts.rows(3 * i + at, 3 * i + at + 1), heads.rows(i % H, i % H + 1), place.stream);
    }
    ++at;
  }
}

FastWeightState::FastWeightState(const FastWeightState& other) : pending(other.pending), place_(other.place_) {
  weights = to_memory(other.weights, place_.lasting, place_.stream);
  momentum = to_memory(other.momentum, place_.lasting, place_.stream);
  keys = to_memory(other.keys, place_.lasting, place_.stream);
  values = to_memory(other.values, place_.lasting, place_.stream);
  rates = to_memory(other.rates, place_.lasting, place_.stream);
}

std::size_t FastWeightState::bytes() const {
  std::size_t total = pending.size() * sizeof(std::int32_t);
  for (const Tensor* t : {&weights, &momentum, &keys, &values, &rates}) total += t->nbytes();
  return total;
}

double FastWeightState::bytes_for(std::int64_t H, std::int64_t d_m, std::int64_t d_h, std::int64_t chunk, DType dtype) {
  const std::int64_t elements = H * (2 * 3 * d_m * d_h + chunk * (2 * d_m + 5));
  return static_cast<double>(elements) * static_cast<double>(size_of(dtype)) + sizeof(std::int32_t);
}

namespace {

// What is kept of pending tokens: a tensor of new tokens [T, ...], and rows [N L, ...] of the state.
struct PendingRows {
  Var fresh;
  Tensor kept;
};

std::array<PendingRows, 5> pending_rows(const FastWeightInputs& in, const FastWeightState& state) {
  const std::int64_t rows = state.keys.dim(0) * state.keys.dim(2), H = in.q.dim(1), d_m = in.q.dim(2);
  const Tensor rates = state.rates.reshape({5 * rows * H});
  return {{{in.k, state.keys.reshape({rows, H, d_m})},
           {in.v, state.values.reshape({rows, H, d_m})},
           {in.eta, rates.rows(0, 3 * rows * H).reshape({rows, H, 3})},
           {in.mu, rates.rows(3 * rows * H, 4 * rows * H).reshape({rows, H})},
           {in.lambda, rates.rows(4 * rows * H, 5 * rows * H).reshape({rows, H})}}};
}

// Where kernels walk whole rows. Tokens that complete no chunk are read with the weights as they are, and kept; those
// that do go through once more with the pending ones before them.
void continue_in_rows(Tape& tape, const FastWeightInputs& in, const Documents& documents,
                      const FastWeightConfig& config, FastWeightState& state, const Tensor& out) {
  const std::int64_t N = documents.count(), L = config.chunk;
  const FastWeights start{Tape::constant(state.weights), Tape::constant(state.momentum)};
  const std::array<PendingRows, 5> kept = pending_rows(in, state);
  const auto copy_rows = [&](const Tensor& to, std::int64_t at, const Tensor& from, std::int64_t begin,
                             std::int64_t rows) {
    if (rows > 0) copy(to.rows(at, at + rows), from.rows(begin, begin + rows), tape.stream());
  };
  std::vector<std::int32_t> cu{0};
  bool completes = false;
  for (std::int64_t n = 0; n < N; ++n) {
    const std::int32_t length = state.pending[static_cast<std::size_t>(n)] + documents.length(n);
    completes = completes || length >= L;
    cu.push_back(cu.back() + length);
  }
  if (!completes) {
    FastWeightForward args{problem(in, start, documents, config, tape.stream())};
    args.out = out.raw();
    kForward.run(tape, args);
    for (std::int64_t n = 0; n < N; ++n) {
      std::int32_t& pending = state.pending[static_cast<std::size_t>(n)];
      for (const PendingRows& rows : kept) {
        if (!rows.fresh.value.defined()) continue;
        copy_rows(rows.kept, n * L + pending, rows.fresh.value, documents.begin(n), documents.length(n));
      }
      pending += documents.length(n);
    }
    return;
  }
  const Documents joined(cu);
  const auto join = [&](const Var& fresh, const Tensor& before) {
    if (!fresh.value.defined()) return Var{};
    Shape shape = fresh.shape();
    shape.set(0, joined.tokens());
    const Tensor all = tape.empty(shape, fresh.dtype());
    // Queries of pending tokens have been answered.
    if (!before.defined()) fill_zero(all, tape.stream());
    for (std::int64_t n = 0; n < N; ++n) {
      const std::int64_t pending = state.pending[static_cast<std::size_t>(n)];
      if (before.defined()) copy_rows(all, joined.begin(n), before, n * L, pending);
      copy_rows(all, joined.begin(n) + pending, fresh.value, documents.begin(n), documents.length(n));
    }
    return Tape::constant(all);
  };
  FastWeightInputs all = in;
  all.q = join(in.q, {});
  Var* const parts[] = {&all.k, &all.v, &all.eta, &all.mu, &all.lambda};
  for (std::size_t i = 0; i < kept.size(); ++i) *parts[i] = join(kept[i].fresh, kept[i].kept);
  const Tensor answers = tape.empty(all.q.shape(), all.q.dtype());
  const Tensor weights = tape.empty(state.weights.shape(), state.weights.dtype());
  const Tensor momentum = tape.empty(state.momentum.shape(), state.momentum.dtype());
  FastWeightForward args{problem(all, start, joined, config, tape.stream())};
  args.out = answers.raw();
  args.final_weights = weights.raw();
  args.final_momentum = momentum.raw();
  kForward.run(tape, args);
  copy(state.weights, weights, tape.stream());
  copy(state.momentum, momentum, tape.stream());
  for (std::int64_t n = 0; n < N; ++n) {
    std::int32_t& pending = state.pending[static_cast<std::size_t>(n)];
    copy_rows(out, documents.begin(n), answers, joined.begin(n) + pending, documents.length(n));
    pending = static_cast<std::int32_t>(joined.length(n) % L);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      if (parts[i]->value.defined()) copy_rows(kept[i].kept, n * L, parts[i]->value, joined.end(n) - pending, pending);
    }
  }
}

}  // namespace

Tensor fast_weight_continue(Tape& tape, const FastWeightInputs& in, const Documents& documents,
                            const FastWeightConfig& config, FastWeightState& state) {
  check_inputs(in, documents, config);
  const Shape expected = state_shape(in, documents);
  WEFT_CHECK(state.weights.shape() == expected && state.weights.dtype() == accumulator_dtype(in.q.dtype()) &&
                 state.keys.dim(2) == config.chunk,
             "fast_weight_memory: state {} {} of chunks of {} tokens, expected {} {} and {}",
             state.weights.shape().str(), name_of(state.weights.dtype()), state.keys.dim(2), expected.str(),
             name_of(accumulator_dtype(in.q.dtype())), config.chunk);
  const Tensor out = tape.empty(in.q.shape(), in.q.dtype());
  if (!tape.device().is_cpu()) {
    continue_in_rows(tape, in, documents, config, state, out);
    return out;
  }
  FastWeightContinue args{problem(in, {}, documents, config, tape.stream())};
  args.pending = state.pending.data();
  args.pending_keys = state.keys.raw();
  args.pending_values = state.values.raw();
  args.pending_rates = state.rates.raw();
  args.weights = state.weights.raw();
  args.momentum = state.momentum.raw();
  args.out = out.raw();
  kContinue.run(tape, args);
  for (std::int64_t n = 0; n < documents.count(); ++n) {
    std::int32_t& pending = state.pending[static_cast<std::size_t>(n)];
    pending = static_cast<std::int32_t>((pending + documents.length(n)) % config.chunk);
  }
  return out;
}

// Products in units of d_m d_h per row, element-wise work left out. Backward reads and takes the inner gradients again,
// walks the writes once more, twice with checkpoints, and differentiates what both did.
FastWeightCost fast_weight_cost(const FastWeightConfig& config, std::int64_t tokens, std::int64_t document_length,
                                std::int64_t H, std::int64_t d_m, std::int64_t d_h) {
  if (document_length <= 0) return {};
  const bool l2 = config.loss == InnerLoss::l2;
  const double documents = static_cast<double>(tokens) / static_cast<double>(document_length);
  const std::int64_t writes = (document_length - 1) / config.chunk;  // the last token's chunk is not read again
  const double matrix = static_cast<double>(d_m * d_h), heads = static_cast<double>(H);
  const auto small = static_cast<double>(std::min(d_m, d_h)), large = static_cast<double>(std::max(d_m, d_h));
  const double step = 4.0 * small * small * large + 2.0 * small * small * small;
  const double orthogonalise = config.orthogonalise ? 3.0 * 5.0 * step : 0.0;
  const double reads = heads * static_cast<double>(tokens) * matrix;
  const double chunks = heads * documents * static_cast<double>(writes);
  const double written = chunks * static_cast<double>(config.chunk) * matrix;
  const double write = (l2 ? 14.0 : 12.0) * written + chunks * orthogonalise;
  const double walks = writes > 32 ? 2.0 : 1.0;
  return {.forward_flops = 6.0 * reads + write,
          .backward_flops = 16.0 * reads + walks * write + (l2 ? 36.0 : 30.0) * written + 3.0 * chunks * orthogonalise};
}

}  // namespace weft
