// Writes a model as a directory that other libraries load, and rereads it.
//
// V vocabulary, T tokens.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "checkpoints/huggingface/target.h"
#include "checkpoints/safetensors/dtype.h"
#include "checkpoints/safetensors/writer.h"
#include "data/tokenizers/tokenizer_files.h"

namespace weft {

struct ExportSource {
  const HubTarget& target;  // without obstacles
  const HubModel& hub;
  LanguageModel& model;              // parameters in host memory, f32
  const TokenizerBundle* tokenizer;  // nullptr: its tokens are no text
};

struct ExportFiles {
  SafetensorsDType dtype = SafetensorsDType::bf16;  // bf16, f16 or f32; what rules keep in fp32 stays so
  std::uint64_t shard_bytes = kDefaultShardBytes;
  std::string card;  // README.md
};

// Weights, config.json, generation_config.json, the tokenizer's files, Python files and the card, into a folder that
// exists and is empty. The same source gives the same bytes. Returns what write_tokenizer does.
std::string write_export(const ExportSource& source, const ExportFiles& files, const std::filesystem::path& folder);

// Rounds the parameters, in place, to what files hold of them.
void round_to_files(const ExportSource& source, SafetensorsDType dtype);

// How a folder that was reread compares with the model that it was made of.
struct Reread {
  std::vector<std::int64_t> lengths;  // of the sequences whose logits were compared
  double max_difference = 0.0;        // of logits
  double largest_logit = 0.0;         // its absolute value
};

// The gate: reads the folder as `weft import` does and compares config, every parameter (bit by bit) and logits with a
// model that has been rounded to its files. Error (storage) that says what differs.
Reread check_export(const ExportSource& source, const std::filesystem::path& folder);

// Ids of `length` tokens, the same in every run, for comparisons of logits.
std::vector<std::int32_t> probe_tokens(std::int64_t length, std::int64_t vocabulary);
// Logits [n, V] at some positions of one document.
Tensor logits_at(LanguageModel& model, std::span<const std::int32_t> tokens, std::span<const std::int64_t> positions);
// At every position: [T, V].
Tensor logits_of(LanguageModel& model, std::span<const std::int32_t> tokens);

}  // namespace weft
