#include "checkpoints/huggingface/targets/kimi_linear.h"

#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/common_fields.h"
#include "checkpoints/huggingface/obstacles.h"
#include "checkpoints/huggingface/rule_list.h"

// Facts of the class: layers of KDA with the softplus gate, of full rank-by-head-width gates without biases, one width
// for keys and values; layers of MLA without rotation, whose latent norms have an epsilon of 1e-6 whatever rms_norm_eps
// is; a head of its own. Tensors are written as the published checkpoints have them, which the class converts on
// loading.

namespace weft {
namespace {

std::int64_t or_else(std::int64_t value, std::int64_t fallback) {
  return value == 0 ? fallback : value;
}

void kda_obstacles(Obstacles& obstacles, const MixerChoice& choice, double norm_eps) {
  const Options& o = choice.options;
  const std::string& at = choice.table;
  const std::int64_t d_k = o.integer("head_dim"), d_v = or_else(o.integer("value_dim"), d_k);
  obstacles.require(o.text("gate") == "softplus", "{}: gate = \"{}\": the class has the gate \"softplus\"", at,
                    o.text("gate"));
  obstacles.require(o.text("output_gate") == "low_rank", "{}: output_gate = \"{}\": the class has a \"low_rank\" gate",
                    at, o.text("output_gate"));
  obstacles.require(o.text("output_gate") != "low_rank" || !o.flag("gate_bias"),
                    "{}: gate_bias = true: the class's output gate has no bias; use false", at);
  obstacles.require(or_else(o.integer("value_heads"), o.integer("heads")) == o.integer("heads"),
                    "{}: value_heads = {}: the class has as many value heads as key heads, {}", at,
                    o.integer("value_heads"), o.integer("heads"));
  obstacles.require(d_v == d_k, "{}: value_dim = {}: the class has one width for keys and values, head_dim = {}", at,
                    d_v, d_k);
  obstacles.require(or_else(o.integer("rank"), d_v) == d_k,
                    "{}: rank = {}: the class's gates have the rank head_dim = {}", at, o.integer("rank"), d_k);
  obstacles.require(o.integer("conv_width") > 0, "{}: conv_width = 0: the class convolves queries, keys and values",
                    at);
  obstacles.require(!o.flag("negative_eigenvalues"),
                    "{}: negative_eigenvalues = true: the class writes with strengths below 1", at);
  obstacles.require(o.real("norm_eps") == norm_eps,
                    "{}: norm_eps = {}: the class has one epsilon, norm_eps = {} of [model]; make them equal", at,
                    o.real("norm_eps"), norm_eps);
}

std::vector<std::string> obstacles(const LanguageModelConfig& model) {
  Obstacles found;
  found.require_mixers(model, {"kda", "mla"}, "layers of kda and mla");
  found.require_blocks(model, Residual::pre_norm);
  found.require(!model.tied, "tied = true in [model]: the class has a head of its own; use false");
  if (const MixerChoice* kda = find_choice(model, "kda")) kda_obstacles(found, *kda, model.norm_eps);
  if (const MixerChoice* mla = find_choice(model, "mla")) {
    found.require(!mla->options.flag("rope"), "{}: rope = true: the class does not turn queries and keys", mla->table);
  }
  return std::move(found).lines();
}

nlohmann::json write_config(const HubModel& hub) {
  const LanguageModelConfig& model = hub.model;
  nlohmann::json config = common_fields(hub);
  config["model_type"] = "kimi_linear";
  config["architectures"] = {"KimiLinearForCausalLM"};
  const std::vector<std::string> types = layer_types(model, "kda");
  config["layer_types"] = types;
  config["mlp_layer_types"] = std::vector<std::string>(types.size(), "dense");
  config["attention_bias"] = false;
  config["attention_dropout"] = 0.0;
  if (const MixerChoice* kda = find_choice(model, "kda")) {
    const Options& o = kda->options;
    config["linear_num_heads"] = o.integer("heads");
    config["linear_head_dim"] = o.integer("head_dim");
    config["linear_conv_kernel_dim"] = o.integer("conv_width");
  }
  if (const MixerChoice* full = find_choice(model, "mla")) {
    const Options& o = full->options;
    config["num_attention_heads"] = o.integer("heads");
    config["num_key_value_heads"] = o.integer("heads");
    config["kv_lora_rank"] = o.integer("latent_dim");
    config["qk_nope_head_dim"] = o.integer("content_dim");
    config["qk_rope_head_dim"] = o.integer("shared_dim");
    config["v_head_dim"] = or_else(o.integer("value_dim"), o.integer("content_dim"));
    config["q_lora_rank"] =
        o.integer("query_latent_dim") == 0 ? nlohmann::json() : nlohmann::json(o.integer("query_latent_dim"));
  }
  return config;
}

HubModel read_config(const nlohmann::json& json, const std::string& source) {
  ConfigReader config(json, source);
  // The class saves some fields under the names of the published checkpoints.
  const char* positions = config.has("model_max_length") ? "model_max_length" : "max_position_embeddings";
  if (config.has("max_position_embeddings") && json.at("max_position_embeddings") != json.at(positions)) {
    config.refuse("max_position_embeddings", "differs from model_max_length");
  }
  config.ignore({"model_max_length", "max_position_embeddings"});
  HubModel hub = read_common_fields(config, {.max_positions = 1048576,
                                             .max_positions_field = positions,
                                             .norm_eps = 1e-5,
                                             .tokens = {.bos = 163584, .eos = 163586, .pad = 163839}});
  LanguageModelConfig& model = hub.model;
  config.expect("tie_word_embeddings", false);
  config.expect("attention_bias", false);
  const MixerChoice kda = mixer_choice("kda",
                                       {{"heads", config.integer_or("linear_num_heads", 32, 1, kMostHeads)},
                                        {"head_dim", config.integer_or("linear_head_dim", 128, 1, kMostWidth)},
                                        {"conv_width", config.integer_or("linear_conv_kernel_dim", 4, 2, 8)},
                                        {"gate", std::string("softplus")},
                                        {"gate_bias", false},
                                        {"norm_eps", model.norm_eps}},
                                       config.source());
  const std::int64_t heads = config.integer_or("num_attention_heads", 32, 1, kMostHeads);
  // The class splits keys into groups by this number before its latents have given every head a key of its own.
  constexpr std::int64_t kUsualKeyHeads = 32;
  const std::int64_t usual = config.names("num_key_value_heads") ? heads : kUsualKeyHeads;
  const std::int64_t kv_heads = config.integer_or("num_key_value_heads", usual, 1, kMostHeads);
  if (kv_heads != heads) {
    config_error("{}: num_key_value_heads = {}{}: expected num_attention_heads = {}", config.source(), kv_heads,
                 config.has("num_key_value_heads") ? "" : ", the class's default", heads);
  }
  const MixerChoice mla = mixer_choice("mla",
                                       {{"heads", heads},
                                        {"latent_dim", config.integer_or("kv_lora_rank", 512, 1, kMostWidth)},
                                        {"content_dim", config.integer_or("qk_nope_head_dim", 128, 1, kMostWidth)},
                                        {"shared_dim", config.integer_or("qk_rope_head_dim", 64, 1, kMostWidth)},
                                        {"value_dim", config.integer_or("v_head_dim", 128, 1, kMostWidth)},
                                        {"query_latent_dim", config.integer_or("q_lora_rank", 0, 1, kMostWidth)},
                                        {"rope", false}},
                                       config.source());
  model.pattern = read_layer_types(config, model.layers, kda, mla);
  for (const std::string& type : config.texts("mlp_layer_types", model.layers)) {
    if (type != "dense") config.refuse("mlp_layer_types", "a mixture of experts is not supported");
  }
  // Of experts, which no layer has.
  config.ignore({"num_experts", "num_shared_experts", "num_experts_per_token", "num_expert_group", "moe_renormalize",
                 "n_shared_experts", "routed_scaling_factor", "n_group", "topk_group", "num_experts_per_tok",
                 "norm_topk_prob", "num_local_experts", "moe_intermediate_size", "output_router_logits", "head_dim",
                 "qk_head_dim"});
  config.finish();
  return hub;
}

void add_kda(RuleList& rules, const std::string& prefix, const std::string& mixer, const Options& options) {
  const auto whole = [&](const char* name, const char* parameter) { rules.add(prefix + name, mixer + parameter); };
  whole("q_proj.weight", "wq");
  whole("k_proj.weight", "wk");
  whole("v_proj.weight", "wv");
  for (const char* of : {"q", "k", "v"}) {
    const std::string parameter = fmt::format("{}conv_{}", mixer, of);
    const Shape& shape = rules.shape(parameter);
    rules.add(fmt::format("{}{}_conv1d.weight", prefix, of), parameter, {shape[0], 1, shape[1]});
  }
  whole("f_a_proj.weight", "wf_a");
  whole("f_b_proj.weight", "wf_b");
  rules.add(prefix + "dt_bias", mixer + "dt_bias").keep_fp32 = true;
  rules.add(prefix + "A_log", mixer + "a_log", {1, 1, options.integer("heads"), 1}).keep_fp32 = true;
  whole("b_proj.weight", "wb");
  whole("g_a_proj.weight", "wg_a");
  whole("g_b_proj.weight", "wg_b");
  whole("o_norm.weight", "norm_w");
  whole("o_proj.weight", "wo");
}

void add_mla(RuleList& rules, const std::string& prefix, const std::string& mixer, const Options& options) {
  const auto whole = [&](const char* name, const char* parameter) { rules.add(prefix + name, mixer + parameter); };
  if (options.integer("query_latent_dim") == 0) {
    whole("q_proj.weight", "wq");
  } else {
    whole("q_a_proj.weight", "wq_a");
    whole("q_a_layernorm.weight", "q_a_norm_w");
    whole("q_b_proj.weight", "wq_b");
  }
  whole("kv_a_proj_with_mqa.weight", "wkv_a");
  whole("kv_a_layernorm.weight", "kv_a_norm_w");
  whole("kv_b_proj.weight", "wkv_b");
  whole("o_proj.weight", "wo");
}

std::vector<TensorRule> tensors(const LanguageModelConfig& model) {
  RuleList rules(model);
  add_ends(rules, model, 0.0);
  for (std::int64_t l = 0; l < model.layers; ++l) {
    const std::string own = fmt::format("layers.{}.", l), mixer = own + "mixer.", prefix = "model." + own;
    const MixerChoice& choice = model.choice(l);
    rules.add(prefix + "input_layernorm.weight", own + "mixer_norm_w");
    rules.add(prefix + "post_attention_layernorm.weight", own + "ffn_norm_w");
    // The class saves dense branches under the name of its mixture of experts, and loads both.
    add_swiglu(rules, prefix + "mlp", l, prefix + "block_sparse_moe");
    const auto add = choice.type->name == "kda" ? add_kda : add_mla;
    add(rules, prefix + "self_attn.", mixer, choice.options);
  }
  return std::move(rules).take();
}

}  // namespace

const HubTarget& kimi_linear_target() {
  static const HubTarget target{.name = "kimi_linear",
                                .model_type = "kimi_linear",
                                .summary = "Kimi delta attention and latent attention, dense (Kimi Linear)",
                                .obstacles = obstacles,
                                .write_config = write_config,
                                .read_config = read_config,
                                .tensors = tensors};
  return target;
}

}  // namespace weft
