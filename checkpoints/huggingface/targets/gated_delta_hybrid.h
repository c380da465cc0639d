// What Qwen3-Next and the text model of Qwen3.5 share: layers of gated delta rule and of gated softmax attention. They
// differ in how the projections of the delta rule are packed, and in the fields of their (here unused) experts.
//
// Facts of the classes: gains of all norms but the delta rule's are stored less one; one epsilon for all norms; q_proj
// holds for each head its queries, then its output gate; conv1d runs over [q; k; v].
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "checkpoints/huggingface/config_reader.h"
#include "checkpoints/huggingface/rule_list.h"
#include "checkpoints/huggingface/target.h"

namespace weft {

std::vector<std::string> gated_delta_hybrid_obstacles(const LanguageModelConfig& model);
// All fields but model_type, architectures and those of experts.
nlohmann::json gated_delta_hybrid_config(const HubModel& model);
// `kv_heads`: of softmax layers, where the file does not say.
HubModel read_gated_delta_hybrid_config(ConfigReader& config, std::int64_t kv_heads);
// `projections` adds the tensors of the packed projections of a delta-rule layer, whose names begin with `prefix`.
std::vector<TensorRule> gated_delta_hybrid_tensors(const LanguageModelConfig& model,
                                                   void (*projections)(RuleList& rules, const std::string& prefix,
                                                                       const std::string& mixer,
                                                                       const Options& options));

}  // namespace weft
