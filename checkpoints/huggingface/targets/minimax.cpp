#include "checkpoints/huggingface/targets/minimax.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/common_fields.h"
#include "checkpoints/huggingface/obstacles.h"
#include "checkpoints/huggingface/rule_list.h"
#include "modules/mixers/lightning/slopes.h"

// Facts of the class: branches add to the *normalised* input; lightning and softmax layers have the same heads;
// lightning norms have an epsilon of 1e-6 whatever rms_norm_eps is; softmax layers turn whole heads; experts are
// router-weighted, and the softmax over the single logit of one expert is 1, whatever its weight. The decays of
// lightning layers and their powers within a block are buffers that files hold.
//
// H heads, B tokens of a block, d_h head width.

namespace weft {
namespace {

constexpr std::int64_t kBlock = 64;  // changes no result, but the size of the buffers

void lightning_obstacles(Obstacles& found, const MixerChoice& choice) {
  const Options& o = choice.options;
  const std::string& at = choice.table;
  const auto only = [&](const char* key, const char* value) {
    found.require(o.text(key) == value, "{}: {} = \"{}\": the class has \"{}\"", at, key, o.text(key), value);
  };
  only("slopes", "geometric");
  only("norm", "joint");
  only("gate", "sigmoid");
  only("value_activation", "silu");
  only("lrpe", "none");
  found.require(o.integer("gate_rank") == 0, "{}: gate_rank = {}: the class has a full gate; use 0", at,
                o.integer("gate_rank"));
  found.require(o.integer("value_dim") == 0 || o.integer("value_dim") == o.integer("head_dim"),
                "{}: value_dim = {}: the class has one width for keys and values, head_dim = {}", at,
                o.integer("value_dim"), o.integer("head_dim"));
}

void attention_obstacles(Obstacles& found, const MixerChoice& choice) {
  const Options& o = choice.options;
  const std::string& at = choice.table;
  found.require(o.text("gate") == "none", "{}: gate = \"{}\": the class has no output gate in softmax layers", at,
                o.text("gate"));
  found.require(!o.flag("qk_norm"), "{}: qk_norm = true: the class does not normalise queries and keys", at);
  found.require(o.real("rope_fraction") == 1.0, "{}: rope_fraction = {}: the class turns whole heads; use 1", at,
                o.real("rope_fraction"));
  found.require_plain_attention(choice);
}

std::vector<std::string> obstacles(const LanguageModelConfig& model) {
  Obstacles found;
  found.require_mixers(model, {"lightning", "attention"}, "layers of lightning and attention");
  found.require_blocks(model, Residual::post_norm_input);
  const MixerChoice* lightning = find_choice(model, "lightning");
  const MixerChoice* softmax = find_choice(model, "attention");
  if (lightning != nullptr) lightning_obstacles(found, *lightning);
  if (softmax != nullptr) attention_obstacles(found, *softmax);
  if (lightning != nullptr && softmax != nullptr) {
    const AttentionSizes sizes = attention_sizes(model, *softmax);
    const std::int64_t heads = lightning->options.integer("heads"), width = lightning->options.integer("head_dim");
    found.require(sizes.heads == heads && sizes.head_dim == width,
                  "{}: {} heads of {}, but {} has {} of {}: the class has the same in all layers", softmax->table,
                  sizes.heads, sizes.head_dim, lightning->table, heads, width);
  }
  return std::move(found).lines();
}

nlohmann::json write_config(const HubModel& hub) {
  const LanguageModelConfig& model = hub.model;
  nlohmann::json config = common_fields(hub);
  config["model_type"] = "minimax";
  config["architectures"] = {"MiniMaxForCausalLM"};
  config["layer_types"] = layer_types(model, "lightning");
  config["attention_dropout"] = 0.0;
  config["block_size"] = kBlock;
  config["num_local_experts"] = 1;
  config["num_experts_per_tok"] = 1;
  config["router_jitter_noise"] = 0.0;
  config["sliding_window"] = nullptr;
  for (const char* branch : {"full_attn", "linear_attn", "mlp"}) {
    for (const char* factor : {"alpha", "beta"}) config[fmt::format("{}_{}_factor", branch, factor)] = 1;
  }
  if (const MixerChoice* lightning = find_choice(model, "lightning")) {
    config["num_attention_heads"] = lightning->options.integer("heads");
    config["num_key_value_heads"] = lightning->options.integer("heads");
    config["head_dim"] = lightning->options.integer("head_dim");
  }
  if (const MixerChoice* softmax = find_choice(model, "attention")) {
    const AttentionSizes sizes = attention_sizes(model, *softmax);
    config["num_attention_heads"] = sizes.heads;
    config["num_key_value_heads"] = sizes.kv_heads;
    config["head_dim"] = sizes.head_dim;
    const std::int64_t window = softmax->options.integer("window");
    if (window > 0) config["sliding_window"] = window;
    config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", softmax->options.real("rope_base")}};
  }
  return config;
}

HubModel read_config(const nlohmann::json& json, const std::string& source) {
  ConfigReader config(json, source);
  HubModel hub =
      read_common_fields(config, {.max_positions = 131072, .norm_eps = 1e-5, .tokens = {.bos = 1, .eos = 2}});
  LanguageModelConfig& model = hub.model;
  model.residual = Residual::post_norm_input;
  config.value("block_size");  // the class has another where there is none
  config.expect("block_size", kBlock);
  config.ignore({"router_jitter_noise", "output_router_logits", "router_aux_loss_coef"});  // of training
  if (config.integer_or("num_local_experts", 8, 1, 1 << 20) != 1) {
    config_error("{}: num_local_experts: a mixture of experts is not supported", source);
  }
  config.expect("num_experts_per_tok", 1);
  for (const char* branch : {"full_attn", "linear_attn", "mlp"}) {
    for (const char* factor : {"alpha", "beta"}) config.expect(fmt::format("{}_{}_factor", branch, factor), 1);
  }
  const std::int64_t heads = config.integer("num_attention_heads", 1, kMostHeads);
  const std::int64_t kv_heads =
      config.integer_or("num_key_value_heads", config.names("num_key_value_heads") ? heads : 8, 1, kMostHeads);
  const std::int64_t head_dim =
      config.integer_or("head_dim", std::max<std::int64_t>(1, model.width / heads), 1, kMostWidth);
  double base = 1e6;
  if (config.has("rope_parameters")) {
    ConfigReader rope = config.object("rope_parameters");
    rope.expect("rope_type", "default");
    rope.expect("partial_rotary_factor", 1.0);
    base = rope.real_or("rope_theta", base, 1.0, 1e30);
    rope.finish();
  }
  const MixerChoice lightning = mixer_choice("lightning", {{"heads", heads}, {"head_dim", head_dim}}, source);
  const MixerChoice softmax =
      mixer_choice("attention",
                   {{"heads", heads},
                    {"kv_heads", kv_heads},
                    {"head_dim", head_dim},
                    {"window", config.integer_or("sliding_window", 0, 1, std::numeric_limits<std::int32_t>::max())},
                    {"rope_base", base},
                    {"qk_norm", false}},
                   source);
  model.pattern = read_layer_types(config, model.layers, lightning, softmax);
  config.finish();
  return hub;
}

void add_lightning(RuleList& rules, const std::string& prefix, const std::string& mixer, const Options& options,
                   std::vector<double> log_decays) {
  const std::int64_t H = options.integer("heads"), d_h = options.integer("head_dim");
  std::vector<Piece> qkv;
  for (std::int64_t h = 0; h < H; ++h) {
    for (const char* projection : {"wq", "wk", "wv"}) qkv.push_back(rules.rows(mixer + projection, h * d_h, d_h));
  }
  rules.add(prefix + "qkv_proj.weight", {3 * H * d_h, rules.shape(mixer + "wq")[1]}, std::move(qkv));
  rules.add(prefix + "norm.weight", mixer + "norm_w");
  rules.add(prefix + "output_gate.weight", mixer + "wg");
  rules.add(prefix + "out_proj.weight", mixer + "wo");
  // g[h] is the log decay of head h; every buffer is e^(g n) for a number of tokens n.
  const auto buffer = [&](const char* name, const Shape& shape, auto tokens) {
    const std::int64_t per_head = shape.numel() / H;
    rules
        .add_constant(prefix + name, shape,
                      [g = log_decays, per_head, tokens](std::int64_t i) {
                        const double n = tokens(i % per_head);
                        return n < 0 ? 0.0 : std::exp(g[static_cast<std::size_t>(i / per_head)] * n);
                      })
        .keep_fp32 = true;
  };
  rules
      .add_constant(prefix + "slope_rate", {H, 1, 1},
                    [g = log_decays](std::int64_t h) { return -g[static_cast<std::size_t>(h)]; })
      .keep_fp32 = true;
  buffer("query_decay", {H, kBlock, 1}, [](std::int64_t t) { return static_cast<double>(t + 1); });
  buffer("key_decay", {H, kBlock, 1}, [](std::int64_t t) { return static_cast<double>(kBlock - 1 - t); });
  buffer("diagonal_decay", {1, H, kBlock, kBlock},
         [](std::int64_t i) { return static_cast<double>(i / kBlock - i % kBlock); });
}

void add_attention(RuleList& rules, const std::string& prefix, const std::string& mixer) {
  rules.add(prefix + "q_proj.weight", mixer + "wq");
  rules.add(prefix + "k_proj.weight", mixer + "wk");
  rules.add(prefix + "v_proj.weight", mixer + "wv");
  rules.add(prefix + "o_proj.weight", mixer + "wo");
}

std::vector<TensorRule> tensors(const LanguageModelConfig& model) {
  RuleList rules(model);
  add_ends(rules, model, 0.0);
  for (std::int64_t l = 0; l < model.layers; ++l) {
    const std::string own = fmt::format("layers.{}.", l), mixer = own + "mixer.", prefix = "model." + own;
    const MixerChoice& choice = model.choice(l);
    rules.add(prefix + "input_layernorm.weight", own + "mixer_norm_w");
    rules.add(prefix + "post_attention_layernorm.weight", own + "ffn_norm_w");
    const std::string experts = prefix + "block_sparse_moe.", expert = experts + "experts.0.";
    rules.add_constant(experts + "gate.weight", {1, model.width}, [](std::int64_t) { return 0.0; }).any_value = true;
    rules.add(expert + "w1.weight", own + "ffn.w_gate");
    rules.add(expert + "w2.weight", own + "ffn.w_down");
    rules.add(expert + "w3.weight", own + "ffn.w_up");
    if (choice.type->name == "lightning") {
      add_lightning(rules, prefix + "self_attn.", mixer, choice.options,
                    lightning_log_decays("geometric", choice.options.integer("heads"), l, model.layers));
    } else {
      add_attention(rules, prefix + "self_attn.", mixer);
    }
  }
  return std::move(rules).take();
}

}  // namespace

const HubTarget& minimax_target() {
  static const HubTarget target{.name = "minimax",
                                .model_type = "minimax",
                                .summary = "lightning and softmax attention, one expert (MiniMax-01)",
                                .obstacles = obstacles,
                                .write_config = write_config,
                                .read_config = read_config,
                                .tensors = tensors};
  return target;
}

}  // namespace weft
