// The files of a tokenizer beside a model: tokenizer.json or tokenizer.model, tokenizer_config.json and
// special_tokens_map.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "data/tokenizers/tokenizer_files.h"

namespace weft {

// The tokenizer's own files, byte for byte, and what is missing beside them; the byte tokenizer gets a tokenizer.json
// of the same ids, and so does a tokenizer.model, with a tokenizer_config.json that makes transformers take it.
// generation_config.json is not of the tokenizer and not written. `max_positions`: 0 is unknown. Returns why a
// tokenizer.model is alone, if it is, so that transformers makes its own of it.
std::string write_tokenizer(const TokenizerBundle& bundle, std::int64_t max_positions,
                            const std::filesystem::path& folder);

}  // namespace weft
