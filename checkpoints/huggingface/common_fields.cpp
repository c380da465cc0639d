#include "checkpoints/huggingface/common_fields.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "checkpoints/huggingface/obstacles.h"
#include "data/storage/text.h"
#include "modules/head_options.h"

namespace weft {
namespace {

nlohmann::json token_field(std::int32_t id) {
  return id < 0 ? nlohmann::json() : nlohmann::json(id);
}

}  // namespace

nlohmann::json common_fields(const HubModel& hub) {
  const LanguageModelConfig& model = hub.model;
  nlohmann::json config = {{"vocab_size", model.vocabulary},
                           {"hidden_size", model.width},
                           {"intermediate_size", model.ffn_hidden},
                           {"num_hidden_layers", model.layers},
                           {"rms_norm_eps", model.norm_eps},
                           {"tie_word_embeddings", model.tied},
                           {"max_position_embeddings", hub.max_positions},
                           {"hidden_act", "silu"},
                           {"bos_token_id", token_field(hub.bos)},
                           {"pad_token_id", token_field(hub.pad)}};
  if (hub.eos.size() > 1) {
    config["eos_token_id"] = hub.eos;
  } else {
    config["eos_token_id"] = token_field(hub.eos.empty() ? -1 : hub.eos.front());
  }
  return config;
}

HubModel read_common_fields(ConfigReader& config, const ClassDefaults& absent) {
  read_general_fields(config);
  HubModel hub;
  LanguageModelConfig& model = hub.model;
  model.vocabulary = config.integer("vocab_size", 1, kMostVocabulary);
  model.width = config.integer("hidden_size", 1, kMostWidth);
  model.ffn_hidden = config.integer("intermediate_size", absent.least_ffn, 16 * kMostWidth);
  model.layers = config.integer("num_hidden_layers", 1, kMostLayers);
  model.norm_eps = absent.norm_eps > 0.0 ? config.real_or(absent.norm_eps_field, absent.norm_eps, 1e-12, 1.0)
                                         : config.real(absent.norm_eps_field, 1e-12, 1.0);
  model.tied = config.flag_or("tie_word_embeddings", false);
  if (config.has("hidden_act")) {
    const std::string act = config.text("hidden_act");
    if (act != "silu" && act != "swish") config.refuse("hidden_act", "weft's feed-forward branch has silu");
  }
  const std::string positions = absent.max_positions_field;
  hub.max_positions = absent.max_positions > 0 ? config.integer_or(positions, absent.max_positions, 1, kMostPositions)
                                               : config.integer(positions, 1, kMostPositions);
  read_token_ids(config, absent.tokens, hub);
  return hub;
}

std::vector<std::string> layer_types(const LanguageModelConfig& model, const std::string& linear) {
  std::vector<std::string> types;
  for (std::int64_t l = 0; l < model.layers; ++l) {
    types.emplace_back(model.choice(l).type->name == linear ? "linear_attention" : "full_attention");
  }
  return types;
}

std::vector<MixerChoice> read_layer_types(ConfigReader& config, std::int64_t layers, const MixerChoice& linear,
                                          const MixerChoice& full) {
  std::vector<MixerChoice> choices;
  for (const std::string& type : config.texts("layer_types", layers)) {
    if (type != "linear_attention" && type != "full_attention") {
      config.refuse("layer_types",
                    fmt::format("expected linear_attention or full_attention, found \"{}\"", printable(type)));
    }
    choices.push_back(type == "linear_attention" ? linear : full);
  }
  return shortest_pattern(choices);
}

MixerChoice mixer_choice(const std::string& mixer, const std::vector<std::pair<std::string, OptionValue>>& options,
                         const std::string& source) {
  const MixerType* type = find_mixer(mixer);
  WEFT_CHECK(type != nullptr, "no mixer {}", mixer);
  MixerChoice choice{.type = type, .options = Options(type->options), .table = fmt::format("{}: {}", source, mixer)};
  for (const auto& [key, value] : options) choice.options.set(key, value);
  return choice;
}

double truncated_factor(std::int64_t of, std::int64_t count) {
  double factor = static_cast<double>(count) / static_cast<double>(of);
  while (static_cast<std::int64_t>(static_cast<double>(of) * factor) < count) factor = std::nextafter(factor, HUGE_VAL);
  return factor;
}

AttentionSizes attention_sizes(const LanguageModelConfig& model, const MixerChoice& choice) {
  const MixerSite site{.width = model.width, .layers = model.layers, .layer = 0, .max_tokens = model.max_tokens};
  return {.heads = choice.options.integer("heads"),
          .kv_heads = kv_heads_from(choice.options, choice.table),
          .head_dim = head_dim_from(site, choice.options, choice.table)};
}

}  // namespace weft
