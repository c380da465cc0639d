// One reader, several encoders, and the caller, who takes the results in the order in which they were read.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "data/prepare/encoder.h"

namespace weft {

struct PipelineStages {
  std::function<std::optional<TextBatch>()> read;
  std::function<EncodedBatch(TextBatch)> encode;  // called from several threads
  std::function<void(EncodedBatch&&)> take;       // called from the calling thread
};

// Runs until the reader has no more. Batches on their way hold at most `memory` bytes (one batch is always allowed);
// the reader waits beyond that. The first exception of any stage ends all threads and is thrown here.
void run_pipeline(const PipelineStages& stages, int encoders, std::int64_t memory);

}  // namespace weft
