#include "modules/rope_options.h"

#include "autograd/check.h"

namespace weft {
namespace {

constexpr double kBase = 10000.0;  // unless the recipe says otherwise

}  // namespace

OptionSpec rope_option(const char* help) {
  return flag_option("rope", true, help);
}

OptionSpec rope_base_option(const char* help) {
  return real_option("rope_base", kBase, help, 1.0, 1e30);
}

OptionSpec yarn_factor_option() {
  return real_option("yarn_factor", 1.0, "YaRN: new length / original length; 1 = off", 1.0, 1e9);
}

OptionSpec yarn_original_length_option() {
  return integer_option("yarn_original_length", 0, "YaRN: length the model was first trained on", 0,
                        std::numeric_limits<std::int32_t>::max());
}

std::optional<RopeConfig> rope_from(const Options& options, const char* key, std::int64_t width,
                                    const std::string& where) {
  const double base = options.real("rope_base");
  if (!options.flag("rope")) {
    if (base != kBase) config_error("{}: rope_base = {} has no effect with rope = false; remove one", where, base);
    return std::nullopt;
  }
  if (width % 2 != 0) {
    config_error("{}: {} = {} is odd; rope = true turns channels in pairs and needs an even number", where, key, width);
  }
  return RopeConfig{.rotary_dim = width, .base = base};
}

std::optional<RopeConfig> yarn_rope_from(const Options& options, const char* key, std::int64_t width,
                                         const std::string& where) {
  const double factor = options.real("yarn_factor");
  const std::int64_t original = options.integer("yarn_original_length");
  std::optional<RopeConfig> rope = rope_from(options, key, width, where);
  if (!rope && factor != 1.0) {
    config_error("{}: yarn_factor = {} has no effect with rope = false; remove one", where, factor);
  }
  if (!rope) return rope;
  if (factor > 1.0 && original == 0) {
    config_error("{}: yarn_factor = {} needs yarn_original_length, the length the model was first trained on", where,
                 factor);
  }
  if (factor == 1.0 && original != 0) {
    config_error("{}: yarn_original_length = {} has no effect with yarn_factor = 1; remove it or set the factor", where,
                 original);
  }
  rope->yarn_factor = factor;
  rope->yarn_original_length = original;
  return rope;
}

}  // namespace weft
