// Byte-pair encoding, learned: which pairs of tokens become a token, in order.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "data/train_tokenizer/word_table.h"

namespace weft {

struct LearnedMerges {
  std::vector<std::string> tokens;                             // bytes of each id
  std::vector<std::pair<std::uint32_t, std::uint32_t>> pairs;  // of ids, in order
};

// Begins with one token a byte, in the order of `first_tokens` behind `reserved` (ids whose text no merge may spell),
// and adds the pair that occurs most often in the words until there are `vocabulary` tokens or no pair occurs
// `min_count` times. Of pairs that occur equally often the one with the lower first id comes first, then that with the
// lower second id: the rule of the package tokenizers. A pair whose text is a token already becomes that token.
// `progress` gets the number of tokens.
LearnedMerges learn_merges(const WordTable& words, const std::vector<std::string>& reserved,
                           const std::vector<unsigned char>& first_tokens, std::int64_t vocabulary,
                           std::int64_t min_count, const std::function<void(std::int64_t)>& progress);

}  // namespace weft
