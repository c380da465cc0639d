// What the benchmarks share: layer patterns by name and random text.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "autograd/documents.h"
#include "modules/language_model.h"

namespace weft::bench {

// Mixers by name with default options, except for those of `options` that a mixer has. "window" is attention over the
// last 256 tokens.
std::vector<MixerChoice> choices(const std::vector<std::string>& names,
                                 const std::map<std::string, OptionValue>& options);

struct Text {
  Tensor tokens, labels;  // i32 [T]
  DocumentsPtr documents;
};
// T random bytes in documents of `document` tokens.
Text random_text(std::int64_t T, std::int64_t document);

}  // namespace weft::bench
