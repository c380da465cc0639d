#include "checkpoints/huggingface/target.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "autograd/check.h"
#include "checkpoints/huggingface/targets/fla.h"
#include "checkpoints/huggingface/targets/kimi_linear.h"
#include "checkpoints/huggingface/targets/llama_family.h"
#include "checkpoints/huggingface/targets/minimax.h"
#include "checkpoints/huggingface/targets/qwen3_5.h"
#include "checkpoints/huggingface/targets/qwen3_next.h"
#include "checkpoints/huggingface/targets/weft.h"
#include "data/storage/text.h"

namespace weft {
namespace {

// Classes that a user may well bring, and for which there is no target yet.
const std::set<std::string, std::less<>>& known_but_unsupported() {
  static const std::set<std::string, std::less<>> names = {"bamba",
                                                           "bloom",
                                                           "cohere",
                                                           "cohere2",
                                                           "deepseek_v2",
                                                           "deepseek_v3",
                                                           "exaone4",
                                                           "falcon",
                                                           "falcon_h1",
                                                           "falcon_mamba",
                                                           "gemma",
                                                           "gemma2",
                                                           "gemma3",
                                                           "gemma3_text",
                                                           "gemma3n",
                                                           "glm",
                                                           "glm4",
                                                           "gpt2",
                                                           "gpt_neo",
                                                           "gpt_neox",
                                                           "gpt_oss",
                                                           "gptj",
                                                           "granite",
                                                           "granitemoe",
                                                           "granitemoehybrid",
                                                           "jamba",
                                                           "lfm2",
                                                           "llama4",
                                                           "llama4_text",
                                                           "mamba",
                                                           "mamba2",
                                                           "ministral",
                                                           "ministral3",
                                                           "mixtral",
                                                           "mpt",
                                                           "nemotron",
                                                           "nemotron_h",
                                                           "olmo",
                                                           "olmo2",
                                                           "olmo3",
                                                           "opt",
                                                           "phi",
                                                           "phi3",
                                                           "phimoe",
                                                           "qwen2_moe",
                                                           "qwen3_moe",
                                                           "recurrent_gemma",
                                                           "rwkv",
                                                           "seed_oss",
                                                           "smollm3",
                                                           "stablelm",
                                                           "starcoder2",
                                                           "xlstm",
                                                           "zamba",
                                                           "zamba2"};
  return names;
}

}  // namespace

const std::vector<HubTarget>& hub_targets() {
  static const std::vector<HubTarget> targets = {
      llama_target<kLlama>("Llama 2 and 3, SmolLM: full attention, dense SwiGLU"),
      llama_target<kQwen3>("Qwen3: RMS norms of queries and keys, windows by layer"),
      llama_target<kQwen2>("Qwen2 and 2.5: biases of queries, keys and values, windows by layer"),
      llama_target<kMistral>("Mistral: one window for all layers"),
      qwen3_next_target(),
      qwen3_5_target(),
      minimax_target(),
      kimi_linear_target(),
      weft_target(),
      fla_kda_target(),
      fla_gated_deltanet_target(),
  };
  return targets;
}

const HubTarget* find_hub_target(std::string_view name) {
  const auto it = std::ranges::find(hub_targets(), name, &HubTarget::name);
  return it == hub_targets().end() ? nullptr : &*it;
}

const HubTarget& hub_target_of(const nlohmann::json& config, const std::string& source) {
  if (!config.is_object()) config_error("{}: expected an object", source);
  const auto type = config.find("model_type");
  if (type == config.end() || !type->is_string()) config_error("{}: there is no model_type, a string", source);
  const auto& name = type->get_ref<const std::string&>();
  const auto it = std::ranges::find(hub_targets(), name, &HubTarget::model_type);
  if (it != hub_targets().end()) return *it;
  if (known_but_unsupported().contains(name)) config_error("{}: models of type {} are not supported yet", source, name);
  std::string list;
  for (const HubTarget& target : hub_targets()) list += (list.empty() ? "" : ", ") + target.model_type;
  config_error("{}: model_type \"{}\" is none that weft reads: {}", source, printable(name), list);
}

}  // namespace weft
