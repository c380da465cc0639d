// The CUDA side of gated_linear.h: which kernels serve a problem, and their launchers.
//
//   general   any width, element type, decay, feature map and sharing of keys; fp32 on the ordinary pipeline
//   walk      bf16, one decay for all key channels, widths of 64 and 128: tensor cores, by segments of documents
//   row       the same for many heads; documents that nearly fill one chunk are left to walk
//   channels  bf16, a decay per key channel, the same widths: tensor cores
#pragma once

#include "modules/families/gated_linear/gated_linear.h"

namespace weft {

// Block length of the chunk table that the kernels for this problem walk (its C and tables need not be set).
std::int64_t gated_linear_chunk_cuda(const GatedLinearProblem& p);

void gated_linear_forward_cuda(const GatedLinearForward& args, const Launch& launch);
void gated_linear_backward_cuda(const GatedLinearBackward& args, const Launch& launch);
void gated_linear_decode_cuda(const GatedLinearDecode& args, const Launch& launch);
std::size_t gated_linear_forward_cuda_workspace(const GatedLinearForward& args);
std::size_t gated_linear_backward_cuda_workspace(const GatedLinearBackward& args);

namespace general {
inline constexpr std::int64_t kChunk = 64;
void forward(const GatedLinearForward& args, const Launch& launch);
void backward(const GatedLinearBackward& args, const Launch& launch);
std::size_t forward_workspace(const GatedLinearForward& args);
std::size_t backward_workspace(const GatedLinearBackward& args);
}  // namespace general

namespace walk {
// Tokens that one block takes from the state before them to the state after them.
inline constexpr std::int64_t kSegment = 1024;
void forward(const GatedLinearForward& args, const Launch& launch);
void backward(const GatedLinearBackward& args, const Launch& launch);
std::size_t forward_workspace(const GatedLinearForward& args);
std::size_t backward_workspace(const GatedLinearBackward& args);
}  // namespace walk

namespace channels {
void forward(const GatedLinearForward& args, const Launch& launch);
void backward(const GatedLinearBackward& args, const Launch& launch);
std::size_t forward_workspace(const GatedLinearForward& args);
std::size_t backward_workspace(const GatedLinearBackward& args);
}  // namespace channels

namespace row {
inline constexpr std::int64_t kChunk = 1024;
// Documents of more tokens than this and at most a chunk are left to the other kernel.
inline constexpr std::int64_t kFewTokens = 192;
// Widths, type and device of all kernels for Hopper: these, the walks and the channels.
bool serves(const GatedLinearProblem& p);
void forward(const GatedLinearForward& args, const Launch& launch);
void backward(const GatedLinearBackward& args, const Launch& launch);
std::size_t forward_workspace(const GatedLinearForward& args);
std::size_t backward_workspace(const GatedLinearBackward& args);
}  // namespace row

}  // namespace weft
