// Fields of config.json that all classes share.
#pragma once

#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "checkpoints/huggingface/config_reader.h"
#include "checkpoints/huggingface/general_fields.h"
#include "checkpoints/huggingface/target.h"

namespace weft {

// Largest numbers that a config.json may ask for.
inline constexpr std::int64_t kMostWidth = 65536;
inline constexpr std::int64_t kMostLayers = 1024;
inline constexpr std::int64_t kMostHeads = 1024;
inline constexpr std::int64_t kMostVocabulary = std::int64_t{1} << 22;
inline constexpr std::int64_t kMostPositions = std::numeric_limits<std::int32_t>::max();

// vocab_size, hidden_size, intermediate_size, num_hidden_layers, rms_norm_eps, tie_word_embeddings,
// max_position_embeddings, the special tokens and hidden_act = "silu".
nlohmann::json common_fields(const HubModel& model);

// What a class takes where a config.json has no such field; 0: the field must be there.
struct ClassDefaults {
  std::int64_t max_positions = 0;
  const char* max_positions_field = "max_position_embeddings";
  double norm_eps = 0.0;
  TokenIds tokens = {};
  const char* norm_eps_field = "rms_norm_eps";
  std::int64_t least_ffn = 1;  // 0: layers may lack the feed-forward branch
};

// The inverse of common_fields, without the pattern, and the general fields.
HubModel read_common_fields(ConfigReader& config, const ClassDefaults& absent);

// layer_types: "linear_attention" for layers of the mixer `linear`, "full_attention" for all others.
std::vector<std::string> layer_types(const LanguageModelConfig& model, const std::string& linear);
// The inverse: the shortest pattern of the two choices.
std::vector<MixerChoice> read_layer_types(ConfigReader& config, std::int64_t layers, const MixerChoice& linear,
                                          const MixerChoice& full);

// A mixer with some options set, the others at their defaults.
MixerChoice mixer_choice(const std::string& mixer, const std::vector<std::pair<std::string, OptionValue>>& options,
                         const std::string& source);

// A factor of which a class that truncates `of` * factor makes `count`.
double truncated_factor(std::int64_t of, std::int64_t count);

// Heads and widths of an attention layer, defaults resolved.
struct AttentionSizes {
  std::int64_t heads, kv_heads, head_dim;
};
AttentionSizes attention_sizes(const LanguageModelConfig& model, const MixerChoice& choice);

}  // namespace weft
