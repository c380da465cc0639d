// What the recipe keys heads, kv_heads and head_dim stand for, where 0 means "from the others". `where` names the
// recipe table.
#pragma once

#include "modules/mixer.h"

namespace weft {

OptionSpec kv_heads_option();

// kv_heads, or as many as heads. Throws config_error unless they divide the heads.
std::int64_t kv_heads_from(const Options& options, const std::string& where);

// head_dim, or the model's width shared between the heads. Throws config_error where it cannot be.
std::int64_t head_dim_from(const MixerSite& site, const Options& options, const std::string& where);

}  // namespace weft
