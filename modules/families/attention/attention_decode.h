// One token of each sequence over a cache in device memory. What the kernels do depends on nothing but the content of
// memory, so that a recorded step serves until the cache needs more pages.
#pragma once

#include "modules/families/attention/key_value_cache.h"

namespace weft {

inline constexpr std::int64_t kWidestDecodedValue = 512;

struct AttentionDecode {
  DType dtype;
  std::int64_t N, H_Q, H_KV, D, D_V;
  AttentionOptions options;
  CachedTable cache;               // with room for the tokens
  std::int64_t most_keys;          // that a query sees, now and in replays
  const std::int32_t* cu_seqlens;  // [N + 1]
  const std::int32_t* positions;   // [N]
  const void* q;                   // [N, H_Q, D], rotated
  const void* k;                   // [N, H_KV, D], rotated
  const void* v;                   // [N, H_KV, D_V]
  const void* sink_logit;          // f32 [H_Q] or null
  void* o;                         // [N, H_Q, D_V]
};
// Appends the tokens, then attends.
void attention_decode_cuda(const AttentionDecode& args, const Launch& launch);
std::size_t attention_decode_cuda_workspace(const AttentionDecode& args);

}  // namespace weft
