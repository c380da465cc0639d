// Recipe keys of rotary positions, for the mixers that turn queries and keys. `where` names the recipe table.
#pragma once

#include <optional>

#include "autograd/ops/rope/rope.h"
#include "modules/options.h"

namespace weft {

OptionSpec rope_option(const char* help = "rotary positions; false = no position encoding");
OptionSpec rope_base_option(const char* help = "base of the rotary frequencies");
OptionSpec yarn_factor_option();
OptionSpec yarn_original_length_option();
// rope_scaling and its numbers: how pretrained models stretch their frequencies (RopeScaling).
std::vector<OptionSpec> rope_scaling_options();

// What rope and rope_base say for heads of which `width` channels turn; nullopt for rope = false. Throws config_error
// for an odd width, which it names by its `key`, and for a rope_base without rope.
std::optional<RopeConfig> rope_from(const Options& options, const char* key, std::int64_t width,
                                    const std::string& where);

// The same, stretched by yarn_factor from yarn_original_length. Throws config_error for one without the other, and for
// a factor without rope.
std::optional<RopeConfig> yarn_rope_from(const Options& options, const char* key, std::int64_t width,
                                         const std::string& where);

// The same, with the scaling of rope_scaling_options(). Throws config_error for numbers of a scaling that is not used.
std::optional<RopeConfig> scaled_rope_from(const Options& options, const char* key, std::int64_t width,
                                           const std::string& where);
// What the scaling keys say, and back.
RopeScaling rope_scaling_from(const Options& options);
void set_rope_scaling(Options& options, const RopeScaling& scaling);

}  // namespace weft
