// Text from a model: the prompt goes through once, then one token at a time on cached states.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "autograd/place.h"
#include "modules/language_model.h"
#include "train/generate/sampling.h"

namespace weft {

struct GenerateOptions {
  std::int64_t tokens = 256;       // at most
  std::vector<std::int32_t> stop;  // ids that end the text earlier, ascending
  std::int64_t ids = 0;            // only ids below this are drawn: a model may have more than its tokenizer; 0: all
  SamplingOptions sampling;
};

struct Generated {
  std::vector<std::int32_t> tokens;  // without prompt and end token
  std::size_t state_bytes = 0;       // of the cached states at the end
  double prefill_seconds = 0.0;
  double decode_seconds = 0.0;
};

// The model lives at `place`. The prompt has at least one token. `on_token` sees each token as it is drawn; it returns
// false to stop.
Generated generate(LanguageModel& model, const Place& place, std::span<const std::int32_t> prompt,
                   const GenerateOptions& options, const std::function<bool(std::int32_t)>& on_token = {});

}  // namespace weft
