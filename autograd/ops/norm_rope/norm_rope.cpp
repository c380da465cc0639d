#include "autograd/ops/norm_rope/norm_rope.h"

#include "autograd/ops/rms_norm/rms_norm.h"

namespace weft {
namespace {

// Fused on GPUs alone: the CPU runs the two operations.
constexpr Dispatch<NormRopeForward> kForward{.op = "norm_rope forward", .cuda = WEFT_ON_CUDA(norm_rope_forward_cuda)};
constexpr Dispatch<NormRopeBackward> kBackward{.op = "norm_rope backward",
                                               .cuda = WEFT_ON_CUDA(norm_rope_backward_cuda),
                                               .cuda_workspace = WEFT_ON_CUDA(norm_rope_backward_cuda_workspace)};

struct NormRopeSaved {
  Tensor x, weight, rstd;
  double eps;
  RopeAngles angles;  // of the levels and the documents
  RopeLevels levels;
  DocumentsPtr documents;

  NormRopeProblem problem() const {
    return {.dtype = x.dtype(),
            .T = x.dim(0),
            .H = x.dim(1),
            .D = x.dim(2),
            .eps = eps,
            .angles = angles,
            .x = x.raw(),
            .weight = weight.raw(),
            .rstd = rstd.raw()};
  }

  void backward(Backward& pass) const {
    NormRopeBackward args{problem()};
    const Tensor dy = pass.grad(0);
    const GradTarget dx = pass.target(0), dweight = pass.target(1);
    args.dy = dy.raw();
    args.dx = dx.raw();
    args.write_dx = dx.write;
    args.dweight = dweight.raw();
    args.write_dweight = dweight.write;
    kBackward.run(pass, args);
  }
};

bool is_fused(const Tape& tape, const Var& x, const Var& weight, const RopeTable& table) {
  if (tape.device().is_cpu() || x.shape().rank() != 3) return false;
  const std::int64_t D = x.dim(2);
  return (D == 64 || D == 128 || D == 256) && table.rotary_dim() == D && weight.shape() == Shape{D};
}

}  // namespace

Var norm_rope(Tape& tape, const Var& x, const Var& weight, const DocumentsPtr& documents, const RopeTable& table,
              double eps) {
  if (!is_fused(tape, x, weight, table)) return rope(tape, rms_norm(tape, x, weight, eps), documents, table);
  WEFT_CHECK(x.dim(0) == documents->tokens() && weight.dtype() == accumulator_dtype(x.dtype()),
             "norm_rope: x {} {} and weight {} for {} tokens", x.shape().str(), name_of(x.dtype()),
             name_of(weight.dtype()), documents->tokens());
  const Tensor y = tape.empty(x.shape(), x.dtype());
  const Tensor rstd = tape.empty({x.dim(0), x.dim(1)}, accumulator_dtype(x.dtype()));
  const RopeAngles angles = table.angles_on(tape.stream(), *documents);
  const RopeLevels levels = table.levels_on(tape.stream());
  const auto launch = [eps, angles, levels, documents](const Tape& on, std::span<const Tensor> in,
                                                       std::span<const Tensor> out) {
    NormRopeForward args{NormRopeSaved{in[0], in[1], out[1], eps, angles, levels, documents}.problem()};
    args.y = out[0].raw();
    kForward.run(on, args);
  };
  tape.compute_cheaply({x.value, weight.value}, {y, rstd}, launch);
  return tape.record("norm_rope", {x, weight}, y,
                     [&] { return NormRopeSaved{x.value, weight.value, rstd, eps, angles, levels, documents}; });
}

}  // namespace weft
