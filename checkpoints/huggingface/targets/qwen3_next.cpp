#include "checkpoints/huggingface/targets/qwen3_next.h"

#include <nlohmann/json.hpp>
#include <numeric>

#include "checkpoints/huggingface/targets/gated_delta_hybrid.h"

// H_K key heads, H value heads, r = H / H_K value heads of a key head, d_k and d_v head widths, d model width.

namespace weft {
namespace {

std::vector<std::int64_t> all_layers(std::int64_t layers) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(layers));
  std::iota(all.begin(), all.end(), std::int64_t{0});
  return all;
}

nlohmann::json write_config(const HubModel& hub) {
  nlohmann::json config = gated_delta_hybrid_config(hub);
  config["model_type"] = "qwen3_next";
  config["architectures"] = {"Qwen3NextForCausalLM"};
  config["num_experts"] = 0;
  config["mlp_only_layers"] = all_layers(hub.model.layers);
  return config;
}

HubModel read_config(const nlohmann::json& json, const std::string& source) {
  ConfigReader config(json, source);
  HubModel hub = read_gated_delta_hybrid_config(config, 2);
  config.ignore({"decoder_sparse_step", "moe_intermediate_size", "shared_expert_intermediate_size",
                 "num_experts_per_tok", "norm_topk_prob", "output_router_logits", "router_aux_loss_coef"});
  const bool dense = config.integer_or("num_experts", 512, 0, 1 << 20) == 0 ||
                     (config.has("mlp_only_layers") &&
                      config.value("mlp_only_layers") == nlohmann::json(all_layers(hub.model.layers)));
  config.ignore({"mlp_only_layers"});
  if (!dense) config_error("{}: num_experts: a mixture of experts is not supported", source);
  config.finish();
  return hub;
}

// in_proj_qkvz: for each key head its q, its k, the v of its value heads, the z of them; in_proj_ba: b, then a of them.
void add_projections(RuleList& rules, const std::string& prefix, const std::string& mixer, const Options& options) {
  const std::int64_t H_K = options.integer("heads"), d_k = options.integer("head_dim");
  const std::int64_t H = rules.shape(mixer + "wb")[0], r = H / H_K;
  const std::int64_t values = rules.shape(mixer + "wv")[0], d = rules.shape(mixer + "wv")[1], rows = values / H_K;
  std::vector<Piece> qkvz, ba;
  for (std::int64_t j = 0; j < H_K; ++j) {
    qkvz.push_back(rules.rows(mixer + "wq", j * d_k, d_k));
    qkvz.push_back(rules.rows(mixer + "wk", j * d_k, d_k));
    qkvz.push_back(rules.rows(mixer + "wv", j * rows, rows));
    qkvz.push_back(rules.rows(mixer + "wg", j * rows, rows));
    ba.push_back(rules.rows(mixer + "wb", j * r, r));
    ba.push_back(rules.rows(mixer + "wa", j * r, r));
  }
  rules.add(prefix + "in_proj_qkvz.weight", {2 * H_K * d_k + 2 * values, d}, std::move(qkvz));
  rules.add(prefix + "in_proj_ba.weight", {2 * H, d}, std::move(ba));
}

std::vector<TensorRule> tensors(const LanguageModelConfig& model) {
  return gated_delta_hybrid_tensors(model, add_projections);
}

}  // namespace

const HubTarget& qwen3_next_target() {
  static const HubTarget target{.name = "qwen3_next",
                                .model_type = "qwen3_next",
                                .summary = "gated delta nets and gated attention, dense (Qwen3-Next)",
                                .obstacles = gated_delta_hybrid_obstacles,
                                .write_config = write_config,
                                .read_config = read_config,
                                .tensors = tensors};
  return target;
}

}  // namespace weft
