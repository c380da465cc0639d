#include "modules/families/gated_linear/gated_linear.h"

#include "modules/families/gated_linear/gated_linear_cpu.h"
#include "modules/families/gated_linear/gated_linear_cuda.h"
#include "modules/families/operation_arguments.h"

namespace weft {
namespace {

// f.template operator()<T, kind>() for the problem's element type and decay kind.
template <class F>
decltype(auto) dispatch(const GatedLinearProblem& p, F&& f) {
  return dispatch_real(p.dtype, "gated_linear", [&]<class T>() -> decltype(auto) {
    switch (p.kind) {
      case DecayKind::constant:
        return f.template operator()<T, DecayKind::constant>();
      case DecayKind::scalar:
        return f.template operator()<T, DecayKind::scalar>();
      case DecayKind::vector:
        break;
    }
    return f.template operator()<T, DecayKind::vector>();
  });
}

void forward_cpu(const GatedLinearForward& args, const Launch& launch) {
  dispatch(args,
           [&]<class T, DecayKind kKind>() { GatedLinearWalk<T, kKind>(args, false, launch.workspace).forward(args); });
}
void backward_cpu(const GatedLinearBackward& args, const Launch& launch) {
  dispatch(args,
           [&]<class T, DecayKind kKind>() { GatedLinearWalk<T, kKind>(args, true, launch.workspace).backward(args); });
}
void decode_cpu(const GatedLinearDecode& args, const Launch&) {
  dispatch_real(args.dtype, "gated_linear", [&]<class T>() { gated_linear_decode_cpu<T>(args); });
}

constexpr Dispatch<GatedLinearForward> kForward{"gated_linear forward", forward_cpu,
                                                WEFT_ON_CUDA(gated_linear_forward_cuda), gated_linear_forward_workspace,
                                                WEFT_ON_CUDA(gated_linear_forward_cuda_workspace)};
constexpr Dispatch<GatedLinearBackward> kBackward{
    "gated_linear backward", backward_cpu, WEFT_ON_CUDA(gated_linear_backward_cuda), gated_linear_backward_workspace,
    WEFT_ON_CUDA(gated_linear_backward_cuda_workspace)};
constexpr Dispatch<GatedLinearDecode> kDecode{"gated_linear decode", decode_cpu,
                                              WEFT_ON_CUDA(gated_linear_decode_cuda)};

// What backward reads: the inputs alone.
struct GatedLinearSaved {
  Tensor q, k, v, g, s0;
  DocumentsPtr documents;
  double scale;
  GatedLinearPlan plan;
  FeatureMap map;

