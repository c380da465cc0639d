#include "modules/families/block_sparse/sparse_options.h"

#include "modules/head_options.h"
#include "modules/rope_options.h"

namespace weft::block_sparse {

std::vector<OptionSpec> head_options() {
  return {integer_option("heads", 4, "query heads", 1, 65536), kv_heads_option(),
          integer_option("head_dim", 0, "width of a head; 0 = width / heads", 0, 65536), rope_option(),
          rope_base_option()};
}

SparseHeads heads_from(const MixerSite& site, const Options& options, const std::string& where) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t kv_heads = kv_heads_from(options, where);
  const std::int64_t head_dim = head_dim_from(site, options, where);
  return {.heads = heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .rope = rope_from(options, "head_dim", head_dim, where)};
}

std::vector<OptionSpec> block_options(std::int64_t selected) {
  return {integer_option("compress_length", 32, "tokens of a compressed key", 1, 65536),
          integer_option("compress_stride", 16, "tokens from one compressed key to the next", 1, 65536),
          integer_option("block", 64, "tokens of a block that is selected", 1, 1 << 20),
          integer_option("selected", selected, "blocks a query attends to, the forced ones included", 1, 1 << 20),
          integer_option("first_blocks", 1, "first blocks of the document, which are always selected", 0, 1 << 20)};
}

KeySpan compression_span_from(const Options& options, const std::string& where) {
  const std::int64_t length = options.integer("compress_length");
  const std::int64_t stride = options.integer("compress_stride");
  if (length % stride != 0) {
    config_error("{}: compress_length = {} is not a multiple of compress_stride = {}", where, length, stride);
  }
  return {static_cast<std::int32_t>(length), static_cast<std::int32_t>(stride)};
}

BlockRule block_rule_from(const Options& options, KeySpan span, std::int64_t local, std::int64_t dense,
                          const std::string& where) {
  const std::int64_t block = options.integer("block");
  const std::int64_t selected = options.integer("selected");
  const std::int64_t first = options.integer("first_blocks");
  if (block % span.stride != 0) {
    config_error("{}: block = {} is not a multiple of compress_stride = {}", where, block, span.stride);
  }
  if (selected < first + local) {
    config_error(
        "{}: selected = {} leaves no room for the {} first and {} last blocks, which are always selected; "
        "raise it to at least {}",
        where, selected, first, local, first + local);
  }
  return {.block = block, .selected = selected, .first = first, .local = local, .dense = dense};
}

}  // namespace weft::block_sparse
