// Fields of a config.json that every class may have.
#pragma once

#include "checkpoints/huggingface/config_reader.h"
#include "checkpoints/huggingface/target.h"

namespace weft {

// Passes over fields that never change what a causal model computes (where it came from, how text was generated with
// it), and requires those that could to have the value that changes nothing. Error (config) otherwise.
void read_general_fields(ConfigReader& config);

// Special tokens of a class; -1: none.
struct TokenIds {
  std::int32_t bos = -1, eos = -1, pad = -1;
};

// bos_token_id, eos_token_id and pad_token_id; `absent` where the file has no such field.
void read_token_ids(ConfigReader& config, const TokenIds& absent, HubModel& model);

}  // namespace weft
