// The CUDA kernels of delta_rule.h, one direction of one path each. Host declarations; sizes of workspaces in bytes.
#pragma once

#include "modules/families/delta_rule/delta_rule.h"

namespace weft {

// Longest chunk of the CUDA kernels, and the widest key head of the general ones.
inline constexpr std::int64_t kDeltaCudaChunk = 64;
inline constexpr std::int64_t kDeltaCudaKeyWidth = 256;

// Any widths, f32 or bf16, arithmetic in fp32 (README.md, "On the GPU").
void delta_general_forward(const DeltaRuleForward& args, const Launch& launch);
std::size_t delta_general_forward_workspace(const DeltaRuleForward& args);
void delta_general_backward(const DeltaRuleBackward& args, const Launch& launch);
std::size_t delta_general_backward_workspace(const DeltaRuleBackward& args);

}  // namespace weft
