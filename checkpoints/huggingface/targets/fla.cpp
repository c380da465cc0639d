#include "checkpoints/huggingface/targets/fla.h"

#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/common_fields.h"
#include "checkpoints/huggingface/obstacles.h"
#include "checkpoints/huggingface/rule_list.h"

// Facts of the types: one epsilon for all norms; values `expand_v` times as wide as keys; softmax layers (`attn`) whose
// heads share the model's width, turned whole, without norms or gates; gates of KDA have the rank of a head's values.

namespace weft {
namespace {

std::int64_t or_else(std::int64_t value, std::int64_t fallback) {
  return value == 0 ? fallback : value;
}

std::int64_t value_heads(const Options& o) {
  return or_else(o.integer("value_heads"), o.integer("heads"));
}

std::int64_t value_dim(const Options& o) {
  return or_else(o.integer("value_dim"), o.integer("head_dim"));
}

void softmax_obstacles(Obstacles& found, const LanguageModelConfig& model, const MixerChoice& choice) {
  const Options& o = choice.options;
  const std::string& at = choice.table;
  const AttentionSizes sizes = attention_sizes(model, choice);
  found.require(o.text("gate") == "none", "{}: gate = \"{}\": the type has no output gate", at, o.text("gate"));
  found.require(!o.flag("qk_norm"), "{}: qk_norm = true: the type does not normalise queries and keys", at);
  found.require(o.real("rope_fraction") == 1.0, "{}: rope_fraction = {}: the type turns whole heads; use 1", at,
                o.real("rope_fraction"));
  found.require(sizes.heads * sizes.head_dim == model.width,
                "{}: {} heads of {}: the heads of the type share the model's width, {}", at, sizes.heads,
                sizes.head_dim, model.width);
  found.require_plain_attention(choice);
}

void delta_obstacles(Obstacles& found, const MixerChoice& choice, double norm_eps) {
  const Options& o = choice.options;
  found.require(o.real("norm_eps") == norm_eps,
                "{}: norm_eps = {}: the type has one epsilon, norm_eps = {} of [model]; make them equal", choice.table,
                o.real("norm_eps"), norm_eps);
}

void kda_obstacles(Obstacles& found, const MixerChoice& choice) {
  const Options& o = choice.options;
  const std::string& at = choice.table;
  found.require(o.text("output_gate") == "low_rank", "{}: output_gate = \"{}\": the type has a \"low_rank\" gate", at,
                o.text("output_gate"));
  found.require(o.text("output_gate") != "low_rank" || o.flag("gate_bias"),
                "{}: gate_bias = false: the type's output gate has a bias; use true", at);
  found.require(or_else(o.integer("rank"), value_dim(o)) == value_dim(o),
                "{}: rank = {}: the type's gates have the rank of a head's values, {}", at, o.integer("rank"),
                value_dim(o));
  found.require(value_heads(o) == o.integer("heads"),
                "{}: value_heads = {}: exported with as many value heads as key heads only, {}", at, value_heads(o),
                o.integer("heads"));
}

std::vector<std::string> obstacles_of(const LanguageModelConfig& model, const std::string& mixer) {
  Obstacles found;
  found.require_mixers(model, {mixer, "attention"}, fmt::format("layers of {} and attention", mixer));
  found.require_blocks(model, Residual::pre_norm);
  const MixerChoice* linear = find_choice(model, mixer);
  found.require(linear != nullptr, "pattern in [model]: the type needs a layer of {}", mixer);
  if (linear != nullptr) {
    delta_obstacles(found, *linear, model.norm_eps);
    if (mixer == "kda") kda_obstacles(found, *linear);
  }
  if (const MixerChoice* softmax = find_choice(model, "attention")) softmax_obstacles(found, model, *softmax);
  return std::move(found).lines();
}

nlohmann::json softmax_json(const LanguageModelConfig& model, const MixerChoice& choice) {
  std::vector<std::int64_t> layers;
  for (std::int64_t l = 0; l < model.layers; ++l) {
    if (model.choice(l).type->name == "attention") layers.push_back(l);
  }
  const AttentionSizes sizes = attention_sizes(model, choice);
  const std::int64_t window = choice.options.integer("window");
  return {{"layers", layers},
          {"num_heads", sizes.heads},
          {"num_kv_heads", sizes.kv_heads},
          {"qkv_bias", false},
          {"window_size", window == 0 ? nlohmann::json() : nlohmann::json(window)},
          {"rope_theta", choice.options.real("rope_base")}};
}

nlohmann::json config_of(const HubModel& hub, const std::string& mixer) {
  const LanguageModelConfig& model = hub.model;
  const Options& o = find_choice(model, mixer)->options;
  nlohmann::json config = common_fields(hub);
  config.erase("rms_norm_eps");
  config["hidden_act"] = "swish";
  config["norm_eps"] = model.norm_eps;
  config["num_heads"] = o.integer("heads");
  config["num_v_heads"] = value_heads(o);
  config["head_dim"] = o.integer("head_dim");
  config["expand_v"] = truncated_factor(o.integer("head_dim"), value_dim(o));
  config["use_short_conv"] = o.integer("conv_width") > 0;
  if (o.integer("conv_width") > 0) config["conv_size"] = o.integer("conv_width");
  config["allow_neg_eigval"] = o.flag("negative_eigenvalues");
  const MixerChoice* softmax = find_choice(model, "attention");
  config["attn"] = softmax == nullptr ? nlohmann::json() : softmax_json(model, *softmax);
  return config;
}

nlohmann::json write_kda(const HubModel& hub) {
  nlohmann::json config = config_of(hub, "kda");
  const Options& o = find_choice(hub.model, "kda")->options;
  config["model_type"] = "kda";
  config["architectures"] = {"KDAForCausalLM"};
  config["safe_gate"] = o.text("gate") == "bounded";
  config["lower_bound"] = o.text("gate") == "bounded" ? nlohmann::json(o.real("lower_bound")) : nlohmann::json();
  return config;
}

nlohmann::json write_gated_deltanet(const HubModel& hub) {
  nlohmann::json config = config_of(hub, "gdn");
  config["model_type"] = "gated_deltanet";
  config["architectures"] = {"GatedDeltaNetForCausalLM"};
  config["use_gate"] = true;
  return config;
}

MixerChoice read_softmax(ConfigReader& attn, const LanguageModelConfig& model, std::vector<bool>& is_softmax) {
  const nlohmann::json& layers = attn.value("layers");
  if (!layers.is_array()) attn.refuse("layers", "expected a list of layers");
  for (const nlohmann::json& layer : layers) {
    if (!layer.is_number_integer() || layer.get<std::int64_t>() < 0 || layer.get<std::int64_t>() >= model.layers) {
      attn.refuse("layers", fmt::format("expected numbers from 0 to {}", model.layers - 1));
    }
    is_softmax[layer.get<std::size_t>()] = true;
  }
  const std::int64_t heads = attn.integer("num_heads", 1, kMostHeads);
  attn.expect("qkv_bias", false);
  MixerChoice choice =
      mixer_choice("attention",
                   {{"heads", heads},
                    {"kv_heads", attn.integer_or("num_kv_heads", heads, 1, kMostHeads)},
                    {"window", attn.integer_or("window_size", 0, 1, std::numeric_limits<std::int32_t>::max())},
                    {"rope_base", attn.real_or("rope_theta", 10000.0, 1.0, 1e30)},
                    {"qk_norm", false}},
                   attn.source());
  attn.finish();
  return choice;
}

// `linear` lacks what both types have.
HubModel read(ConfigReader& config, MixerChoice linear) {
  HubModel hub = read_common_fields(
      config, {.max_positions = 2048, .norm_eps = 1e-6, .tokens = {.bos = 1, .eos = 2}, .norm_eps_field = "norm_eps"});
  LanguageModelConfig& model = hub.model;
  const std::int64_t heads = config.integer("num_heads", 1, kMostHeads);
  const std::int64_t d_k = config.integer("head_dim", 1, kMostWidth);
  linear.options.set("heads", heads);
  linear.options.set("value_heads", config.integer_or("num_v_heads", heads, 1, kMostHeads));
  linear.options.set("head_dim", d_k);
  linear.options.set("value_dim",
                     static_cast<std::int64_t>(static_cast<double>(d_k) * config.real("expand_v", 1e-3, 1e3)));
  linear.options.set(
      "conv_width", config.flag_or("use_short_conv", true) ? config.integer_or("conv_size", 4, 2, 8) : std::int64_t{0});
  config.ignore({"conv_size"});
  linear.options.set("negative_eigenvalues", config.flag_or("allow_neg_eigval", false));
  linear.options.set("norm_eps", model.norm_eps);
  std::vector<bool> is_softmax(static_cast<std::size_t>(model.layers), false);
  MixerChoice softmax = linear;
  if (config.has("attn")) {
    ConfigReader attn = config.object("attn");
    softmax = read_softmax(attn, model, is_softmax);
  }
  std::vector<MixerChoice> layers;
  for (const bool full : is_softmax) layers.push_back(full ? softmax : linear);
  model.pattern = shortest_pattern(layers);
  config.ignore({"attn_mode", "hidden_ratio", "fuse_norm", "fuse_swiglu", "fuse_cross_entropy",
                 "fuse_linear_cross_entropy", "use_l2warp"});
  return hub;
}

HubModel read_kda(const nlohmann::json& json, const std::string& source) {
  ConfigReader config(json, source);
  const bool bounded = config.flag_or("safe_gate", false);
  MixerChoice kda = mixer_choice("kda", {{"gate", std::string(bounded ? "bounded" : "softplus")}}, source);
  if (bounded) kda.options.set("lower_bound", config.real("lower_bound", -5.0, 0.0));
  config.ignore({"lower_bound"});
  HubModel hub = read(config, std::move(kda));
  config.finish();
  return hub;
}

HubModel read_gated_deltanet(const nlohmann::json& json, const std::string& source) {
  ConfigReader config(json, source);
  config.expect("use_gate", true);
  HubModel hub = read(config, mixer_choice("gdn", {}, source));
  config.finish();
  return hub;
}

void add_linear(RuleList& rules, const std::string& prefix, const std::string& mixer, const MixerChoice& choice) {
  const auto whole = [&](const char* name, const char* parameter) { rules.add(prefix + name, mixer + parameter); };
  const auto exact = [&](const char* name, const char* parameter) {
    rules.add(prefix + name, mixer + parameter).keep_fp32 = true;
  };
  if (choice.options.integer("conv_width") > 0) {
    for (const char* of : {"q", "k", "v"}) {
      const std::string parameter = fmt::format("{}conv_{}", mixer, of);
      const Shape& shape = rules.shape(parameter);
      rules.add(fmt::format("{}{}_conv1d.weight", prefix, of), parameter, {shape[0], 1, shape[1]});
    }
  }
  whole("b_proj.weight", "wb");
  exact("A_log", "a_log");
  exact("dt_bias", "dt_bias");
  whole("o_norm.weight", "norm_w");
  if (choice.type->name == "gdn") {
    whole("a_proj.weight", "wa");
    whole("g_proj.weight", "wg");
    return;
  }
  whole("f_proj.0.weight", "wf_a");
  whole("f_proj.1.weight", "wf_b");
  whole("g_proj.0.weight", "wg_a");
  whole("g_proj.1.weight", "wg_b");
  whole("g_proj.1.bias", "bg");
}

std::vector<TensorRule> tensors(const LanguageModelConfig& model) {
  RuleList rules(model);
  rules.add("model.embeddings.weight", "embedding");
  rules.add("model.norm.weight", "final_norm_w");
  if (!model.tied) rules.add("lm_head.weight", "head");
  for (std::int64_t l = 0; l < model.layers; ++l) {
    const std::string own = fmt::format("layers.{}.", l), mixer = own + "mixer.", prefix = "model." + own;
    const MixerChoice& choice = model.choice(l);
    rules.add(prefix + "attn_norm.weight", own + "mixer_norm_w");
    rules.add(prefix + "mlp_norm.weight", own + "ffn_norm_w");
    add_swiglu(rules, prefix + "mlp", l);
    rules.add(prefix + "attn.q_proj.weight", mixer + "wq");
    rules.add(prefix + "attn.k_proj.weight", mixer + "wk");
    rules.add(prefix + "attn.v_proj.weight", mixer + "wv");
    rules.add(prefix + "attn.o_proj.weight", mixer + "wo");
    if (choice.type->name != "attention") add_linear(rules, prefix + "attn.", mixer, choice);
  }
  return std::move(rules).take();
}

}  // namespace

const HubTarget& fla_kda_target() {
  static const HubTarget target{
      .name = "fla_kda",
      .model_type = "kda",
      .summary = "Kimi delta attention and softmax attention of flash-linear-attention, which needs a GPU",
      .obstacles = [](const LanguageModelConfig& model) { return obstacles_of(model, "kda"); },
      .write_config = write_kda,
      .read_config = read_kda,
      .tensors = tensors};
  return target;
}

const HubTarget& fla_gated_deltanet_target() {
  static const HubTarget target{
      .name = "fla_gated_deltanet",
      .model_type = "gated_deltanet",
      .summary = "gated delta nets and softmax attention of flash-linear-attention, which needs a GPU",
      .obstacles = [](const LanguageModelConfig& model) { return obstacles_of(model, "gdn"); },
      .write_config = write_gated_deltanet,
      .read_config = read_gated_deltanet,
      .tensors = tensors};
  return target;
}

}  // namespace weft
