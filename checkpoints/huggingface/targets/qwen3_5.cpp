#include "checkpoints/huggingface/targets/qwen3_5.h"

#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/targets/gated_delta_hybrid.h"

namespace weft {
namespace {

nlohmann::json write_config(const HubModel& hub) {
  nlohmann::json config = gated_delta_hybrid_config(hub);
  config["model_type"] = "qwen3_5_text";
  config["architectures"] = {"Qwen3_5ForCausalLM"};
  return config;
}

HubModel read_config(const nlohmann::json& json, const std::string& source) {
  ConfigReader config(json, source);
  HubModel hub = read_gated_delta_hybrid_config(config, 4);
  config.finish();
  return hub;
}

// Projections one by one, but for in_proj_qkv = [q; k; v].
void add_projections(RuleList& rules, const std::string& prefix, const std::string& mixer, const Options&) {
  const std::int64_t keys = rules.shape(mixer + "wq")[0], values = rules.shape(mixer + "wv")[0];
  rules.add(prefix + "in_proj_qkv.weight", {2 * keys + values, rules.shape(mixer + "wq")[1]},
            {rules.all(mixer + "wq"), rules.all(mixer + "wk"), rules.all(mixer + "wv")});
  rules.add(prefix + "in_proj_z.weight", mixer + "wg");
  rules.add(prefix + "in_proj_b.weight", mixer + "wb");
  rules.add(prefix + "in_proj_a.weight", mixer + "wa");
}

std::vector<TensorRule> tensors(const LanguageModelConfig& model) {
  return gated_delta_hybrid_tensors(model, add_projections);
}

}  // namespace

const HubTarget& qwen3_5_target() {
  static const HubTarget target{.name = "qwen3_5_text",
                                .model_type = "qwen3_5_text",
                                .summary = "gated delta nets and gated attention (text model of Qwen3.5)",
                                .obstacles = gated_delta_hybrid_obstacles,
                                .write_config = write_config,
                                .read_config = read_config,
                                .tensors = tensors};
  return target;
}

}  // namespace weft
