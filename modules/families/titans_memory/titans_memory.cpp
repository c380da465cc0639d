#include "modules/families/titans_memory/titans_memory.h"

#include "modules/families/operation_arguments.h"
#include "modules/families/titans_memory/titans_chunk_cpu.h"
#include "modules/families/titans_memory/titans_read_cpu.h"

namespace weft {
namespace {

template <class T>
using Walk = MemoryWalk<T, TitansChunkCpu<T>>;

template <class T>
void forward_cpu(const TitansForward& a, void* workspace) {
  Walk<T>(a, false, workspace).forward(static_cast<T*>(a.o), static_cast<T*>(a.final_state));
}
template <class T>
void backward_cpu(const TitansBackward& a, void* workspace) {
  Walk<T> walk(a, true, workspace);
  walk.backward(a, static_cast<const T*>(a.dfinal_state), static_cast<T*>(a.dstate), a.write_dstate);
  const std::int64_t first = a.d_k * a.m;
  walk.sum_lines(0, first, a.dw1, a.write_dw1);
  walk.sum_lines(first, titans_memory_size(a.d_k, a.m, a.d_v) - first, a.dw2, a.write_dw2);
}
std::size_t cpu_workspace(const TitansProblem& p, bool backward) {
  return dispatch_real(p.dtype, "titans", [&]<class T>() { return Walk<T>(p, backward, nullptr).bytes(); });
}
std::size_t cpu_workspace(const TitansReadProblem& p, bool backward) {
  return dispatch_real(p.dtype, "titans", [&]<class T>() { return TitansReadCpu<T>(p, backward, nullptr).bytes(); });
}

constexpr Dispatch<TitansForward> kForward{
    .op = "titans_memory forward",
    .cpu =
        [](const TitansForward& args, const Launch& launch) {
          dispatch_real(args.dtype, "titans", [&]<class T>() { forward_cpu<T>(args, launch.workspace); });
        },
    .cuda = WEFT_ON_CUDA(titans_forward_cuda),
    .cpu_workspace = [](const TitansForward& args) { return cpu_workspace(args, false); },
    .cuda_workspace = WEFT_ON_CUDA(titans_forward_cuda_workspace)};
constexpr Dispatch<TitansBackward> kBackward{
    .op = "titans_memory backward",
    .cpu =
        [](const TitansBackward& args, const Launch& launch) {
          dispatch_real(args.dtype, "titans", [&]<class T>() { backward_cpu<T>(args, launch.workspace); });
        },
    .cuda = WEFT_ON_CUDA(titans_backward_cuda),
    .cpu_workspace = [](const TitansBackward& args) { return cpu_workspace(args, true); },
    .cuda_workspace = WEFT_ON_CUDA(titans_backward_cuda_workspace)};
constexpr Dispatch<TitansReadForward> kReadForward{
    .op = "titans_read forward",
    .cpu =
        [](const TitansReadForward& args, const Launch& launch) {
          dispatch_real(args.dtype, "titans", [&]<class T>() {
            TitansReadCpu<T>(args, false, launch.workspace).forward(static_cast<T*>(args.o));
          });
        },
    .cuda = WEFT_ON_CUDA(titans_read_forward_cuda),
    .cpu_workspace = [](const TitansReadForward& args) { return cpu_workspace(args, false); },
    .cuda_workspace = WEFT_ON_CUDA(titans_read_forward_cuda_workspace)};
constexpr Dispatch<TitansReadBackward> kReadBackward{
    .op = "titans_read backward",
    .cpu =
        [](const TitansReadBackward& args, const Launch& launch) {
          dispatch_real(args.dtype, "titans",
                        [&]<class T>() { TitansReadCpu<T>(args, true, launch.workspace).backward(args); });
        },
    .cuda = WEFT_ON_CUDA(titans_read_backward_cuda),
    .cpu_workspace = [](const TitansReadBackward& args) { return cpu_workspace(args, true); },
    .cuda_workspace = WEFT_ON_CUDA(titans_read_backward_cuda_workspace)};

// What backward reads: the inputs alone.
struct TitansSaved {
  Tensor q, k, v, keep, momentum, rate, w1, w2, state;
  std::int64_t chunk;
  DocumentsPtr documents;
  Tensor phase;
  FinalState final_state;

