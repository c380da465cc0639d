#include "modules/families/delta_rule/delta_rule.h"

#include "modules/families/delta_rule/delta_rule_cpu.h"
#include "modules/families/operation_arguments.h"

namespace weft {
namespace {

// f.template operator()<T, decay>() for the problem's element type; no decay is a scalar one of zero.
template <class F>
decltype(auto) dispatch(const DeltaRuleProblem& p, F&& f) {
  return dispatch_real(p.dtype, "delta_rule", [&]<class T>() -> decltype(auto) {
    if (p.decay == DeltaDecay::channel) return f.template operator()<T, DeltaDecay::channel>();
    return f.template operator()<T, DeltaDecay::scalar>();
  });
}

constexpr Dispatch<DeltaRuleForward> kForward{
    .op = "delta_rule forward",
    .cpu =
        [](const DeltaRuleForward& args, const Launch& launch) {
          dispatch(args, [&]<class T, DeltaDecay kDecay>() {
            DeltaRuleWalk<T, kDecay>(args, false, launch.workspace).forward(args);
          });
        },
    .cuda = WEFT_ON_CUDA(delta_rule_forward_cuda),
    .cpu_workspace =
        [](const DeltaRuleForward& args) {
          return dispatch(args, [&]<class T, DeltaDecay kDecay>() {
            return DeltaRuleWalk<T, kDecay>(args, false, nullptr).bytes();
          });
        },
    .cuda_workspace = WEFT_ON_CUDA(delta_rule_forward_cuda_workspace)};

constexpr Dispatch<DeltaRuleBackward> kBackward{
    .op = "delta_rule backward",
    .cpu =
        [](const DeltaRuleBackward& args, const Launch& launch) {
          dispatch(args, [&]<class T, DeltaDecay kDecay>() {
            DeltaRuleWalk<T, kDecay>(args, true, launch.workspace).backward(args);
          });
        },
    .cuda = WEFT_ON_CUDA(delta_rule_backward_cuda),
    .cpu_workspace =
        [](const DeltaRuleBackward& args) {
          return dispatch(args, [&]<class T, DeltaDecay kDecay>() {
            return DeltaRuleWalk<T, kDecay>(args, true, nullptr).bytes();
          });
        },
    .cuda_workspace = WEFT_ON_CUDA(delta_rule_backward_cuda_workspace)};

constexpr Dispatch<DeltaRuleDecode> kDecode{
    .op = "delta_rule decode",
    .cpu =
        [](const DeltaRuleDecode& args, const Launch& launch) {
          dispatch_real(args.dtype, "delta_rule",
                        [&]<class T>() { delta_rule_decode_cpu<T>(args, static_cast<T*>(launch.workspace)); });
        },
    .cuda = WEFT_ON_CUDA(delta_rule_decode_cuda),
    .cpu_workspace =
        [](const DeltaRuleDecode& args) {
          return static_cast<std::size_t>(args.N * args.H * args.d_v) * size_of(args.dtype);
        }};

// What backward reads: the inputs alone.
struct DeltaRuleSaved {
  Tensor q, k, v, g, beta, s0;
  DocumentsPtr documents;
  double scale;
  DeltaRulePlan plan;

