#include "modules/families/ttt/ttt_memory.h"

#include "modules/families/operation_arguments.h"
#include "modules/families/ttt/ttt_batch_cpu.h"

namespace weft {
namespace {

template <class T>
using Walk = MemoryWalk<T, TttBatchCpu<T>>;

template <class T>
void forward_cpu(const TttForward& a, void* workspace) {
  Walk<T>(a, false, workspace).forward(static_cast<T*>(a.o), static_cast<T*>(a.final_state));
}

template <class T>
void backward_cpu(const TttBackward& a, void* workspace) {
  Walk<T> walk(a, true, workspace);
  walk.backward(a, static_cast<const T*>(a.dfinal_state), static_cast<T*>(a.dstate), a.write_dstate);
  std::int64_t at = 0;
  const auto sum = [&](std::int64_t width, void* target, Write write) {
    walk.sum_lines(at, width, target, write);
    at += width;
  };
  if (a.m > 0) {
    sum(a.d * a.m, a.dw1, a.write_dw1);
    sum(a.m, a.db1, a.write_db1);
  }
  sum((a.m > 0 ? a.m : a.d) * a.d, a.dw2, a.write_dw2);
  sum(a.d, a.db2, a.write_db2);
  sum(a.d, a.dgamma, a.write_dgamma);
  sum(a.d, a.dbeta, a.write_dbeta);
  walk.sum_lines_of_heads(at, a.C, a.doffset, a.write_doffset);
}

std::size_t cpu_workspace(const TttProblem& p, bool backward) {
  return dispatch_real(p.dtype, "ttt_memory", [&]<class T>() { return Walk<T>(p, backward, nullptr).bytes(); });
}

constexpr Dispatch<TttForward> kForward{
    .op = "ttt_memory forward",
    .cpu =
        [](const TttForward& args, const Launch& launch) {
          dispatch_real(args.dtype, "ttt_memory", [&]<class T>() { forward_cpu<T>(args, launch.workspace); });
        },
    .cuda = WEFT_ON_CUDA(ttt_forward_cuda),
    .cpu_workspace = [](const TttForward& args) { return cpu_workspace(args, false); },
    .cuda_workspace = WEFT_ON_CUDA(ttt_forward_cuda_workspace)};
constexpr Dispatch<TttBackward> kBackward{
    .op = "ttt_memory backward",
    .cpu =
        [](const TttBackward& args, const Launch& launch) {
          dispatch_real(args.dtype, "ttt_memory", [&]<class T>() { backward_cpu<T>(args, launch.workspace); });
        },
    .cuda = WEFT_ON_CUDA(ttt_backward_cuda),
    .cpu_workspace = [](const TttBackward& args) { return cpu_workspace(args, true); },
    .cuda_workspace = WEFT_ON_CUDA(ttt_backward_cuda_workspace)};

// What backward reads: the inputs alone.
struct TttSaved {
  Tensor q, k, v, rate, offset, gamma, beta, w1, b1, w2, b2, state;
  DocumentsPtr documents;
  Tensor phase;
  FinalState final_state;