  TitansProblem problem(const Stream& stream) const {
    return {.dtype = q.dtype(),
            .T = q.dim(0),
            .N = documents->count_on(stream),
            .H = q.dim(1),
            .d_k = q.dim(2),
            .d_v = v.dim(2),
            .m = w1.defined() ? w1.dim(2) : 0,
            .C = chunk,
            .q = q.raw(),
            .k = k.raw(),
            .v = v.raw(),
            .keep = keep.raw(),
            .momentum = momentum.raw(),
            .rate = rate.raw(),
            .w1 = raw_or_null(w1),
            .w2 = w2.raw(),
            .state = raw_or_null(state),
            .cu_seqlens = documents->cu_seqlens_on(stream),
            .phase = phase.defined() ? phase.data<std::int32_t>() : nullptr};
  }

  void backward(Backward& pass) const {
    TitansBackward args{problem(pass.tape().stream())};
    const Tensor d_o = pass.grad_or_zero(0);
    const Tensor dfinal = final_state == FinalState::keep ? pass.grad(1) : Tensor{};
    args.d_o = d_o.raw();
    args.dfinal_state = raw_or_null(dfinal);
    GradientTargets gradients(pass);
    gradients.next(args.dq, args.write_dq);
    gradients.next(args.dk, args.write_dk);
    gradients.next(args.dv, args.write_dv);
    gradients.next(args.dkeep, args.write_dkeep);
    gradients.next(args.dmomentum, args.write_dmomentum);
    gradients.next(args.drate, args.write_drate);
    gradients.next(args.dw1, args.write_dw1);
    gradients.next(args.dw2, args.write_dw2);
    gradients.next(args.dstate, args.write_dstate);
    kBackward.run(pass, args);
  }
};

struct TitansReadSaved {
  Tensor q, w1, w2, state;
  DocumentsPtr documents;

  TitansReadProblem problem(const Stream& stream) const {
    const std::int64_t H = q.dim(1), d_k = q.dim(2), m = w1.defined() ? w1.dim(2) : 0, d_v = w2.dim(2);
    const std::int64_t parts = state.defined() && state.rank() == 4 ? 3 : 1;
    const std::int64_t head_stride = parts * titans_memory_size(d_k, m, d_v);
    return {.dtype = q.dtype(),
            .T = q.dim(0),
            .N = documents->count_on(stream),
            .H = H,
            .d_k = d_k,
            .d_v = d_v,
            .m = m,
            .q = q.raw(),
            .w1 = raw_or_null(w1),
            .w2 = w2.raw(),
            .state = raw_or_null(state),
            .document_stride = H * head_stride,
            .head_stride = head_stride,
            .cu_seqlens = documents->cu_seqlens_on(stream)};
  }

