// Which models are exactly of the Llama family, and the tensors they have there.
#include <algorithm>
#include <array>

#include "checkpoints/huggingface/obstacles.h"
#include "checkpoints/huggingface/rule_list.h"
#include "checkpoints/huggingface/targets/llama_family.h"

namespace weft {
namespace {

using Biases = LlamaFamily::Biases;
using Windows = LlamaFamily::Windows;

// Options of attention that the classes have in some form; all others must be at their defaults.
constexpr std::array<std::string_view, 17> kExpressible = {"heads",
                                                           "kv_heads",
                                                           "head_dim",
                                                           "window",
                                                           "qk_norm",
                                                           "bias",
                                                           "out_bias",
                                                           "rope_base",
                                                           "rope_scaling",
                                                           "rope_factor",
                                                           "rope_original_length",
                                                           "rope_low_freq_factor",
                                                           "rope_high_freq_factor",
                                                           "rope_attention_factor",
                                                           "rope_beta_fast",
                                                           "rope_beta_slow",
                                                           "rope_truncate"};

void require_plain_options(Obstacles& obstacles, const MixerChoice& choice) {
  for (const OptionSpec& spec : choice.type->options) {
    const bool plain = choice.options.values().at(spec.key) == spec.default_value;
    const bool expressible = std::ranges::find(kExpressible, spec.key) != kExpressible.end();
    obstacles.require(plain || expressible, "{}: {} is set, which the class does not have", choice.table, spec.key);
  }
}

void require_biases(Obstacles& obstacles, const LlamaFamily& family, const MixerChoice& choice) {
  const bool inputs = choice.options.flag("bias"), output = choice.options.flag("out_bias");
  switch (family.biases) {
    case Biases::none:
      obstacles.require(!inputs && !output, "{}: the class has no biases: bias and out_bias must be false",
                        choice.table);
      return;
    case Biases::queries_keys_values:
      obstacles.require(inputs && !output, "{}: the class has bias = true and out_bias = false", choice.table);
      return;
    case Biases::all:
      obstacles.require(inputs && output, "{}: the class has bias = true and out_bias = true", choice.table);
      return;
    case Biases::by_field:
      obstacles.require(inputs == output, "{}: the class has bias and out_bias together or neither", choice.table);
      return;
  }
}

// Entries of the pattern may differ in their windows alone, and only where the class has windows by layer.
void require_one_attention(Obstacles& obstacles, const LlamaFamily& family, const LanguageModelConfig& model) {
  const MixerChoice& first = model.pattern.front();
  std::int64_t window = 0;
  for (const MixerChoice& choice : model.pattern) {
    Options same_window = choice.options;
    const std::int64_t own = choice.options.integer("window");
    same_window.set("window", first.options.integer("window"));
    obstacles.require(same_window.values() == first.options.values(),
                      "{}: the options differ from those of {}, and the class has one set for all layers", choice.table,
                      first.table);
    if (family.windows == Windows::none) {
      obstacles.require(own == 0, "{}: window = {}, and the class has full attention", choice.table, own);
    } else if (family.windows == Windows::one) {
      obstacles.require(own == first.options.integer("window"), "{}: the class has one window for all layers",
                        choice.table);
    }
    obstacles.require(own == 0 || window == 0 || own == window, "{}: windows of {} and {}, and the class has one size",
                      choice.table, window, own);
    window = std::max(window, own);
  }
}

}  // namespace

std::vector<std::string> llama_obstacles(const LlamaFamily& family, const LanguageModelConfig& model) {
  Obstacles obstacles;
  bool all_attention = true;
  for (const MixerChoice& choice : model.pattern) {
    const bool is_attention = choice.type->name == "attention";
    obstacles.require(is_attention, "{}: the class has softmax attention, not {}", choice.table, choice.type->name);
    all_attention = all_attention && is_attention;
    if (!is_attention) continue;
    require_plain_options(obstacles, choice);
    require_biases(obstacles, family, choice);
    obstacles.require(choice.options.flag("qk_norm") == family.qk_norm, "{}: the class has qk_norm = {}", choice.table,
                      family.qk_norm);
    const std::int64_t heads = choice.options.integer("heads");
    obstacles.require(!family.divides_width || model.width % heads == 0,
                      "{}: heads = {} does not divide the width {}, which the class wants", choice.table, heads,
                      model.width);
  }
  if (all_attention) require_one_attention(obstacles, family, model);
  obstacles.require(model.ffn_hidden > 0, "model.ffn = 0: the class has feed-forward branches");
  obstacles.require(family.ffn_bias || !model.ffn_bias, "model.ffn_bias = true: the class has no such biases");
  obstacles.require(model.residual == Residual::pre_norm,
                    "model.residual = \"post_norm_input\": the class adds branches to what has not been normalised");
  return std::move(obstacles).lines();
}

std::vector<TensorRule> llama_tensors(const LlamaFamily& family, const LanguageModelConfig& model) {
  RuleList rules(model);
  add_ends(rules, model, 0.0);
  const auto with_bias = [&](const std::string& tensor, const std::string& weight, const std::string& bias,
                             bool is_biased) {
    rules.add(tensor + ".weight", weight);
    if (is_biased) rules.add(tensor + ".bias", bias);
  };
  for (std::int64_t l = 0; l < model.layers; ++l) {
    const Options& options = model.choice(l).options;
    const std::string there = fmt::format("model.layers.{}.", l), here = fmt::format("layers.{}.", l);
    const bool bias = options.flag("bias");
    rules.add(there + "input_layernorm.weight", here + "mixer_norm_w");
    with_bias(there + "self_attn.q_proj", here + "mixer.wq", here + "mixer.bq", bias);
    with_bias(there + "self_attn.k_proj", here + "mixer.wk", here + "mixer.bk", bias);
    with_bias(there + "self_attn.v_proj", here + "mixer.wv", here + "mixer.bv", bias);
    with_bias(there + "self_attn.o_proj", here + "mixer.wo", here + "mixer.bo", options.flag("out_bias"));
    if (family.qk_norm) {
      rules.add(there + "self_attn.q_norm.weight", here + "mixer.q_norm_w");
      rules.add(there + "self_attn.k_norm.weight", here + "mixer.k_norm_w");
    }
    rules.add(there + "post_attention_layernorm.weight", here + "ffn_norm_w");
    with_bias(there + "mlp.gate_proj", here + "ffn.w_gate", here + "ffn.b_gate", model.ffn_bias);
    with_bias(there + "mlp.up_proj", here + "ffn.w_up", here + "ffn.b_up", model.ffn_bias);
    with_bias(there + "mlp.down_proj", here + "ffn.w_down", here + "ffn.b_down", model.ffn_bias);
  }
  return std::move(rules).take();
}

}  // namespace weft
