// The dense decoders of softmax attention that descend from Llama: one description of each class's differences.
#pragma once

#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/target.h"

namespace weft {

struct LlamaFamily {
  enum class Biases : std::uint8_t {
    none,
    all,
    queries_keys_values,
    by_field
  };  // by_field: attention_bias: all or none
  enum class Windows : std::uint8_t { none, one, per_layer };

  const char* name;          // and model_type
  const char* architecture;  // e.g. "LlamaForCausalLM"
  Biases biases;
  Windows windows;
  bool qk_norm;
  bool ffn_bias;       // has the field mlp_bias
  bool divides_width;  // the class refuses numbers of heads that do not divide the width, whatever head_dim is
  // Of fields that a config.json may leave out. 0: heads, width / heads.
  std::int64_t kv_heads, head_dim, max_positions;
  std::int32_t bos, eos;
};

inline constexpr LlamaFamily kLlama{.name = "llama",
                                    .architecture = "LlamaForCausalLM",
                                    .biases = LlamaFamily::Biases::by_field,
                                    .windows = LlamaFamily::Windows::none,
                                    .qk_norm = false,
                                    .ffn_bias = true,
                                    .divides_width = true,
                                    .kv_heads = 0,
                                    .head_dim = 0,
                                    .max_positions = 2048,
                                    .bos = 1,
                                    .eos = 2};
inline constexpr LlamaFamily kQwen2{.name = "qwen2",
                                    .architecture = "Qwen2ForCausalLM",
                                    .biases = LlamaFamily::Biases::queries_keys_values,
                                    .windows = LlamaFamily::Windows::per_layer,
                                    .qk_norm = false,
                                    .ffn_bias = false,
                                    .divides_width = false,
                                    .kv_heads = 32,
                                    .head_dim = 0,
                                    .max_positions = 32768,
                                    .bos = -1,
                                    .eos = -1};
inline constexpr LlamaFamily kQwen3{.name = "qwen3",
                                    .architecture = "Qwen3ForCausalLM",
                                    .biases = LlamaFamily::Biases::by_field,
                                    .windows = LlamaFamily::Windows::per_layer,
                                    .qk_norm = true,
                                    .ffn_bias = false,
                                    .divides_width = false,
                                    .kv_heads = 32,
                                    .head_dim = 128,
                                    .max_positions = 32768,
                                    .bos = -1,
                                    .eos = -1};
inline constexpr LlamaFamily kMistral{.name = "mistral",
                                      .architecture = "MistralForCausalLM",
                                      .biases = LlamaFamily::Biases::none,
                                      .windows = LlamaFamily::Windows::one,
                                      .qk_norm = false,
                                      .ffn_bias = false,
                                      .divides_width = false,
                                      .kv_heads = 8,
                                      .head_dim = 0,
                                      .max_positions = 131072,
                                      .bos = 1,
                                      .eos = 2};

HubModel read_llama_config(const LlamaFamily& family, const nlohmann::json& config, const std::string& source);
nlohmann::json write_llama_config(const LlamaFamily& family, const HubModel& model);
std::vector<std::string> llama_obstacles(const LlamaFamily& family, const LanguageModelConfig& model);
std::vector<TensorRule> llama_tensors(const LlamaFamily& family, const LanguageModelConfig& model);

// The entry of a class; `summary` is one line.
template <const LlamaFamily& family>
HubTarget llama_target(const char* summary) {
  return {.name = family.name,
          .model_type = family.name,
          .summary = summary,
          .obstacles = [](const LanguageModelConfig& model) { return llama_obstacles(family, model); },
          .write_config = [](const HubModel& model) { return write_llama_config(family, model); },
          .read_config = [](const nlohmann::json& config,
                            const std::string& source) { return read_llama_config(family, config, source); },
          .tensors = [](const LanguageModelConfig& model) { return llama_tensors(family, model); }};
}

}  // namespace weft
