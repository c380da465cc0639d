// What weft makes of a model, on file for another program to compare with.
#pragma once

#include <filesystem>
#include <optional>

#include "data/tokenizers/tokenizer.h"
#include "modules/language_model.h"

namespace weft {

// Writes into `folder`:
//   expected.safetensors  ids.N i64 [T], positions.N i64 [n] and logits.N f32 [n, V] there, of up to 32 sequences: of 1
//                         to 4096 tokens, and one more and one less than the model's windows, chunks and blocks;
//                         prompt.N and greedy.N i64, the most probable text of up to 128 tokens behind up to 20 prompts
//   texts.json            {"texts": [...], "ids": [...], "prompt_ids": [...]}, with a tokenizer: awkward lines
// Large models get fewer and shorter ones, as many as about `seconds` allow. Returns after how many tokens the logits
// of some sequence were not finite numbers any more; such sequences end well before. Error (storage) if all of one are
// not.
std::optional<std::int64_t> write_expected_outputs(LanguageModel& model, const Tokenizer* tokenizer, double seconds,
                                                   const std::filesystem::path& folder);

}  // namespace weft
