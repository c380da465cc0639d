#include "modules/families/block_sparse/sparse_options.h"

#include <numeric>

namespace weft::block_sparse {

OptionSpec integer_option(const char* key, std::int64_t value, const char* help, double minimum, double maximum) {
  return {.key = key, .default_value = value, .help = help, .minimum = minimum, .maximum = maximum, .choices = {}};
}

OptionSpec flag_option(const char* key, bool value, const char* help) {
  return {.key = key, .default_value = value, .help = help, .choices = {}};
}

std::vector<OptionSpec> head_options() {
  return {integer_option("heads", 4, "query heads", 1, 65536),
          integer_option("kv_heads", 0, "key/value heads, each shared by heads / kv_heads query heads; 0 = heads", 0,
                         65536),
          integer_option("head_dim", 0, "width of a head; 0 = width / heads", 0, 65536),
          flag_option("rope", true, "rotary positions; false = no position encoding"),
          OptionSpec{.key = "rope_base",
                     .default_value = 10000.0,
                     .help = "base of the rotary frequencies",
                     .minimum = 1.0,
                     .maximum = 1e30,
                     .choices = {}}};
}

SparseHeads heads_from(const MixerSite& site, const Options& options, const std::string& where) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t kv_heads = options.integer("kv_heads") == 0 ? heads : options.integer("kv_heads");
  if (heads % kv_heads != 0) {
    config_error("{}: heads = {} is not a multiple of kv_heads = {}", where, heads, kv_heads);
  }
  std::int64_t head_dim = options.integer("head_dim");
  if (head_dim == 0) {
    if (site.width % heads != 0) {
      config_error("{}: heads = {} does not divide the model's width = {}; set head_dim", where, heads, site.width);
    }
    head_dim = site.width / heads;
  }
  std::optional<RopeConfig> rope;
  if (options.flag("rope")) {
    if (head_dim % 2 != 0) {
      config_error("{}: head_dim = {} is odd; rope = true turns channels in pairs and needs an even number", where,
                   head_dim);
    }
    rope = RopeConfig{.rotary_dim = head_dim, .base = options.real("rope_base")};
  }
  return {.heads = heads, .kv_heads = kv_heads, .head_dim = head_dim, .rope = rope};
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

DocumentsPtr decode_documents(std::span<const std::int32_t> positions) {
  std::vector<std::int32_t> cu(positions.size() + 1);
  std::iota(cu.begin(), cu.end(), 0);
  return std::make_shared<const Documents>(std::move(cu),
                                           std::vector<std::int32_t>(positions.begin(), positions.end()));
}

}  // namespace weft::block_sparse
