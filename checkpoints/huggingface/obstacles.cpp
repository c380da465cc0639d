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

const MixerChoice* find_choice(const LanguageModelConfig& model, const std::string& mixer) {
  const auto it = std::ranges::find_if(model.pattern, [&](const MixerChoice& c) { return c.type->name == mixer; });
  return it == model.pattern.end() ? nullptr : &*it;
}

const MixerChoice& mixer_of_layer(const LanguageModelConfig& model, std::int64_t layer) {
  return model.pattern[static_cast<std::size_t>(layer) % model.pattern.size()];
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
