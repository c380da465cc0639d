// Which CUDA kernels serve a problem of the delta rule.
#include "modules/families/delta_rule/delta_rule_cuda.h"

namespace weft {
namespace {

void check(const DeltaRuleProblem& p) {
  if (p.d_k <= kDeltaCudaKeyWidth && p.C <= kDeltaCudaChunk) return;
  fail(ExitCode::config,
       "delta_rule on a GPU: key heads of width {} in chunks of {}; it takes widths up to {}, chunks up to {}", p.d_k,
       p.C, kDeltaCudaKeyWidth, kDeltaCudaChunk);
}

}  // namespace

void delta_rule_forward_cuda(const DeltaRuleForward& args, const Launch& launch) {
  check(args);
  delta_general_forward(args, launch);
}

std::size_t delta_rule_forward_cuda_workspace(const DeltaRuleForward& args) {
  return delta_general_forward_workspace(args);
}

void delta_rule_backward_cuda(const DeltaRuleBackward& args, const Launch& launch) {
  check(args);
  delta_general_backward(args, launch);
}

std::size_t delta_rule_backward_cuda_workspace(const DeltaRuleBackward& args) {
  return delta_general_backward_workspace(args);
}

}  // namespace weft
