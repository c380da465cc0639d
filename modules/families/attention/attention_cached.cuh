// Launchers of attention over cached pages.
#pragma once

#include "autograd/cuda/cuda_check.cuh"
#include "modules/families/attention/key_value_cache.h"

namespace weft::attention_cuda {

// Latent attention decodes with keys of 576 and values of 512, which a Hopper block's shared memory holds.
inline constexpr std::int64_t kWidestCached = 576;
inline constexpr std::int64_t kWidestCachedValue = 512;

std::size_t attention_cached_workspace(const AttentionForward& args);
void attention_cached(const AttentionForward& args, const Launch& launch);

}  // namespace weft::attention_cuda
