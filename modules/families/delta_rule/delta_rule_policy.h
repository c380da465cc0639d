// Tuning of the CPU kernels: constants, measured on AVX2 cores with OpenBLAS.
#pragma once

#include <cstdint>

namespace weft {

struct DeltaRuleCpuPolicy {
  // Longer chunks spend more on the masked products and the solves, shorter ones more on the states; for head widths of
  // 64 and 128 this length is within 10 % of the best for every kind of decay.
  static constexpr std::int64_t kChunk = 64;
  // Rows of a chunk whose masked products, or whose equations, are taken together.
  static constexpr std::int64_t kRowBlock = 16;
  // Value columns that a walk over the states takes together. Narrower blocks keep more threads busy with few heads;
  // twice this width would be 4 % faster on one thread.
  static constexpr std::int64_t kColumns = 32;
  // The two-level schedule looks at windows of so many (chunk, head) pairs for each thread.
  static constexpr std::int64_t kWindowItemsPerThread = 8;
};

}  // namespace weft
