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
  NormRopeProblem problem;
  Tensor x, weight, rstd;
  RopeLevels levels;
  DocumentsPtr documents;

  void backward(Backward& pass) const {
    NormRopeBackward args{problem};
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
  NormRopeForward args{{.dtype = x.dtype(),
                        .T = x.dim(0),
                        .H = x.dim(1),
                        .D = x.dim(2),
                        .eps = eps,
                        .angles = table.angles_on(tape.stream(), *documents),
                        .x = x.value.raw(),
                        .weight = weight.value.raw(),
                        .rstd = rstd.raw()}};
  args.y = y.raw();
  kForward.run(tape, args);
  return tape.record("norm_rope", {x, weight}, y, [&] {
    return NormRopeSaved{args, x.value, weight.value, rstd, table.levels_on(tape.stream()), documents};
  });
}

}  // namespace weft
