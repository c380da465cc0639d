#include "checkpoints/huggingface/obstacles.h"

namespace weft {
namespace {

bool same(const MixerChoice& a, const MixerChoice& b) {
  return a.type == b.type && a.options.values() == b.options.values();
}

}  // namespace

void Obstacles::require_mixers(const LanguageModelConfig& model, const std::vector<std::string>& mixers,
                               const std::string& layers) {
  for (const MixerChoice& choice : model.pattern) {
    const bool known = std::ranges::find(mixers, choice.type->name) != mixers.end();
    require(known, "{}: the class has {}, not {}", choice.table, layers, choice.type->name);
    if (!known) continue;
    const MixerChoice& first = *find_choice(model, choice.type->name);
    require(same(first, choice), "{}: the options differ from those of {}, and the class has one set for all layers",
            choice.table, first.table);
  }
}

void Obstacles::require_blocks(const LanguageModelConfig& model, Residual residual) {
  require(model.ffn_hidden > 0, "ffn = 0 in [model]: the class has a feed-forward branch in every layer");
  require(!model.ffn_bias, "ffn_bias = true in [model]: the class has no biases there; use false");
  if (residual == Residual::pre_norm) {
    require(model.residual == residual,
            "residual = \"post_norm_input\" in [model]: the class adds branches to the input before its norm; use "
            "\"pre_norm\"");
  } else {
    require(model.residual == residual,
            "residual = \"pre_norm\" in [model]: the class adds branches to the normalised input; use "
            "\"post_norm_input\"");
  }
}

void Obstacles::require_plain_attention(const MixerChoice& attention) {
  const Options& o = attention.options;
  const std::string& at = attention.table;
  require(o.integer("sinks") == 0, "{}: sinks = {}: the class has no sinks; use 0", at, o.integer("sinks"));
  require(!o.flag("sink_logit"), "{}: sink_logit = true: the class has no sink logits", at);
  require(o.real("soft_cap") == 0.0, "{}: soft_cap = {}: the class has no cap; use 0", at, o.real("soft_cap"));
  require(!o.flag("bias"), "{}: bias = true: exported without biases only", at);
  require(!o.flag("out_bias"), "{}: out_bias = true: exported without biases only", at);
  require(o.flag("rope"), "{}: rope = false: the class turns queries and keys", at);
  require(o.real("yarn_factor") == 1.0, "{}: yarn_factor = {}: exported without scaling only; use 1", at,
          o.real("yarn_factor"));
  require(o.text("rope_scaling") == "none", "{}: rope_scaling = \"{}\": exported without scaling only; use \"none\"",
          at, o.text("rope_scaling"));
}

const MixerChoice* find_choice(const LanguageModelConfig& model, const std::string& mixer) {
  const auto it = std::ranges::find_if(model.pattern, [&](const MixerChoice& c) { return c.type->name == mixer; });
  return it == model.pattern.end() ? nullptr : &*it;
}

std::vector<MixerChoice> shortest_pattern(const std::vector<MixerChoice>& layers) {
  for (std::size_t period = 1; period < layers.size(); ++period) {
    bool repeats = true;
    for (std::size_t l = period; l < layers.size() && repeats; ++l) repeats = same(layers[l], layers[l - period]);
    if (repeats) return {layers.begin(), layers.begin() + static_cast<std::ptrdiff_t>(period)};
  }
  return layers;
}

}  // namespace weft
