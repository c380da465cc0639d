// Tuning of the CPU kernels: constants, measured on AVX2 cores with OpenBLAS.
#pragma once

#include "modules/families/gated_linear/gated_linear.h"

namespace weft {

struct GatedLinearCpuPolicy {
  // Chunk length. Longer chunks spend more on the masked products, shorter ones more on the states; for head widths of
  // 32 to 128 the same length is within 10 % of the best for every kind.
  static constexpr std::int64_t chunk(DecayKind) { return 64; }
  // Rows of a chunk whose masked products are taken together; the part right of the diagonal is skipped blockwise.
  static constexpr std::int64_t kRowBlock = 16;
  // The fused schedule walks as many heads together as have states of this size.
  static constexpr std::int64_t kGroupStateBytes = 256 * 1024;
  // The two-level schedule looks at windows of so many (chunk, head) pairs for each thread.
  static constexpr std::int64_t kWindowItemsPerThread = 16;
};

}  // namespace weft