  TttProblem problem(const Stream& stream) const;
  void backward(Backward& pass) const;
};

TttProblem TttSaved::problem(const Stream& stream) const {
  return {.dtype = q.dtype(),
          .T = q.dim(0),
          .N = documents->count_on(stream),
          .H = q.dim(1),
          .d = q.dim(2),
          .m = w1.defined() ? w1.dim(2) : 0,
          .C = offset.dim(0),
          .q = q.raw(),
          .k = k.raw(),
          .v = v.raw(),
          .rate = rate.raw(),
          .offset = offset.raw(),
          .gamma = gamma.raw(),
          .beta = beta.raw(),
          .w1 = raw_or_null(w1),
          .b1 = raw_or_null(b1),
          .w2 = w2.raw(),
          .b2 = b2.raw(),
          .state = raw_or_null(state),
          .cu_seqlens = documents->cu_seqlens_on(stream),
          .phase = phase.defined() ? phase.data<std::int32_t>() : nullptr};
}

void TttSaved::backward(Backward& pass) const {
  TttBackward args{problem(pass.tape().stream())};
  const Tensor d_o = pass.grad_or_zero(0);
  const Tensor dfinal = final_state == FinalState::keep ? pass.grad(1) : Tensor{};
  args.d_o = d_o.raw();
  args.dfinal_state = raw_or_null(dfinal);
  GradientTargets gradients(pass);
  gradients.next(args.dq, args.write_dq);
  gradients.next(args.dk, args.write_dk);
  gradients.next(args.dv, args.write_dv);
  gradients.next(args.drate, args.write_drate);
  gradients.next(args.doffset, args.write_doffset);
  gradients.next(args.dgamma, args.write_dgamma);
  gradients.next(args.dbeta, args.write_dbeta);
  gradients.next(args.dw1, args.write_dw1);
  gradients.next(args.db1, args.write_db1);
  gradients.next(args.dw2, args.write_dw2);
  gradients.next(args.db2, args.write_db2);
  gradients.next(args.dstate, args.write_dstate);
  kBackward.run(pass, args);
}

void check_inputs(const TttInputs& in, const TttWeights& w, const Documents& documents, const TttStart* start) {
  WEFT_CHECK(in.q.shape().rank() == 3 && in.q.dim(1) > 0 && in.q.dim(2) > 0, "ttt_memory: q {}", in.q.shape().str());
  const std::int64_t T = in.q.dim(0), H = in.q.dim(1), d = in.q.dim(2);
  const auto check = [&](const char* name, const Var& x, const Shape& expected) {
    check_input("ttt_memory", name, x, expected, in.q.dtype());
  };
  const auto check_vector = [&](const char* name, const Var& x, const Shape& expected) {
    check_input("ttt_memory", name, x, expected, accumulator_dtype(in.q.dtype()));
  };
  WEFT_CHECK(documents.tokens() == T, "ttt_memory: {} tokens in q, {} in the documents", T, documents.tokens());
  check("k", in.k, {T, H, d});
  check("v", in.v, {T, H, d});
  check_vector("rate", in.rate, {T, H});
  WEFT_CHECK(in.offset.shape().rank() == 1 && in.offset.dim(0) > 0, "ttt_memory: offset {}, expected [b]",
             in.offset.shape().str());
  check_vector("offset", in.offset, {in.offset.dim(0)});
  check_vector("gamma", in.gamma, {H, d});
  check_vector("beta", in.beta, {H, d});
  std::int64_t m = 0, into = d;
  if (w.w1.value.defined()) {
    WEFT_CHECK(w.w1.shape().rank() == 3 && w.w1.dim(2) > 0, "ttt_memory: w1 {}, expected [H,d,m]", w.w1.shape().str());
    into = m = w.w1.dim(2);
    check("w1", w.w1, {H, d, m});
    check("b1", w.b1, {H, m});
  }
  check("w2", w.w2, {H, into, d});
  check("b2", w.b2, {H, d});
  if (start == nullptr) return;
  check_vector("state", start->state, {documents.count(), H, 2 * ttt_memory_size(d, m)});
  check_phases("ttt_memory", start->phase, documents, in.offset.dim(0));
}

}  // namespace

std::int64_t ttt_memory_size(std::int64_t d, std::int64_t m) {
  return m > 0 ? (d + 1) * m + (m + 1) * d : (d + 1) * d;
}

TttOutput ttt_memory(Tape& tape, const TttInputs& in, const TttWeights& w, const DocumentsPtr& documents,
                     FinalState final_state, const TttStart* start) {
  check_inputs(in, w, *documents, start);
  const Var state = start == nullptr ? Var{} : start->state;
  const TttSaved saved{.q = in.q.value,
                       .k = in.k.value,
                       .v = in.v.value,
                       .rate = in.rate.value,
                       .offset = in.offset.value,
                       .gamma = in.gamma.value,
                       .beta = in.beta.value,
                       .w1 = w.w1.value,
                       .b1 = w.b1.value,
                       .w2 = w.w2.value,
                       .b2 = w.b2.value,
                       .state = state.value,
                       .documents = documents,
                       .phase = start == nullptr ? Tensor{} : phases_on(tape, start->phase),
                       .final_state = final_state};
  TttForward args{saved.problem(tape.stream())};
  const Tensor o = tape.empty(in.q.shape(), in.q.dtype());
  Tensor last;
  if (final_state == FinalState::keep) {
    last = tape.empty({args.N, args.H, 2 * ttt_memory_size(args.d, args.m)}, accumulator_dtype(args.dtype));
  }
  args.o = o.raw();
  args.final_state = raw_or_null(last);
  kForward.run(tape, args);
  const std::initializer_list<Var> inputs{in.q,    in.k, in.v, in.rate, in.offset, in.gamma,
                                          in.beta, w.w1, w.b1, w.w2,    w.b2,      state};
  const auto save = [&] { return saved; };
  if (final_state == FinalState::skip) return {tape.record("ttt_memory", inputs, o, save), {}};
  const auto outputs = tape.record("ttt_memory", inputs, std::array{o, last}, save);
  return {outputs[0], outputs[1]};
}

}  // namespace weft
