// Tuning of the CPU kernels: constants, measured on AVX2 cores with OpenBLAS.
#pragma once

#include <cstdint>

namespace weft {

struct DeltaRuleCpuPolicy {
  // Longer chunks spend more on the masked products and the solve, shorter ones more on the states.
  static constexpr std::int64_t kChunk = 64;
  // Rows of a chunk whose masked products, or whose equations, are taken together.
  static constexpr std::int64_t kRowBlock = 16;
  // Value columns that a walk over the states takes together; columns do not depend on each other.
  static constexpr std::int64_t kColumns = 64;
  // The two-level schedule looks at windows of so many (chunk, head) pairs for each thread.
  static constexpr std::int64_t kWindowItemsPerThread = 8;
};

}  // namespace weft
