// One chunk of one value head as the CUDA kernels of the delta rule see it.
#pragma once

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/pack.cuh"
#include "modules/families/delta_rule/delta_rule_cuda.h"

namespace weft {

// First elements of one chunk of one value head in [T,H_K,d_k], [T,H,d_v], [T,H,d_k], [T,H], and how far rows are
// apart.
struct ChunkRows {
  __device__ ChunkRows(const DeltaRuleProblem& p, const Chunk& chunk, int h)
      : n(chunk.end - chunk.begin),
        key((chunk.begin * p.H_K + h / (static_cast<int>(p.H) / static_cast<int>(p.H_K))) * p.d_k),
        value((chunk.begin * p.H + h) * p.d_v),
        head(chunk.begin * p.H + h),
        ld_key(static_cast<int>(p.H_K * p.d_k)),
        ld_value(static_cast<int>(p.H * p.d_v)),
        ld_head(static_cast<int>(p.H)) {
    const auto* decays = static_cast<const float*>(p.g);
    if (p.decay == DeltaDecay::none) return;
    const bool channels = p.decay == DeltaDecay::channel;
    g = decays + (channels ? head * p.d_k : head);
    ld_g = channels ? static_cast<int>(p.H * p.d_k) : static_cast<int>(p.H);
    channel_step = channels ? 1 : 0;
  }
  __device__ float decay(int i, int x) const { return g == nullptr ? 0.0f : g[i * ld_g + x * channel_step]; }

  int n;
  std::int64_t key, value, head;
  int ld_key, ld_value, ld_head;  // 64 rows of them fit into 31 bits
  const float* g = nullptr;
  int ld_g = 0, channel_step = 0;
};

}  // namespace weft
