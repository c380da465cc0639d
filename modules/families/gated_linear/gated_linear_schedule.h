// How the work of a recurrence is cut on the CPU: which schedule, and what its tasks take together. Results do not
// depend on it.
#pragma once

#include <algorithm>

#include "autograd/parallel_for.h"
#include "modules/families/document_count.h"
#include "modules/families/gated_linear/gated_linear_policy.h"

namespace weft {

inline ChunkSchedule gated_linear_schedule(const GatedLinearProblem& p) {
  if (p.schedule != ChunkSchedule::automatic) return p.schedule;
  const std::int64_t threads = task_threads();
  const std::int64_t documents = documents_with_tokens(p.cu_seqlens, p.N);
  const std::int64_t sets = p.key_heads();  // of heads that one task walks, because they share keys
  const bool even = documents * sets >= 4 * threads || (documents == 1 && sets % threads == 0);
  return even ? ChunkSchedule::fused : ChunkSchedule::two_level;
}

// Heads that a task of the fused schedule walks together: whole sets of those that share keys.
inline std::int64_t gated_linear_group(const GatedLinearProblem& p) {
  const std::int64_t documents = documents_with_tokens(p.cu_seqlens, p.N);
  const std::int64_t tasks = task_threads() * (documents == 1 ? 1 : 4);  // documents differ in length
  const std::int64_t state_bytes = p.d_k * p.d_v * static_cast<std::int64_t>(size_of(p.dtype));
  const std::int64_t in_cache = GatedLinearCpuPolicy::kGroupStateBytes / state_bytes;
  const std::int64_t sets = std::min(in_cache, documents * p.H / tasks) / p.heads_per_key();
  return std::clamp<std::int64_t>(sets, 1, p.key_heads()) * p.heads_per_key();
}

// Chunks of the table that the two-level schedule treats together.
inline std::int64_t gated_linear_window(const GatedLinearProblem& p) {
  const std::int64_t items = GatedLinearCpuPolicy::kWindowItemsPerThread * task_threads();
  return std::clamp<std::int64_t>(block_count(items, std::max<std::int64_t>(1, p.key_heads())), 1,
                                  std::max<std::int64_t>(1, p.chunk_count));
}

}  // namespace weft
