// The files of a tokenizer beside a model: tokenizer.json or tokenizer.model, tokenizer_config.json and
// special_tokens_map.json.
#pragma once

#include <cstdint>
#include <filesystem>

#include "data/tokenizers/tokenizer.h"

namespace weft {

// A tokenizer that was read from a file gets that file, byte for byte; the byte tokenizer a tokenizer.json of the same
// ids. `max_positions`: 0 is unknown.
void write_tokenizer_files(const Tokenizer& tokenizer, std::int64_t max_positions, const std::filesystem::path& folder);

}  // namespace weft
