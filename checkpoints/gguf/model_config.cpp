#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "checkpoints/gguf/model.h"
#include "checkpoints/gguf/rope_factors.h"
#include "data/storage/json.h"
#include "data/storage/text.h"

namespace weft {

namespace {

using nlohmann::json;

// Behind "<architecture>.". Everything else is refused unless it is 0.
constexpr std::string_view kKnownKeys[] = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
};

// The metadata of one architecture, by the names behind its prefix.
class ArchitectureKeys {
 public:
  ArchitectureKeys(const GgufMetadata& metadata, std::string architecture)
      : metadata_(metadata), prefix_(std::move(architecture) + ".") {}

  void check_known() const {
    for (const auto& [key, value] : metadata_.values) {
      if (!key.starts_with(prefix_)) continue;
      const std::string_view name = std::string_view(key).substr(prefix_.size());
      const auto* integer = std::get_if<std::int64_t>(&value);
      const bool is_off = integer != nullptr && *integer == 0;
      if (!is_off && std::find(std::begin(kKnownKeys), std::end(kKnownKeys), name) == std::end(kKnownKeys)) {
        storage_error("{}: key \"{}\" is not understood, and may change what the model computes", metadata_.source(),
                      printable(key));
      }
    }
  }
  std::int64_t integer(std::string_view name) const {
    const auto value = metadata_.require<std::int64_t>(full(name));
    if (value <= 0 || value > std::int64_t{1} << 32) {
      storage_error("{}: key \"{}\": {} is outside [1, 2^32]", metadata_.source(), full(name), value);
    }
    return value;
  }
  std::int64_t integer_or(std::string_view name, std::int64_t otherwise) const {
    return metadata_.contains(full(name)) ? integer(name) : otherwise;
  }
  double number_or(std::string_view name, double otherwise) const {
    return metadata_.contains(full(name)) ? number(name) : otherwise;
  }
  double number(std::string_view name) const {
    const double value = metadata_.require<double>(full(name));
    if (!std::isfinite(value)) storage_error("{}: key \"{}\" is {}", metadata_.source(), full(name), value);
    return value;
  }
  std::string text_or(std::string_view name, std::string otherwise) const {
    const auto* value = metadata_.find<std::string>(full(name));
    return value == nullptr ? otherwise : *value;
  }
  std::string full(std::string_view name) const { return prefix_ + std::string(name); }

 private:
  const GgufMetadata& metadata_;
  std::string prefix_;
};

// null for no scaling.
json rope_scaling(const GgufFile& file, const ArchitectureKeys& keys, bool is_llama, double theta) {
  const std::string source = file.path().string();
  const std::string type = keys.text_or("rope.scaling.type", "none");
  const SourceTensor* factors = file.find(kRopeFactorsTensor);
  if (factors != nullptr && is_llama) {
    if (type != "none") storage_error("{}: both {} and {}", source, kRopeFactorsTensor, keys.full("rope.scaling.type"));
    std::vector<float> values(static_cast<std::size_t>(factors->elements()));
    file.read_floats(factors->name, 0, factors->rows(), values);
    const Llama3Scaling scaling = llama3_scaling(values, theta, source);
    return {{"rope_type", "llama3"},
            {"factor", scaling.factor},
            {"low_freq_factor", scaling.low_freq_factor},
            {"high_freq_factor", scaling.high_freq_factor},
            {"original_max_position_embeddings", static_cast<std::int64_t>(scaling.original_max_position_embeddings)}};
  }
  if (type == "none") return nullptr;
  if (type == "linear") return {{"rope_type", "linear"}, {"factor", keys.number("rope.scaling.factor")}};
  if (type == "yarn") {
    return {{"rope_type", "yarn"},
            {"factor", keys.number("rope.scaling.factor")},
            {"original_max_position_embeddings", keys.integer("rope.scaling.original_context_length")}};
  }
  storage_error("{}: key \"{}\": \"{}\" is not supported; none, linear and yarn are", source,
                keys.full("rope.scaling.type"), printable(type));
}

}  // namespace

std::string gguf_config_json(const GgufFile& file) {
  const GgufMetadata& metadata = file.metadata();
  const std::string source = file.path().string();
  const std::string& architecture = metadata.require<std::string>("general.architecture");
  const bool is_llama = architecture == "llama";
  const bool is_qwen3 = architecture == "qwen3";
  if (!is_llama && !is_qwen3 && architecture != "qwen2") {
    storage_error("{}: architecture \"{}\" is not supported; llama, qwen2 and qwen3 are", source,
                  printable(architecture));
  }
  const ArchitectureKeys keys(metadata, architecture);
  keys.check_known();

  const std::int64_t width = keys.integer("embedding_length");
  const std::int64_t heads = keys.integer("attention.head_count");
  const std::int64_t head_dim = keys.integer_or("attention.key_length", width / heads);
  const auto expect_equal = [&](std::string_view name, std::int64_t expected, std::string_view meaning) {
    const std::int64_t value = keys.integer_or(name, expected);
    if (value != expected) {
      storage_error("{}: key \"{}\": {} is not {}, {}", source, keys.full(name), value, expected, meaning);
    }
  };
  expect_equal("attention.value_length", head_dim, "the size of a key");
  expect_equal("rope.dimension_count", head_dim, "the size of a head, which is rotated as a whole");
  const std::int64_t vocab = file.require("token_embd.weight").rows();
  expect_equal("vocab_size", vocab, "the number of rows of token_embd.weight");

  const double theta = keys.number_or("rope.freq_base", 10000.0);
  const std::string class_prefix = is_llama ? "Llama" : is_qwen3 ? "Qwen3" : "Qwen2";
  json config = {{"architectures", json::array({class_prefix + "ForCausalLM"})},
                 {"model_type", architecture},
                 {"vocab_size", vocab},
                 {"hidden_size", width},
                 {"intermediate_size", keys.integer("feed_forward_length")},
                 {"num_hidden_layers", keys.integer("block_count")},
                 {"num_attention_heads", heads},
                 {"num_key_value_heads", keys.integer_or("attention.head_count_kv", heads)},
                 {"head_dim", head_dim},
                 {"hidden_act", "silu"},
                 {"rms_norm_eps", keys.number("attention.layer_norm_rms_epsilon")},
                 {"rope_theta", theta},
                 {"max_position_embeddings", keys.integer("context_length")},
                 {"tie_word_embeddings", file.find("output.weight") == nullptr}};
  if (is_llama || is_qwen3) config["attention_bias"] = file.find("blk.0.attn_q.bias") != nullptr;
  if (is_llama) config["mlp_bias"] = file.find("blk.0.ffn_gate.bias") != nullptr;
  if (!is_llama) config["use_sliding_window"] = false;
  if (json scaling = rope_scaling(file, keys, is_llama, theta); !scaling.is_null()) {
    config["rope_scaling"] = std::move(scaling);
  }
  for (const auto& [theirs, ours] : {std::pair("tokenizer.ggml.bos_token_id", "bos_token_id"),
                                     std::pair("tokenizer.ggml.eos_token_id", "eos_token_id"),
                                     std::pair("tokenizer.ggml.padding_token_id", "pad_token_id")}) {
    if (const auto* id = metadata.find<std::int64_t>(theirs)) config[ours] = *id;
  }
  return canonical(config);
}

}  // namespace weft
