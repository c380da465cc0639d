// The recipe keys of the family's mixers and what they mean. Impossible values throw config_error; `where` names the
// recipe table.
#pragma once

#include <optional>

#include "autograd/ops/rope/rope.h"
#include "modules/families/block_sparse/block_choice.h"
#include "modules/mixer.h"

namespace weft::block_sparse {

// heads, kv_heads, head_dim, rope, rope_base.
struct SparseHeads {
  std::int64_t heads, kv_heads, head_dim;
  std::optional<RopeConfig> rope;
};
std::vector<OptionSpec> head_options();
SparseHeads heads_from(const MixerSite& site, const Options& options, const std::string& where);

// For choosing by compressed keys: compress_length, compress_stride, block, selected (with this default), first_blocks.
// `local` blocks are forced at the end, and queries before position `dense` take every block.
std::vector<OptionSpec> block_options(std::int64_t selected);
KeySpan compression_span_from(const Options& options, const std::string& where);
BlockRule block_rule_from(const Options& options, KeySpan span, std::int64_t local, std::int64_t dense,
                          const std::string& where);

}  // namespace weft::block_sparse
