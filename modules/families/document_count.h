// How many documents of a row there are to work on.
#pragma once

#include <cstdint>

namespace weft {

// Of N documents, cu_seqlens [N + 1].
inline std::int64_t documents_with_tokens(const std::int32_t* cu_seqlens, std::int64_t N) {
  std::int64_t documents = 0;
  for (std::int64_t n = 0; n < N; ++n) documents += cu_seqlens[n + 1] > cu_seqlens[n] ? 1 : 0;
  return documents;
}

}  // namespace weft
