// Fields of config.json that all classes share.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "checkpoints/huggingface/config_reader.h"
#include "checkpoints/huggingface/target.h"

namespace weft {

// Largest numbers that a config.json may ask for.
inline constexpr std::int64_t kMostWidth = 65536;
inline constexpr std::int64_t kMostLayers = 1024;
inline constexpr std::int64_t kMostHeads = 1024;
inline constexpr std::int64_t kMostVocabulary = std::int64_t{1} << 22;
inline constexpr std::int64_t kMostPositions = std::int64_t{1} << 40;

// vocab_size, hidden_size, intermediate_size, num_hidden_layers, rms_norm_eps, tie_word_embeddings,
// max_position_embeddings, the special tokens and hidden_act = "silu".
nlohmann::json common_fields(const HubModel& model);
// The inverse, without the pattern.
HubModel read_common_fields(ConfigReader& config);

// layer_types: "linear_attention" for layers of the mixer `linear`, "full_attention" for all others.
std::vector<std::string> layer_types(const LanguageModelConfig& model, const std::string& linear);
// The inverse: the shortest pattern of the two choices.
std::vector<MixerChoice> read_layer_types(ConfigReader& config, std::int64_t layers, const MixerChoice& linear,
                                          const MixerChoice& full);

// A mixer with some options set, the others at their defaults.
MixerChoice mixer_choice(const std::string& mixer, const std::vector<std::pair<std::string, OptionValue>>& options,
                         const std::string& source);

// Heads and widths of an attention layer, defaults resolved.
struct AttentionSizes {
  std::int64_t heads, kv_heads, head_dim;
};
AttentionSizes attention_sizes(const LanguageModelConfig& model, const MixerChoice& choice);

}  // namespace weft
