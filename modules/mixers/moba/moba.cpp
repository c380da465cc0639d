#include "modules/mixers/moba/moba.h"

#include "modules/families/block_sparse/sparse_attention_layer.h"

namespace weft {
namespace {

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  const SparseAttentionConfig config = sparse_attention_config(site, options, where);
  if (options.flag("full")) return std::make_unique<SparseAttentionLayer>(scope, config, nullptr);
  const std::int64_t block = options.integer("block");
  const auto length = static_cast<std::int32_t>(block);
  return std::make_unique<SparseAttentionLayer>(
      scope, config,
      mean_selector({.heads = config.heads.heads,
                     .kv_heads = config.heads.kv_heads,
                     .head_dim = config.heads.head_dim,
                     .rule = {.block = block, .selected = options.integer("selected"), .first = 0, .local = 1},
                     .span = {length, length},
                     .score = BlockScore::logit}));
}

std::vector<OptionSpec> option_specs() {
  std::vector<OptionSpec> specs = sparse_attention_options();
  specs.push_back(integer_option("block", 512, "tokens of a block", 1, 1 << 20));
  specs.push_back(integer_option("selected", 3, "blocks a query head attends to, its own included", 1, 1 << 20));
  specs.push_back(flag_option("full", false, "full attention with the same parameters: to switch layers or stages"));
  return specs;
}

}  // namespace

const MixerType& moba_mixer() {
  static const MixerType type{.name = "moba",
                              .summary = "softmax attention of each query head to the blocks with the best mean keys",
                              .options = option_specs(),
                              .context_parallel = ContextParallel::keys_values,
                              .limits = {},
                              .create = create};
  return type;
}

}  // namespace weft
