// config.json of the Llama family, both ways.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "autograd/check.h"
#include "checkpoints/huggingface/common_fields.h"
#include "checkpoints/huggingface/config_reader.h"
#include "checkpoints/huggingface/obstacles.h"
#include "checkpoints/huggingface/rope_fields.h"
#include "checkpoints/huggingface/targets/llama_family.h"
#include "modules/rope_options.h"

namespace weft {
namespace {

using nlohmann::json;
using Biases = LlamaFamily::Biases;
using Windows = LlamaFamily::Windows;

constexpr std::int64_t kMostTokens = std::numeric_limits<std::int32_t>::max();
const std::string kFull = "full_attention", kSliding = "sliding_attention";

AttentionSizes read_heads(ConfigReader& config, const json& object, const LlamaFamily& family, std::int64_t width) {
  AttentionSizes h{};
  h.heads = config.integer("num_attention_heads", 1, kMostHeads);
  const std::int64_t usual = family.kv_heads == 0 || object.contains("num_key_value_heads") ? h.heads : family.kv_heads;
  h.kv_heads = config.integer_or("num_key_value_heads", usual, 1, kMostHeads);
  if (h.heads % h.kv_heads != 0) {
    config_error("{}: num_attention_heads = {} is not a multiple of num_key_value_heads = {}", config.source(), h.heads,
                 h.kv_heads);
  }
  const bool derived = family.head_dim == 0 || object.contains("head_dim");
  h.head_dim = config.integer_or("head_dim", derived ? 0 : family.head_dim, 1, kMostWidth);
  if (width % h.heads != 0 && (family.divides_width || h.head_dim == 0)) {
    config_error("{}: hidden_size = {} is not a multiple of num_attention_heads = {}, {}", config.source(), width,
                 h.heads,
                 family.divides_width ? "which transformers refuses in this class" : "and there is no head_dim");
  }
  if (h.head_dim == 0) h.head_dim = width / h.heads;
  if (h.head_dim % 2 != 0) {
    config_error("{}: the heads are {} wide; rotary positions turn channels in pairs and need an even number",
                 config.source(), h.head_dim);
  }
  return h;
}

struct LayerKinds {
  std::vector<std::string> of_layer;  // kFull or kSliding
  std::int64_t window = 0;            // of the sliding ones
};

LayerKinds read_layer_kinds(ConfigReader& config, const json& object, const LlamaFamily& family, std::int64_t layers) {
  LayerKinds kinds;
  const auto count = static_cast<std::size_t>(layers);
  if (family.windows == Windows::none) {
    if (config.has("sliding_window")) config.refuse("sliding_window", "the class llama has no windows");
    config.ignore({"sliding_window"});
    kinds.of_layer.assign(count, kFull);
  } else if (family.windows == Windows::one) {
    constexpr std::int64_t kUsual = 4096;  // of the class, where the field is absent; null means none
    kinds.window = config.integer_or("sliding_window", object.contains("sliding_window") ? 0 : kUsual, 1, kMostTokens);
    kinds.of_layer.assign(count, kinds.window > 0 ? kSliding : kFull);
  } else {
    const bool used = config.flag_or("use_sliding_window", false);
    constexpr std::int64_t kUsualWindow = 4096, kUsualFirst = 28;
    const std::int64_t window =
        config.integer_or("sliding_window", object.contains("sliding_window") ? 0 : kUsualWindow, 1, kMostTokens);
    const std::int64_t first = config.integer_or("max_window_layers", kUsualFirst, 0, kMostTokens);
    kinds.window = used ? window : 0;
    for (std::int64_t l = 0; l < layers; ++l) {
      kinds.of_layer.push_back(kinds.window > 0 && l >= first ? kSliding : kFull);
    }
  }
  if (!config.has("layer_types")) return kinds;
  const std::vector<std::string> named = config.texts("layer_types", layers);
  for (const std::string& kind : named) {
    if (kind == kFull || (kind == kSliding && kinds.window > 0)) continue;
    config.refuse("layer_types", kind == kSliding ? "sliding_attention without a window (sliding_window, and "
                                                    "use_sliding_window where the class has it)"
                                                  : "the class has full_attention and sliding_attention");
  }
  if (family.windows == Windows::per_layer) {
    kinds.of_layer = named;
  } else if (named != kinds.of_layer) {
    config.refuse("layer_types", "the class has the same attention in all layers");
  }
  return kinds;
}

struct LayerBiases {
  bool inputs, output;
};

LayerBiases read_biases(ConfigReader& config, const LlamaFamily& family) {
  switch (family.biases) {
    case Biases::by_field: {
      const bool all = config.flag_or("attention_bias", false);
      return {all, all};
    }
    case Biases::queries_keys_values:
      config.ignore({"attention_bias"});  // the class does not look at it
      return {true, false};
    case Biases::all:
      return {true, true};
    case Biases::none:
      break;
  }
  config.expect("attention_bias", false);
  return {false, false};
}

}  // namespace

HubModel read_llama_config(const LlamaFamily& family, const json& object, const std::string& source) {
  ConfigReader config(object, source);
  HubModel hub = read_common_fields(
      config,
      {.max_positions = family.max_positions, .norm_eps = 1e-6, .tokens = {.bos = family.bos, .eos = family.eos}});
  LanguageModelConfig& model = hub.model;
  if (family.ffn_bias) {
    model.ffn_bias = config.flag_or("mlp_bias", false);
  } else {
    config.expect("mlp_bias", false);
  }
  model.max_tokens = hub.max_positions;

  const AttentionSizes sizes = read_heads(config, object, family, model.width);
  const LayerBiases biases = read_biases(config, family);
  const LayerKinds kinds = read_layer_kinds(config, object, family, model.layers);
  const std::set<std::string> kinds_once(kinds.of_layer.begin(), kinds.of_layer.end());
  const std::vector<std::string> distinct(kinds_once.begin(), kinds_once.end());
  const std::vector<HubRope> ropes = read_rope(config, distinct, 10000.0, hub.max_positions);
  config.finish();

  std::vector<MixerChoice> layers;
  for (const std::string& kind : kinds.of_layer) {
    const HubRope& rope = ropes[static_cast<std::size_t>(std::ranges::find(distinct, kind) - distinct.begin())];
    MixerChoice choice = mixer_choice("attention",
                                      {{"heads", sizes.heads},
                                       {"kv_heads", sizes.kv_heads},
                                       {"head_dim", sizes.head_dim},
                                       {"window", kind == kSliding ? kinds.window : std::int64_t{0}},
                                       {"qk_norm", family.qk_norm},
                                       {"bias", biases.inputs},
                                       {"out_bias", biases.output},
                                       {"rope_base", rope.theta}},
                                      source);
    set_rope_scaling(choice.options, rope.scaling);
    layers.push_back(std::move(choice));
  }
  model.pattern = shortest_pattern(layers);
  return hub;
}

json write_llama_config(const LlamaFamily& family, const HubModel& hub) {
  const LanguageModelConfig& model = hub.model;
  const Options& options = model.pattern.front().options;
  const AttentionSizes sizes = attention_sizes(model, model.pattern.front());
  json config = common_fields(hub);
  config["model_type"] = family.name;
  config["architectures"] = {family.architecture};
  config["num_attention_heads"] = sizes.heads;
  config["num_key_value_heads"] = sizes.kv_heads;
  config["head_dim"] = sizes.head_dim;
  config["attention_dropout"] = 0.0;
  config["initializer_range"] = 0.02;
  config["use_cache"] = true;
  if (family.biases == Biases::by_field) config["attention_bias"] = options.flag("bias");
  if (family.ffn_bias) config["mlp_bias"] = model.ffn_bias;
  std::int64_t window = 0;
  for (const MixerChoice& choice : model.pattern) window = std::max(window, choice.options.integer("window"));
  if (family.windows != Windows::none) config["sliding_window"] = window > 0 ? json(window) : json();
  if (family.windows == Windows::per_layer) {
    json kinds = json::array();
    for (std::int64_t l = 0; l < model.layers; ++l) {
      kinds.push_back(model.choice(l).options.integer("window") > 0 ? kSliding : kFull);
    }
    // Releases without layer_types read the layers from max_window_layers on.
    const auto first = std::ranges::find(kinds, json(kSliding)) - kinds.begin();
    config["use_sliding_window"] = window > 0;
    config["max_window_layers"] = first;
    config["layer_types"] = std::move(kinds);
  }
  write_rope(config, {.theta = options.real("rope_base"), .scaling = rope_scaling_from(options)});
  return config;
}

}  // namespace weft