  void backward(Backward& pass) const {
    const GradTarget dq = pass.target(0), dw1 = pass.target(1), dw2 = pass.target(2), dstate = pass.target(3);
    TitansReadBackward args{problem(pass.tape().stream())};
    args.d_o = pass.grad(0).raw();
    args.dq = dq.raw();
    args.write_dq = dq.write;
    args.dw1 = dw1.raw();
    args.write_dw1 = dw1.write;
    args.dw2 = dw2.raw();
    args.write_dw2 = dw2.write;
    args.dstate = dstate.raw();
    args.write_dstate = dstate.write;
    kReadBackward.run(pass, args);
  }
};

// Hidden width of the memory that the weights describe.
std::int64_t check_weights(const char* op, const TitansWeights& w, const Var& q) {
  WEFT_CHECK(w.w2.value.defined() && w.w2.shape().rank() == 3 && w.w2.dim(2) > 0,
             "{}: w2 {}, expected three dimensions", op, w.w2.value.defined() ? w.w2.shape().str() : "absent");
  const std::int64_t H = q.dim(1), d_k = q.dim(2);
  std::int64_t m = 0;
  if (w.w1.value.defined()) {
    WEFT_CHECK(w.w1.shape().rank() == 3 && w.w1.dim(2) > 0, "{}: w1 {}, expected [H,d_k,m]", op, w.w1.shape().str());
    m = w.w1.dim(2);
    check_input(op, "w1", w.w1, {H, d_k, m}, q.dtype());
  }
  check_input(op, "w2", w.w2, {H, m > 0 ? m : d_k, w.w2.dim(2)}, q.dtype());
  return m;
}

void check_inputs(const TitansInputs& in, const TitansWeights& weights, std::int64_t chunk, const Documents& documents,
                  const TitansStart* start) {
  WEFT_CHECK(in.q.shape().rank() == 3 && in.v.shape().rank() == 3 && in.q.dim(1) > 0 && in.q.dim(2) > 0 &&
                 in.v.dim(2) > 0 && chunk > 0,
             "titans_memory: q {}, v {}, chunks of {}", in.q.shape().str(), in.v.shape().str(), chunk);
  const std::int64_t T = in.q.dim(0), H = in.q.dim(1), d_k = in.q.dim(2), d_v = in.v.dim(2);
  const auto check = [&](const char* name, const Var& x, const Shape& expected) {
    check_input("titans_memory", name, x, expected, in.q.dtype());
  };
  const auto check_vector = [&](const char* name, const Var& x, const Shape& expected) {
    check_input("titans_memory", name, x, expected, accumulator_dtype(in.q.dtype()));
  };
  WEFT_CHECK(documents.tokens() == T, "titans_memory: {} tokens in q, {} in the documents", T, documents.tokens());
  check("k", in.k, {T, H, d_k});
  check("v", in.v, {T, H, d_v});
  check_vector("keep", in.keep, {T, H});
  check_vector("momentum", in.momentum, {T, H});
  check_vector("rate", in.rate, {T, H});
  const std::int64_t m = check_weights("titans_memory", weights, in.q);
  WEFT_CHECK(weights.w2.dim(2) == d_v, "titans_memory: w2 {} for values of width {}", weights.w2.shape().str(), d_v);
  if (start == nullptr) return;
  check_vector("state", start->state, {documents.count(), H, 3, titans_memory_size(d_k, m, d_v)});
  check_phases("titans_memory", start->phase, documents, chunk);
}

}  // namespace

TitansOutput titans_memory(Tape& tape, const TitansInputs& in, const TitansWeights& weights, std::int64_t chunk,
                           const DocumentsPtr& documents, FinalState final_state, const TitansStart* start) {
  check_inputs(in, weights, chunk, *documents, start);
  const Var state = start == nullptr ? Var{} : start->state;
  const TitansSaved saved{.q = in.q.value,
                          .k = in.k.value,
                          .v = in.v.value,
                          .keep = in.keep.value,
                          .momentum = in.momentum.value,
                          .rate = in.rate.value,
                          .w1 = weights.w1.value,
                          .w2 = weights.w2.value,
                          .state = state.value,
                          .chunk = chunk,
                          .documents = documents,
                          .phase = start == nullptr ? Tensor{} : phases_on(tape, start->phase),
                          .final_state = final_state};
  TitansForward args{saved.problem(tape.stream())};
  const Tensor o = tape.empty(in.v.shape(), in.v.dtype());
  Tensor last;
  if (final_state == FinalState::keep) {
    last =
        tape.empty({args.N, args.H, 3, titans_memory_size(args.d_k, args.m, args.d_v)}, accumulator_dtype(args.dtype));
  }
  args.o = o.raw();
  args.final_state = raw_or_null(last);
  kForward.run(tape, args);
  const std::initializer_list<Var> inputs{in.q,    in.k,       in.v,       in.keep, in.momentum,
                                          in.rate, weights.w1, weights.w2, state};
  const auto save = [&] { return saved; };
  if (final_state == FinalState::skip) return {tape.record("titans_memory", inputs, o, save), {}};
  const auto outputs = tape.record("titans_memory", inputs, std::array{o, last}, save);
  return {outputs[0], outputs[1]};
}

Var titans_read(Tape& tape, const Var& q, const TitansWeights& weights, const Var& state,
                const DocumentsPtr& documents) {
  WEFT_CHECK(q.shape().rank() == 3 && q.dim(0) == documents->tokens(), "titans_read: q {} for documents of {} tokens",
             q.shape().str(), documents->tokens());
  const std::int64_t N = documents->count(), H = q.dim(1), m = check_weights("titans_read", weights, q);
  const std::int64_t P = titans_memory_size(q.dim(2), m, weights.w2.dim(2));
  if (state.value.defined()) {
    const bool parts = state.shape().rank() == 4;
    check_input("titans_read", "state", state, parts ? Shape{N, H, 3, P} : Shape{N, H, P},
                accumulator_dtype(q.dtype()));
  }
  const TitansReadSaved saved{q.value, weights.w1.value, weights.w2.value, state.value, documents};
  const Tensor o = tape.empty({q.dim(0), H, weights.w2.dim(2)}, q.dtype());
  TitansReadForward args{saved.problem(tape.stream())};
  args.o = o.raw();
  kReadForward.run(tape, args);
  return tape.record("titans_read", {q, weights.w1, weights.w2, state}, o, [&] { return saved; });
}

}  // namespace weft