  std::int64_t d_k() const { return feature_width(map, k.dim(2)); }
  void backward(Backward& pass) const;
};

DecayKind kind_of(const Shape& decay, const Shape& key, const Shape& value) {
  const std::int64_t H = value[1];
  if (decay == Shape{H}) return DecayKind::constant;
  if (decay == Shape{key[0], H}) return DecayKind::scalar;
  WEFT_CHECK(decay == key && key[1] == H, "gated_linear: decay {} for keys {}; expected [H], [T,H] or [T,H,d_k]",
             decay.str(), key.str());
  return DecayKind::vector;
}

// Length of the chunks of the table that the kernels of a device walk.
std::int64_t chunk_of([[maybe_unused]] const Device& device, const GatedLinearProblem& p, const GatedLinearPlan& plan) {
#ifdef WEFT_CUDA
  if (!device.is_cpu()) return gated_linear_chunk_cuda(p);
#endif
  return plan.chunk > 0 ? plan.chunk : gated_linear_chunk(p.kind);
}

GatedLinearProblem problem(const GatedLinearSaved& in, const Stream& stream) {
  GatedLinearProblem p{.dtype = in.q.dtype(),
                       .kind = kind_of(in.g.shape(), in.k.shape(), in.v.shape()),
                       .schedule = in.plan.schedule,
                       .T = in.q.dim(0),
                       .N = in.documents->count_on(stream),
                       .H = in.v.dim(1),
                       .d_k = in.d_k(),
                       .d_v = in.v.dim(2),
                       .C = 0,
                       .scale = in.scale,
                       .q = in.q.raw(),
                       .k = in.k.raw(),
                       .v = in.v.raw(),
                       .g = in.g.raw(),
                       .s0 = raw_or_null(in.s0),
                       .cu_seqlens = in.documents->cu_seqlens_on(stream),
                       .chunks = nullptr,
                       .document_offset = nullptr,
                       .chunk_count = 0,
                       .H_k = in.q.dim(1),
                       .map = in.map,
                       .D_x = in.q.dim(2)};
  p.C = chunk_of(stream.device, p, in.plan);
  const ChunkView table = in.documents->chunks_on(stream, static_cast<std::int32_t>(p.C));
  p.chunks = table.chunks;
  p.document_offset = table.document_offset;
  p.chunk_count = table.count;
  return p;
}

void GatedLinearSaved::backward(Backward& pass) const {
  GatedLinearBackward args{problem(*this, pass.tape().stream())};
  const Tensor d_o = pass.grad_or_zero(0);
  const Tensor dst = plan.final_state ? pass.grad(1) : Tensor{};
  args.d_o = d_o.raw();
  args.dst = raw_or_null(dst);
  GradientTargets gradients(pass);
  gradients.next(args.dq, args.write_dq);
  gradients.next(args.dk, args.write_dk);
  gradients.next(args.dv, args.write_dv);
  gradients.next(args.dg, args.write_dg);
  gradients.next(args.ds0, args.write_ds0);
  kBackward.run(pass, args);
}

void check_heads(const char* op, const Shape& q, const Shape& k, const Shape& v) {
  WEFT_CHECK(q.rank() == 3 && k == q && v.rank() == 3 && v[0] == q[0], "{}: q {}, k {}, v {}", op, q.str(), k.str(),
             v.str());
  WEFT_CHECK(q[1] > 0 && q[2] > 0 && v[1] > 0 && v[2] > 0 && v[1] % q[1] == 0, "{}: q {}, v {}", op, q.str(), v.str());
}

void check_inputs(FeatureMap map, const Var& q, const Var& k, const Var& v, const Var& decay, const Var& initial_state,
                  const Documents& documents) {
  check_heads("gated_linear", q.shape(), k.shape(), v.shape());
  WEFT_CHECK(q.dim(0) == documents.tokens(), "gated_linear: {} tokens in q, {} in the documents", q.dim(0),
             documents.tokens());
  for (const Var* x : {&k, &v}) {
    WEFT_CHECK(x->dtype() == q.dtype(), "gated_linear: {} among {}", name_of(x->dtype()), name_of(q.dtype()));
  }
  const DType accumulator = accumulator_dtype(q.dtype());
  WEFT_CHECK(decay.dtype() == accumulator, "gated_linear: decays {}, expected {}", name_of(decay.dtype()),
             name_of(accumulator));
  WEFT_CHECK(map == FeatureMap::identity || decay.shape().rank() == 1,
             "gated_linear: decay {} with a feature map; expected a constant one, [H]", decay.shape().str());
  WEFT_CHECK(!(decay.shape().rank() == 1 && decay.requires_grad()), "gated_linear: a constant decay is not trained");
  if (initial_state.value.defined()) {
    const Shape expected{documents.count(), v.dim(1), feature_width(map, q.dim(2)), v.dim(2)};
    WEFT_CHECK(initial_state.shape() == expected && initial_state.dtype() == accumulator,
               "gated_linear: initial state {} {}, expected {} {}", initial_state.shape().str(),
               name_of(initial_state.dtype()), expected.str(), name_of(accumulator));
  }
}

}  // namespace

std::int64_t gated_linear_chunk(DecayKind kind) {
  return GatedLinearCpuPolicy::chunk(kind);
}

std::size_t gated_linear_forward_workspace(const GatedLinearForward& args) {
  return dispatch(args,
                  [&]<class T, DecayKind kKind>() { return GatedLinearWalk<T, kKind>(args, false, nullptr).bytes(); });
}

std::size_t gated_linear_backward_workspace(const GatedLinearBackward& args) {
  return dispatch(args,
                  [&]<class T, DecayKind kKind>() { return GatedLinearWalk<T, kKind>(args, true, nullptr).bytes(); });
}

GatedLinearOutput gated_linear(Tape& tape, const Var& q, const Var& k, const Var& v, const Var& decay,
                               const Var& initial_state, const DocumentsPtr& documents, double scale,
                               const GatedLinearPlan& plan) {
  return gated_linear(tape, FeatureMap::identity, q, k, v, decay, initial_state, documents, scale, plan);
}

GatedLinearOutput gated_linear(Tape& tape, FeatureMap map, const Var& q, const Var& k, const Var& v, const Var& decay,
                               const Var& initial_state, const DocumentsPtr& documents, double scale,
                               const GatedLinearPlan& plan) {
  check_inputs(map, q, k, v, decay, initial_state, *documents);
  GatedLinearSaved saved{q.value, k.value, v.value, decay.value, initial_state.value, documents, scale, plan, map};
  const Tensor o = tape.empty(v.shape(), v.dtype());
  GatedLinearForward args{problem(saved, tape.stream())};
  args.o = o.raw();
  if (!plan.final_state) {
    kForward.run(tape, args);
    return {tape.record("gated_linear", {q, k, v, decay, initial_state}, o, [&] { return saved; }), {}};
  }
  const Tensor st = tape.empty({args.N, v.dim(1), saved.d_k(), v.dim(2)}, accumulator_dtype(q.dtype()));
  args.st = st.raw();
  kForward.run(tape, args);
  const auto outputs =
      tape.record("gated_linear", {q, k, v, decay, initial_state}, std::array{o, st}, [&] { return saved; });
  return {outputs[0], outputs[1]};
}

Tensor gated_linear_decode(Tape& tape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& decay,
                           const Tensor& state, double scale) {
  check_heads("gated_linear_decode", q.shape(), k.shape(), v.shape());
  const Shape expected{q.dim(0), v.dim(1), q.dim(2), v.dim(2)};
  const DType accumulator = accumulator_dtype(q.dtype());
  WEFT_CHECK(state.shape() == expected && state.dtype() == accumulator && decay.dtype() == accumulator,
             "gated_linear_decode: state {} {}, expected {} {}; decays {}", state.shape().str(), name_of(state.dtype()),
             expected.str(), name_of(accumulator), name_of(decay.dtype()));
  const Tensor o = tape.empty(v.shape(), v.dtype());
  kDecode({.dtype = q.dtype(),
           .kind = kind_of(decay.shape(), k.shape(), v.shape()),
           .N = q.dim(0),
           .H = v.dim(1),
           .H_k = q.dim(1),
           .d_k = q.dim(2),
           .d_v = v.dim(2),
           .scale = scale,
           .q = q.raw(),
           .k = k.raw(),
           .v = v.raw(),
           .g = decay.raw(),
           .state = state.raw(),
           .o = o.raw()},
          tape.launch());
  return o;
}

}  // namespace weft
