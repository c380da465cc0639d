#include "modules/families/titans_memory/titans_memory.h"

#include "modules/families/titans_memory/titans_chunk_cpu.h"
#include "modules/families/titans_memory/titans_read_cpu.h"

namespace weft {
namespace {

template <class T>
using Walk = MemoryWalk<T, TitansChunkCpu<T>>;

constexpr Dispatch<TitansForward> kForward{
    "titans_memory forward", [](const TitansForward& args, const Launch& launch) {
      dispatch_real(args.dtype, "titans_memory", [&]<class T>() {
        Walk<T>(args, false, launch.workspace).forward(static_cast<T*>(args.o), static_cast<T*>(args.final_state));
      });
    }};
constexpr Dispatch<TitansBackward> kBackward{
    "titans_memory backward", [](const TitansBackward& args, const Launch& launch) {
      dispatch_real(args.dtype, "titans_memory", [&]<class T>() {
        Walk<T> walk(args, true, launch.workspace);
        walk.backward(args, static_cast<const T*>(args.dfinal_state), static_cast<T*>(args.dstate), args.write_dstate);
        walk.sum_lines(0, args.d_k * args.d_v, args.dweights, args.write_dweights);
      });
    }};
constexpr Dispatch<TitansReadForward> kReadForward{
    "titans_read forward", [](const TitansReadForward& args, const Launch&) {
      dispatch_real(args.dtype, "titans_read", [&]<class T>() { titans_read_forward_cpu<T>(args); });
    }};
constexpr Dispatch<TitansReadBackward> kReadBackward{
    "titans_read backward", [](const TitansReadBackward& args, const Launch& launch) {
      dispatch_real(args.dtype, "titans_read",
                    [&]<class T>() { titans_read_backward_cpu<T>(args, static_cast<T*>(launch.workspace)); });
    }};

void* raw_or_null(const Tensor& t) {
  return t.defined() ? t.raw() : nullptr;
}

// What backward reads: the inputs alone.
struct TitansSaved {
  Tensor q, k, v, keep, momentum, rate, weights, state;
  std::int64_t chunk;
  DocumentsPtr documents;
  std::vector<std::int32_t> phase;
  FinalState final_state;

  TitansProblem problem() const {
    return {.dtype = q.dtype(),
            .T = q.dim(0),
            .N = documents->count(),
            .H = q.dim(1),
            .d_k = q.dim(2),
            .d_v = v.dim(2),
            .C = chunk,
            .q = q.raw(),
            .k = k.raw(),
            .v = v.raw(),
            .keep = keep.raw(),
            .momentum = momentum.raw(),
            .rate = rate.raw(),
            .weights = raw_or_null(weights),
            .state = raw_or_null(state),
            .cu_seqlens = documents->cu_seqlens().data(),
            .phase = phase.empty() ? nullptr : phase.data()};
  }

  void backward(Backward& pass) const {
    TitansBackward args{problem()};
    const Tensor d_o = pass.grad_or_zero(0);
    const Tensor dfinal = final_state == FinalState::keep ? pass.grad(1) : Tensor{};
    args.d_o = d_o.raw();
    args.dfinal_state = raw_or_null(dfinal);
    int input = 0;
    const auto next = [&](void*& gradient, Write& write) {
      const GradTarget target = pass.target(input++);
      gradient = target.raw();
      write = target.write;
      return target.tensor;
    };
    const Tensor targets[] = {next(args.dq, args.write_dq),
                              next(args.dk, args.write_dk),
                              next(args.dv, args.write_dv),
                              next(args.dkeep, args.write_dkeep),
                              next(args.dmomentum, args.write_dmomentum),
                              next(args.drate, args.write_drate),
                              next(args.dweights, args.write_dweights),
                              next(args.dstate, args.write_dstate)};
    kBackward(args, pass.launch(titans_backward_workspace(args)));
  }
};

// Where the matrices of a memory to read from lie: [H, d_k, d_v], [N, H, d_k, d_v] or [N, H, 3, d_k, d_v].
std::int64_t head_stride(const Tensor& memory) {
  return memory.dim(-2) * memory.dim(-1) * (memory.rank() == 5 ? memory.dim(2) : 1);
}
std::int64_t document_stride(const Tensor& memory) {
  return memory.rank() == 3 ? 0 : memory.dim(1) * head_stride(memory);
}

struct TitansReadSaved {
  Tensor q, memory;
  DocumentsPtr documents;

