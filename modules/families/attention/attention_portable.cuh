// Kernels of attention.h for every width up to 256 and both element types, in fp32 arithmetic on any GPU from sm_80:
// what is not worth a kernel of its own, and what tests at a tight tolerance compare with.
#pragma once

#include "modules/families/attention/attention_tables.cuh"
#include "modules/families/attention/visibility.cuh"

namespace weft::attention_cuda {

inline constexpr std::int64_t kWidest = 256;  // head

struct ScoreArgs;
ScoreArgs score_args(const AttentionShape& shape, const AttentionOptions& options);

// [T, H_Q] = <d_o, o> - dlse
void attention_delta(const AttentionBackward& args, float* delta, cudaStream_t stream);
void attention_sink_gradient(const AttentionBackward& args, const float* delta, cudaStream_t stream);

void attention_forward_portable(const AttentionForward& args, const AttentionQueryTile* short_tiles,
                                cudaStream_t stream);
void attention_backward_portable(const AttentionBackward& args, const AttentionQueryTile* short_tiles,
                                 const AttentionKeyTile* key_tiles, const float* delta, cudaStream_t stream);

}  // namespace weft::attention_cuda
