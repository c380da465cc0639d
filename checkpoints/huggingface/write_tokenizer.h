// The files of a tokenizer beside a model: tokenizer.json or tokenizer.model, tokenizer_config.json and
// special_tokens_map.json.
#pragma once

#include <cstdint>
#include <filesystem>

#include "data/tokenizers/tokenizer_files.h"

namespace weft {

// The tokenizer's own files, byte for byte, and what is missing beside them; the byte tokenizer gets a tokenizer.json
// of the same ids. generation_config.json is not of the tokenizer and not written. `max_positions`: 0 is unknown.
void write_tokenizer(const TokenizerBundle& bundle, std::int64_t max_positions, const std::filesystem::path& folder);

}  // namespace weft
