// A stretch of tokens that lies in one chunk, as the walks over documents whose memory is rewritten chunk by chunk hand
// it to their kernels.
#pragma once

#include <cstdint>

namespace weft {

// n consecutive tokens of one head, the first of them the phase-th of its chunk.
struct MemorySpan {
  std::int64_t head, begin, n, phase;
  bool complete;      // the chunk ends here
  bool last = false;  // so does the document
};

}  // namespace weft
