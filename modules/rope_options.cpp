#include "modules/rope_options.h"

#include <algorithm>
#include <array>

#include "autograd/check.h"

namespace weft {
namespace {

constexpr double kBase = 10000.0;  // unless the recipe says otherwise

constexpr std::array<const char*, 4> kLaws = {"none", "linear", "llama3", "yarn"};  // in the order of RopeScaling::Law

// The laws that look at a key.
bool is_used(const std::string& key, RopeScaling::Law law) {
  using Law = RopeScaling::Law;
  if (key == "rope_factor") return law != Law::none;
  if (key == "rope_original_length") return law == Law::llama3 || law == Law::yarn;
  if (key == "rope_low_freq_factor" || key == "rope_high_freq_factor") return law == Law::llama3;
  return law == Law::yarn;
}

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

std::vector<OptionSpec> rope_scaling_options() {
  const RopeScaling usual;
  constexpr double kMost = 1e9;
  return {
      later(choice_option("rope_scaling", kLaws[0],
                          "how a pretrained model stretches its rotary frequencies, as transformers names it",
                          {kLaws.begin(), kLaws.end()})),
      later(real_option("rope_factor", usual.factor, "rope_scaling: new length / original length", 1.0, kMost)),
      later(integer_option("rope_original_length", usual.original_length,
                           "rope_scaling llama3, yarn: length the model was first trained on", 0,
                           std::numeric_limits<std::int32_t>::max())),
      later(real_option("rope_low_freq_factor", usual.low_freq_factor,
                        "rope_scaling llama3: channels of fewer turns over the original length are stretched", 1e-9,
                        kMost)),
      later(real_option("rope_high_freq_factor", usual.high_freq_factor,
                        "rope_scaling llama3: channels of more turns are kept", 1e-9, kMost)),
      later(real_option("rope_attention_factor", usual.attention_factor,
                        "rope_scaling yarn: factor of rotated queries and keys; 0 = 0.1 ln(rope_factor) + 1", 0.0,
                        kMost)),
      later(real_option("rope_beta_fast", usual.beta_fast, "rope_scaling yarn: turns from which channels are kept",
                        1e-9, kMost)),
      later(real_option("rope_beta_slow", usual.beta_slow, "rope_scaling yarn: turns up to which they are stretched",
                        1e-9, kMost)),
      later(flag_option("rope_truncate", usual.truncate, "rope_scaling yarn: whole channels as limits of the blend"))};
}

RopeScaling rope_scaling_from(const Options& options) {
  const auto law = std::ranges::find(kLaws, options.text("rope_scaling")) - kLaws.begin();
  return {.law = static_cast<RopeScaling::Law>(law),
          .factor = options.real("rope_factor"),
          .original_length = options.integer("rope_original_length"),
          .low_freq_factor = options.real("rope_low_freq_factor"),
          .high_freq_factor = options.real("rope_high_freq_factor"),
          .attention_factor = options.real("rope_attention_factor"),
          .beta_fast = options.real("rope_beta_fast"),
          .beta_slow = options.real("rope_beta_slow"),
          .truncate = options.flag("rope_truncate")};
}

void set_rope_scaling(Options& options, const RopeScaling& scaling) {
  options.set("rope_scaling", std::string(kLaws[static_cast<std::size_t>(scaling.law)]));
  options.set("rope_factor", scaling.factor);
  options.set("rope_original_length", scaling.original_length);
  options.set("rope_low_freq_factor", scaling.low_freq_factor);
  options.set("rope_high_freq_factor", scaling.high_freq_factor);
  options.set("rope_attention_factor", scaling.attention_factor);
  options.set("rope_beta_fast", scaling.beta_fast);
  options.set("rope_beta_slow", scaling.beta_slow);
  options.set("rope_truncate", scaling.truncate);
}

std::optional<RopeConfig> scaled_rope_from(const Options& options, const char* key, std::int64_t width,
                                           const std::string& where) {
  const RopeScaling scaling = rope_scaling_from(options);
  const std::string& law = options.text("rope_scaling");
  for (const OptionSpec& spec : rope_scaling_options()) {
    if (spec.key == "rope_scaling" || options.values().at(spec.key) == spec.default_value) continue;
    if (!is_used(spec.key, scaling.law)) {
      config_error("{}: {} has no effect with rope_scaling = \"{}\"; remove it", where, spec.key, law);
    }
  }
  std::optional<RopeConfig> rope = yarn_rope_from(options, key, width, where);
  if (scaling.law == RopeScaling::Law::none) return rope;
  if (!rope) config_error("{}: rope_scaling = \"{}\" has no effect with rope = false; remove one", where, law);
  if (rope->yarn_factor > 1.0) {
    config_error("{}: both yarn_factor = {} and rope_scaling = \"{}\"; keep one", where, rope->yarn_factor, law);
  }
  if (scaling.law != RopeScaling::Law::linear && scaling.original_length == 0) {
    config_error("{}: rope_scaling = \"{}\" needs rope_original_length, the length the model was first trained on",
                 where, law);
  }
  rope->scaling = scaling;
  return rope;
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