  void backward(Backward& pass) const {
    const GradTarget dq = pass.target(0), dmemory = pass.target(1);
    const TitansReadBackward args{.dtype = q.dtype(),
                                  .N = documents->count(),
                                  .H = q.dim(1),
                                  .d_k = q.dim(2),
                                  .d_v = memory.shape().back(),
                                  .document_stride = document_stride(memory),
                                  .head_stride = head_stride(memory),
                                  .q = q.raw(),
                                  .memory = memory.raw(),
                                  .cu_seqlens = documents->cu_seqlens().data(),
                                  .d_o = pass.grad(0).raw(),
                                  .dq = dq.raw(),
                                  .write_dq = dq.write,
                                  .dmemory = dmemory.raw(),
                                  .memory_elements = memory.numel(),
                                  .write_dmemory = dmemory.write};
    kReadBackward(args, pass.launch(titans_read_backward_workspace(args)));
  }
};

void check_shape(const char* op, const char* name, const Var& x, const Shape& expected, DType dtype) {
  WEFT_CHECK(x.value.defined() && x.shape() == expected && x.dtype() == dtype, "{}: {} is {} {}, expected {} {}", op,
             name, x.value.defined() ? x.shape().str() : "absent", name_of(x.value.dtype()), expected.str(),
             name_of(dtype));
}

void check_inputs(const TitansInputs& in, const Var& weights, std::int64_t chunk, const Documents& documents,
                  const TitansStart* start) {
  WEFT_CHECK(in.q.shape().rank() == 3 && in.v.shape().rank() == 3 && in.q.dim(1) > 0 && in.q.dim(2) > 0 &&
                 in.v.dim(2) > 0 && chunk > 0,
             "titans_memory: q {}, v {}, chunks of {}", in.q.shape().str(), in.v.shape().str(), chunk);
  const std::int64_t T = in.q.dim(0), H = in.q.dim(1), d_k = in.q.dim(2), d_v = in.v.dim(2);
  const DType dtype = in.q.dtype();
  const auto check = [&](const char* name, const Var& x, const Shape& expected) {
    check_shape("titans_memory", name, x, expected, dtype);
  };
  WEFT_CHECK(documents.tokens() == T, "titans_memory: {} tokens in q, {} in the documents", T, documents.tokens());
  check("k", in.k, {T, H, d_k});
  check("v", in.v, {T, H, d_v});
  check("keep", in.keep, {T, H});
  check("momentum", in.momentum, {T, H});
  check("rate", in.rate, {T, H});
  if (start == nullptr) return check("weights", weights, {H, d_k, d_v});
  check("state", start->state, {documents.count(), H, 3, d_k, d_v});
  WEFT_CHECK(static_cast<std::int64_t>(start->phase.size()) == documents.count(),
             "titans_memory: {} phases for {} documents", start->phase.size(), documents.count());
  for (const std::int32_t phase : start->phase) {
    WEFT_CHECK(phase >= 0 && phase < chunk, "titans_memory: phase {} in chunks of {}", phase, chunk);
  }
}

}  // namespace

std::size_t titans_forward_workspace(const TitansForward& args) {
  return dispatch_real(args.dtype, "titans_memory", [&]<class T>() { return Walk<T>(args, false, nullptr).bytes(); });
}

std::size_t titans_backward_workspace(const TitansBackward& args) {
  return dispatch_real(args.dtype, "titans_memory", [&]<class T>() { return Walk<T>(args, true, nullptr).bytes(); });
}

std::size_t titans_read_backward_workspace(const TitansReadBackward& args) {
  return static_cast<std::size_t>(args.H * args.d_k * args.d_v) * size_of(args.dtype);
}

TitansOutput titans_memory(Tape& tape, const TitansInputs& in, const Var& weights, std::int64_t chunk,
                           const DocumentsPtr& documents, FinalState final_state, const TitansStart* start) {
  check_inputs(in, weights, chunk, *documents, start);
  const Var state = start == nullptr ? Var{} : start->state;
  const TitansSaved saved{.q = in.q.value,
                          .k = in.k.value,
                          .v = in.v.value,
                          .keep = in.keep.value,
                          .momentum = in.momentum.value,
                          .rate = in.rate.value,
                          .weights = weights.value,
                          .state = state.value,
                          .chunk = chunk,
                          .documents = documents,
                          .phase = start == nullptr ? std::vector<std::int32_t>{} : start->phase,
                          .final_state = final_state};
  TitansForward args{saved.problem()};
  const Tensor o = tape.empty(in.v.shape(), in.v.dtype());
  Tensor last;
  if (final_state == FinalState::keep) last = tape.empty({args.N, args.H, 3, args.d_k, args.d_v}, args.dtype);
  args.o = o.raw();
  args.final_state = raw_or_null(last);
  kForward(args, tape.launch(titans_forward_workspace(args)));
  const std::initializer_list<Var> inputs{in.q, in.k, in.v, in.keep, in.momentum, in.rate, weights, state};
  const auto save = [&] { return saved; };
  if (final_state == FinalState::skip) return {tape.record("titans_memory", inputs, o, save), {}};
  const auto outputs = tape.record("titans_memory", inputs, std::array{o, last}, save);
  return {outputs[0], outputs[1]};
}

Var titans_read(Tape& tape, const Var& q, const Var& memory, const DocumentsPtr& documents) {
  WEFT_CHECK(q.shape().rank() == 3 && q.dim(0) == documents->tokens(), "titans_read: q {} for documents of {} tokens",
             q.shape().str(), documents->tokens());
  const std::int64_t H = q.dim(1), d_k = q.dim(2), d_v = memory.shape().back();
  const Shape shared{H, d_k, d_v}, own{documents->count(), H, d_k, d_v}, states{documents->count(), H, 3, d_k, d_v};
  const int rank = memory.shape().rank();
  check_shape("titans_read", "memory", memory, rank == 5 ? states : rank == 4 ? own : shared, q.dtype());
  const Tensor o = tape.empty({q.dim(0), H, d_v}, q.dtype());
  kReadForward({.dtype = q.dtype(),
                .N = documents->count(),
                .H = H,
                .d_k = d_k,
                .d_v = d_v,
                .document_stride = document_stride(memory.value),
                .head_stride = head_stride(memory.value),
                .q = q.value.raw(),
                .memory = memory.value.raw(),
                .cu_seqlens = documents->cu_seqlens().data(),
                .o = o.raw()},
               tape.launch());
  return tape.record("titans_read", {q, memory}, o, [&] { return TitansReadSaved{q.value, memory.value, documents}; });
}

}  // namespace weft
