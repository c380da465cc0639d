// The options of swa_ttt, and what a preset and a recipe table make of them.
#pragma once

#include <optional>

#include "autograd/ops/rope/rope.h"
#include "modules/families/attention/attention.h"
#include "modules/families/fast_weights/fast_weights.h"
#include "modules/mixer.h"

namespace weft {

// How the memory joins the attention.
enum class MemoryGate : std::uint8_t {
  channel,  // y = o wo^T + alpha * (m wo_m^T)
  head,     // y = (o + silu(x w_s^T) * m) wo^T, one gate a memory head
};

struct SwaTttConfig {
  std::int64_t width, layers;

  std::int64_t heads, kv_heads, head_dim;
  AttentionOptions attention;
  bool sink_logit, qk_norm;
  std::optional<RopeConfig> rope;

  std::int64_t memory_heads, memory_dim, memory_hidden;  // H_m, d_m, d_h
  FastWeightConfig memory;
  bool momentum, forget;
  bool value_norm, value_silu;
  bool shared;  // the memory reads the attention's projections
  MemoryGate gate;
  double alpha_init, eta_init, forget_init;
  double eta_max;  // 0: rates are not bounded

  std::int64_t query_width() const { return heads * head_dim; }
  std::int64_t key_width() const { return kv_heads * head_dim; }
  std::int64_t memory_width() const { return memory_heads * memory_dim; }
};

std::vector<OptionSpec> swa_ttt_options();
// Throws config_error for values that do not fit together; `where` names the recipe table.
SwaTttConfig swa_ttt_config(const MixerSite& site, const Options& options, const std::string& where);

}  // namespace weft