  void backward(Backward& pass) const;
};

DeltaDecay decay_of(const Tensor& g, const Shape& values, std::int64_t d_k) {
  if (!g.defined()) return DeltaDecay::none;
  if (g.shape() == Shape{values[0], values[1]}) return DeltaDecay::scalar;
  const Shape per_channel{values[0], values[1], d_k};
  WEFT_CHECK(g.shape() == per_channel, "delta_rule: decay {} for values {}; expected none, {} or {}", g.shape().str(),
             values.str(), Shape{values[0], values[1]}.str(), per_channel.str());
  return DeltaDecay::channel;
}

DeltaRuleProblem problem(const DeltaRuleSaved& in, const Stream& stream) {
  const std::int64_t C = in.plan.chunk > 0 ? in.plan.chunk : delta_rule_chunk();
  const ChunkView table = in.documents->chunks_on(stream, static_cast<std::int32_t>(C));
  return {.dtype = in.q.dtype(),
          .decay = decay_of(in.g, in.v.shape(), in.k.dim(2)),
          .schedule = in.plan.schedule,
          .T = in.q.dim(0),
          .N = in.documents->count_on(stream),
          .H = in.v.dim(1),
          .H_K = in.q.dim(1),
          .d_k = in.q.dim(2),
          .d_v = in.v.dim(2),
          .C = C,
          .scale = in.scale,
          .q = in.q.raw(),
          .k = in.k.raw(),
          .v = in.v.raw(),
          .g = raw_or_null(in.g),
          .beta = in.beta.raw(),
          .s0 = raw_or_null(in.s0),
          .cu_seqlens = in.documents->cu_seqlens_on(stream),
          .chunks = table.chunks,
          .document_offset = table.document_offset,
          .chunk_count = table.count};
}

void DeltaRuleSaved::backward(Backward& pass) const {
  DeltaRuleBackward args{problem(*this, pass.tape().stream())};
  const Tensor d_o = pass.grad_or_zero(0);
  const Tensor dst = pass.grad(1);
  args.d_o = d_o.raw();
  args.dst = raw_or_null(dst);
  GradientTargets gradients(pass);
  gradients.next(args.dq, args.write_dq);
  gradients.next(args.dk, args.write_dk);
  gradients.next(args.dv, args.write_dv);
  gradients.next(args.dg, args.write_dg);
  gradients.next(args.dbeta, args.write_dbeta);
  gradients.next(args.ds0, args.write_ds0);
  kBackward.run(pass, args);
}

// Token tensors of forward, or of one token for each sequence in decode.
void check_heads(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                 const Tensor& beta) {
  WEFT_CHECK(q.rank() == 3 && k.shape() == q.shape() && v.rank() == 3 && v.dim(0) == q.dim(0), "{}: q {}, k {}, v {}",
             op, q.shape().str(), k.shape().str(), v.shape().str());
  WEFT_CHECK(q.dim(1) > 0 && q.dim(2) > 0 && v.dim(2) > 0 && v.dim(1) > 0 && v.dim(1) % q.dim(1) == 0,
             "{}: value heads of {} are no multiple of the key heads of {}", op, v.shape().str(), q.shape().str());
  const Shape heads{v.dim(0), v.dim(1)};
  WEFT_CHECK(beta.shape() == heads, "{}: beta {}, expected {}", op, beta.shape().str(), heads.str());
  for (const Tensor* x : {&k, &v}) {
    WEFT_CHECK(x->dtype() == q.dtype(), "{}: {} among {}", op, name_of(x->dtype()), name_of(q.dtype()));
  }
  for (const Tensor* x : {&g, &beta}) {
    WEFT_CHECK(!x->defined() || x->dtype() == accumulator_dtype(q.dtype()), "{}: g or beta {} beside {}", op,
               name_of(x->dtype()), name_of(q.dtype()));
  }
}

void check_state(const char* op, const Tensor& state, const Shape& expected, DType dtype) {
  WEFT_CHECK(state.shape() == expected && state.dtype() == dtype, "{}: state {} {}, expected {} {}", op,
             state.shape().str(), name_of(state.dtype()), expected.str(), name_of(dtype));
}

}  // namespace

std::int64_t delta_rule_chunk() {
  return DeltaRuleCpuPolicy::kChunk;
}

DeltaRuleOutput delta_rule(Tape& tape, const Var& q, const Var& k, const Var& v, const Var& g, const Var& beta,
                           const Var& initial_state, const DocumentsPtr& documents, double scale,
                           const DeltaRulePlan& plan) {
  check_heads("delta_rule", q.value, k.value, v.value, g.value, beta.value);
  WEFT_CHECK(q.dim(0) == documents->tokens(), "delta_rule: {} tokens in q, {} in the documents", q.dim(0),
             documents->tokens());
  const Shape states{documents->count_on(tape.stream()), v.dim(1), q.dim(2), v.dim(2)};
  const DType state_dtype = accumulator_dtype(q.dtype());
  if (initial_state.value.defined()) check_state("delta_rule", initial_state.value, states, state_dtype);
  DeltaRuleSaved saved{q.value, k.value, v.value, g.value, beta.value, initial_state.value, documents, scale, plan};
  const Tensor o = tape.empty(v.shape(), v.dtype());
  const Tensor st = tape.empty(states, state_dtype);
  DeltaRuleForward args{problem(saved, tape.stream())};
  args.o = o.raw();
  args.st = st.raw();
  kForward.run(tape, args);
  const auto outputs =
      tape.record("delta_rule", {q, k, v, g, beta, initial_state}, std::array{o, st}, [&] { return saved; });
  return {outputs[0], outputs[1]};
}

Tensor delta_rule_decode(Tape& tape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                         const Tensor& beta, const Tensor& state, double scale) {
  check_heads("delta_rule_decode", q, k, v, g, beta);
  check_state("delta_rule_decode", state, {q.dim(0), v.dim(1), q.dim(2), v.dim(2)}, accumulator_dtype(q.dtype()));
  const Tensor o = tape.empty(v.shape(), v.dtype());
  const DeltaRuleDecode args{.dtype = q.dtype(),
                             .decay = decay_of(g, v.shape(), q.dim(2)),
                             .N = q.dim(0),
                             .H = v.dim(1),
                             .H_K = q.dim(1),
                             .d_k = q.dim(2),
                             .d_v = v.dim(2),
                             .scale = scale,
                             .q = q.raw(),
                             .k = k.raw(),
                             .v = v.raw(),
                             .g = raw_or_null(g),
                             .beta = beta.raw(),
                             .state = state.raw(),
                             .o = o.raw()};
  kDecode.run(tape, args);
  return o;
}

}  // namespace weft
