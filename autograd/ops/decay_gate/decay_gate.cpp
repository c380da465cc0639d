#include "autograd/ops/decay_gate/decay_gate.h"

#include "autograd/ops/decay_gate/decay_gate_cpu.h"

namespace weft {
namespace {

template <class Args>
std::size_t cpu_workspace(const Args& args, bool backward) {
  return dispatch_real(args.dtype, "decay_gate",
                       [&]<class T>() { return DecayGateScratch<T>(args, backward, nullptr).bytes; });
}

constexpr Dispatch<DecayGateForward> kForward{
    .op = "decay_gate forward",
    .cpu =
        [](const DecayGateForward& args, const Launch& launch) {
          dispatch_real(args.dtype, "decay_gate",
                        [&]<class T>() { decay_gate_forward_cpu<T>(args, launch.workspace); });
        },
    .cuda = WEFT_ON_CUDA(decay_gate_forward_cuda),
    .cpu_workspace = [](const DecayGateForward& args) { return cpu_workspace(args, false); }};
constexpr Dispatch<DecayGateBackward> kBackward{
    .op = "decay_gate backward",
    .cpu =
        [](const DecayGateBackward& args, const Launch& launch) {
          dispatch_real(args.dtype, "decay_gate",
                        [&]<class T>() { decay_gate_backward_cpu<T>(args, launch.workspace); });
        },
    .cuda = WEFT_ON_CUDA(decay_gate_backward_cuda),
    .cpu_workspace = [](const DecayGateBackward& args) { return cpu_workspace(args, true); },
    .cuda_workspace = WEFT_ON_CUDA(decay_gate_backward_cuda_workspace)};

struct DecayGateSaved {
  Tensor f, a_log, dt_bias;
  DecayGateFunction function;
  double bound;

  DecayGateProblem problem() const {
    return {.dtype = f.dtype(),
            .function = function,
            .T = f.dim(0),
            .H = f.dim(1),
            .W = f.rank() == 3 ? f.dim(2) : 1,
            .bound = bound,
            .f = f.raw(),
            .a_log = a_log.raw(),
            .dt_bias = dt_bias.raw()};
  }

  void backward(Backward& pass) const {
    DecayGateBackward args{problem()};
    const Tensor dg = pass.grad(0);
    const GradTarget df = pass.target(0), da_log = pass.target(1), ddt_bias = pass.target(2);
    args.dg = dg.raw();
    args.df = df.raw();
    args.write_df = df.write;
    args.da_log = da_log.raw();
    args.write_da_log = da_log.write;
    args.ddt_bias = ddt_bias.raw();
    args.write_ddt_bias = ddt_bias.write;
    kBackward.run(pass, args);
  }
};

Var decay_gate(Tape& tape, const char* op, DecayGateFunction function, const Var& f, const Var& a_log,
               const Var& dt_bias, double bound) {
  const Shape& shape = f.shape();
  WEFT_CHECK(shape.rank() == 2 || shape.rank() == 3, "{}: f is {}, expected [T,H] or [T,H,W]", op, shape.str());
  const std::int64_t channels = shape.rank() == 3 ? shape[1] * shape[2] : shape[1];
  WEFT_CHECK(a_log.shape() == Shape{shape[1]} && dt_bias.shape() == Shape{channels},
             "{}: a_log {} and dt_bias {} for f {}, expected {} and {}", op, a_log.shape().str(), dt_bias.shape().str(),
             shape.str(), Shape{shape[1]}.str(), Shape{channels}.str());
  WEFT_CHECK(a_log.dtype() == accumulator_dtype(f.dtype()) && dt_bias.dtype() == a_log.dtype(),
             "{}: a_log {} and dt_bias {} for f {}", op, name_of(a_log.dtype()), name_of(dt_bias.dtype()),
             name_of(f.dtype()));
  const DecayGateSaved saved{f.value, a_log.value, dt_bias.value, function, bound};
  const Tensor g = tape.empty(shape, accumulator_dtype(f.dtype()));
  tape.compute_cheaply({f.value, a_log.value, dt_bias.value}, {g},
                       [function, bound](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
                         DecayGateForward args{DecayGateSaved{in[0], in[1], in[2], function, bound}.problem()};
                         args.g = out[0].raw();
                         kForward.run(on, args);
                       });
  return tape.record(op, {f, a_log, dt_bias}, g, [&] { return saved; });
}

}  // namespace

Var softplus_decay(Tape& tape, const Var& f, const Var& a_log, const Var& dt_bias) {
  return decay_gate(tape, "softplus_decay", DecayGateFunction::softplus, f, a_log, dt_bias, 0.0);
}

Var bounded_decay(Tape& tape, const Var& f, const Var& a_log, const Var& dt_bias, double lower_bound) {
  WEFT_CHECK(lower_bound < 0.0, "bounded_decay: lower bound {}, expected a negative number", lower_bound);
  return decay_gate(tape, "bounded_decay", DecayGateFunction::bounded, f, a_log, dt_bias, lower_bound);
}

}  // namespace weft
