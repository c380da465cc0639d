#include "checkpoints/huggingface/targets/gated_delta_hybrid.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/common_fields.h"
#include "checkpoints/huggingface/obstacles.h"

namespace weft {
namespace {

constexpr double kGainShift = -1.0;

// Channels of a head that turn; as the mixer attention counts them.
std::int64_t rotary_dim(std::int64_t head_dim, double fraction) {
  return fraction == 1.0 ? head_dim : 2 * static_cast<std::int64_t>(static_cast<double>(head_dim) * fraction / 2.0);
}

void attention_obstacles(Obstacles& obstacles, const MixerChoice& choice) {
  const Options& o = choice.options;
  const std::string& at = choice.table;
  obstacles.require(o.text("gate") == "elementwise",
                    "{}: gate = \"{}\": the class gates every channel of the output; use \"elementwise\"", at,
                    o.text("gate"));
  obstacles.require(o.flag("qk_norm"), "{}: qk_norm = false: the class normalises queries and keys", at);
  obstacles.require(o.integer("window") == 0, "{}: window = {}: the class attends to all tokens; use 0", at,
                    o.integer("window"));
  obstacles.require_plain_attention(choice);
}

void gdn_obstacles(Obstacles& obstacles, const MixerChoice& choice, double norm_eps) {
  const Options& o = choice.options;
  const std::string& at = choice.table;
  obstacles.require(o.integer("conv_width") > 0, "{}: conv_width = 0: the class convolves queries, keys and values",
                    at);
  obstacles.require(!o.flag("negative_eigenvalues"),
                    "{}: negative_eigenvalues = true: the class writes with strengths below 1", at);
  obstacles.require(o.real("norm_eps") == norm_eps,
                    "{}: norm_eps = {}: the class has one epsilon, norm_eps = {} of [model]; make them equal", at,
                    o.real("norm_eps"), norm_eps);
}

std::int64_t value_heads(const Options& o) {
  return o.integer("value_heads") == 0 ? o.integer("heads") : o.integer("value_heads");
}

std::int64_t value_dim(const Options& o) {
  return o.integer("value_dim") == 0 ? o.integer("head_dim") : o.integer("value_dim");
}

void add_attention(RuleList& rules, const std::string& prefix, const std::string& mixer, const AttentionSizes& sizes) {
  const std::int64_t D = sizes.head_dim;
  std::vector<Piece> queries;
  for (std::int64_t h = 0; h < sizes.heads; ++h) {
    queries.push_back(rules.rows(mixer + "wq", h * D, D));
    queries.push_back(rules.rows(mixer + "wg", h * D, D));
  }
  const std::int64_t d = rules.shape(mixer + "wq")[1];
  rules.add(prefix + "q_proj.weight", {2 * sizes.heads * D, d}, std::move(queries));
  rules.add(prefix + "k_proj.weight", mixer + "wk");
  rules.add(prefix + "v_proj.weight", mixer + "wv");
  rules.add(prefix + "o_proj.weight", mixer + "wo");
  rules.add(prefix + "q_norm.weight", mixer + "q_norm_w").shift = kGainShift;
  rules.add(prefix + "k_norm.weight", mixer + "k_norm_w").shift = kGainShift;
}

}  // namespace

std::vector<std::string> gated_delta_hybrid_obstacles(const LanguageModelConfig& model) {
  Obstacles obstacles;
  obstacles.require_mixers(model, {"gdn", "attention"}, "layers of gdn and attention");
  obstacles.require_blocks(model, Residual::pre_norm);
  if (const MixerChoice* gdn = find_choice(model, "gdn")) gdn_obstacles(obstacles, *gdn, model.norm_eps);
  if (const MixerChoice* full = find_choice(model, "attention")) attention_obstacles(obstacles, *full);
  return std::move(obstacles).lines();
}

nlohmann::json gated_delta_hybrid_config(const HubModel& hub) {
  const LanguageModelConfig& model = hub.model;
  nlohmann::json config = common_fields(hub);
  config["layer_types"] = layer_types(model, "gdn");
  config["attention_bias"] = false;
  config["attention_dropout"] = 0.0;
  if (const MixerChoice* gdn = find_choice(model, "gdn")) {
    const Options& o = gdn->options;
    config["linear_num_key_heads"] = o.integer("heads");
    config["linear_num_value_heads"] = value_heads(o);
    config["linear_key_head_dim"] = o.integer("head_dim");
    config["linear_value_head_dim"] = value_dim(o);
    config["linear_conv_kernel_dim"] = o.integer("conv_width");
  }
  if (const MixerChoice* full = find_choice(model, "attention")) {
    const AttentionSizes sizes = attention_sizes(model, *full);
    const std::int64_t rotary = rotary_dim(sizes.head_dim, full->options.real("rope_fraction"));
    config["num_attention_heads"] = sizes.heads;
    config["num_key_value_heads"] = sizes.kv_heads;
    config["head_dim"] = sizes.head_dim;
    config["rope_parameters"] = {{"rope_type", "default"},
                                 {"rope_theta", full->options.real("rope_base")},
                                 {"partial_rotary_factor", truncated_factor(sizes.head_dim, rotary)}};
  }
  return config;
}

HubModel read_gated_delta_hybrid_config(ConfigReader& config, std::int64_t kv_heads) {
  HubModel hub = read_common_fields(config, {.max_positions = 32768, .norm_eps = 1e-6});
  LanguageModelConfig& model = hub.model;
  const double eps = model.norm_eps;
  config.expect("attention_bias", false);
  const auto heads = [&](const char* key, std::int64_t fallback) {
    return config.integer_or(key, fallback, 1, kMostHeads);
  };
  const auto width = [&](const char* key, std::int64_t fallback) {
    return config.integer_or(key, fallback, 1, kMostWidth);
  };
  const MixerChoice gdn = mixer_choice("gdn",
                                       {{"heads", heads("linear_num_key_heads", 16)},
                                        {"value_heads", heads("linear_num_value_heads", 32)},
                                        {"head_dim", width("linear_key_head_dim", 128)},
                                        {"value_dim", width("linear_value_head_dim", 128)},
                                        {"conv_width", config.integer_or("linear_conv_kernel_dim", 4, 2, 8)},
                                        {"norm_eps", eps}},
                                       config.source());
  const std::int64_t head_dim = width("head_dim", 256);
  double base = 10000.0, fraction = 0.25;
  if (config.has("rope_parameters")) {
    ConfigReader rope = config.object("rope_parameters");
    rope.expect("rope_type", "default");
    rope.ignore({"mrope_section", "mrope_interleaved"});
    base = rope.real_or("rope_theta", base, 1.0, 1e30);
    fraction = rope.real_or("partial_rotary_factor", fraction, 1e-6, 1.0);
    rope.finish();
  }
  const auto rotary = static_cast<std::int64_t>(static_cast<double>(head_dim) * fraction);
  if (rotary % 2 != 0) config.refuse("rope_parameters", fmt::format("{} channels cannot turn in pairs", rotary));
  const MixerChoice full = mixer_choice("attention",
                                        {{"heads", heads("num_attention_heads", 16)},
                                         {"kv_heads", heads("num_key_value_heads", kv_heads)},
                                         {"head_dim", head_dim},
                                         {"rope_base", base},
                                         {"rope_fraction", fraction},
                                         {"qk_norm", true},
                                         {"gate", std::string("elementwise")}},
                                        config.source());
  model.pattern = read_layer_types(config, model.layers, gdn, full);
  return hub;
}

std::vector<TensorRule> gated_delta_hybrid_tensors(const LanguageModelConfig& model,
                                                   void (*projections)(RuleList& rules, const std::string& prefix,
                                                                       const std::string& mixer,
                                                                       const Options& options)) {
  RuleList rules(model);
  add_ends(rules, model, kGainShift);
  for (std::int64_t l = 0; l < model.layers; ++l) {
    const std::string own = fmt::format("layers.{}.", l), mixer = own + "mixer.", prefix = "model." + own;
    const MixerChoice& choice = model.choice(l);
    rules.add(prefix + "input_layernorm.weight", own + "mixer_norm_w").shift = kGainShift;
    rules.add(prefix + "post_attention_layernorm.weight", own + "ffn_norm_w").shift = kGainShift;
    add_swiglu(rules, prefix + "mlp", l);
    if (choice.type->name == "attention") {
      add_attention(rules, prefix + "self_attn.", mixer, attention_sizes(model, choice));
      continue;
    }
    const std::string linear = prefix + "linear_attn.";
    projections(rules, linear, mixer, choice.options);
    const std::int64_t w = choice.options.integer("conv_width");
    const std::int64_t channels = 2 * rules.shape(mixer + "conv_q")[0] + rules.shape(mixer + "conv_v")[0];
    rules.add(linear + "conv1d.weight", {channels, 1, w},
              {rules.all(mixer + "conv_q"), rules.all(mixer + "conv_k"), rules.all(mixer + "conv_v")});
    rules.add(linear + "A_log", mixer + "a_log").keep_fp32 = true;
    rules.add(linear + "dt_bias", mixer + "dt_bias").keep_fp32 = true;
    rules.add(linear + "norm.weight", mixer + "norm_w");
    rules.add(linear + "out_proj.weight", mixer + "wo");
  }
  return std::move(rules).take();
}

}  // namespace weft
