// Tuning of the CPU kernels: constants, measured on AVX2 cores with OpenBLAS.
#pragma once

#include "modules/families/gated_linear/gated_linear.h"

namespace weft {

struct GatedLinearCpuPolicy {
  // Chunk length. Longer chunks spend more on the masked products, shorter ones more on the states.
  static constexpr std::int64_t chunk(DecayKind kind) { return kind == DecayKind::vector ? 64 : 64; }
  // Rows of a chunk whose masked products are taken together; the part right of the diagonal is skipped blockwise.
  static constexpr std::int64_t kRowBlock = 32;
  // Vector kind: blocks at least this long go through the BLAS, smaller ones through loops.
  static constexpr std::int64_t kGemmBlock = 8;
  // The two-level schedule looks at windows of so many (chunk, head) pairs for each thread.
  static constexpr std::int64_t kWindowItemsPerThread = 16;
};

}  // namespace weft
