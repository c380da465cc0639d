// Launchers of the Hopper kernels, and which problems they take.
#pragma once

#include <cmath>

#include "modules/families/attention/attention_tables.cuh"

namespace weft::attention_cuda {

// bf16, where hopper_kernels() run, heads whose rows start on 16 bytes: up to 256 wide, or 192 and
// 128 in the backward pass.
bool hopper_takes(const AttentionForward& args);
bool hopper_takes(const AttentionBackward& args);

inline double logit_scale(const AttentionShape& shape, const AttentionOptions& options) {
  return options.scale != 0.0 ? options.scale : 1.0 / std::sqrt(static_cast<double>(shape.D));
}

// `tiles` is the sorted table of kForwardRows; `counter` an int of scratch memory.
void attention_forward_hopper(const AttentionForward& args, const AttentionQueryTile* tiles, int* counter,
                              cudaStream_t stream);

// Elements of the backward kernel's buffers.
struct HopperBackwardSizes {
  std::int64_t stats, dq_sum, turns;
};
HopperBackwardSizes hopper_backward_sizes(const AttentionShape& shape, std::int64_t query_tiles);

struct HopperBackwardBuffers {
  const AttentionQueryTile* query_tiles;  // of kBackwardRows, in row order
  const AttentionKeyTile* key_tiles;
  std::int64_t query_count;  // of tiles
  float* stats;
  float* dq_sum;
  int* turns;
};
void attention_backward_hopper(const AttentionBackward& args, const HopperBackwardBuffers& buffers,
                               cudaStream_t stream);

}  // namespace weft::attention_cuda
