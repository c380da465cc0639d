// Two files that should be the same tokenizer: do they give the same ids?
#pragma once

#include <string>
#include <vector>

#include "data/tokenizers/tokenizer.h"

namespace weft {

// A thousand lines of words, numbers, scripts, spaces and punctuation, always the same.
std::vector<std::string> probe_lines();

// Error (config) that names `source` and the first line of the probe on which the two differ.
void check_same_ids(const Tokenizer& a, const Tokenizer& b, const std::string& source);

}  // namespace weft
