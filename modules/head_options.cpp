#include "modules/head_options.h"

#include "autograd/check.h"

namespace weft {

OptionSpec kv_heads_option() {
  return integer_option("kv_heads", 0, "key/value heads, each shared by heads / kv_heads query heads; 0 = heads", 0,
                        65536);
}

std::int64_t kv_heads_from(const Options& options, const std::string& where) {
  const std::int64_t heads = options.integer("heads"), kv_heads = options.integer("kv_heads");
  if (kv_heads == 0) return heads;
  if (heads % kv_heads != 0) {
    config_error("{}: heads = {} is not a multiple of kv_heads = {}", where, heads, kv_heads);
  }
  return kv_heads;
}

std::int64_t head_dim_from(const MixerSite& site, const Options& options, const std::string& where) {
  const std::int64_t heads = options.integer("heads"), head_dim = options.integer("head_dim");
  if (head_dim > 0) return head_dim;
  if (site.width % heads != 0) {
    config_error("{}: heads = {} does not divide the model's width = {}; set head_dim", where, heads, site.width);
  }
  return site.width / heads;
}

}  // namespace weft
