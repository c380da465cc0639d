#include "modules/mixers/infllm2/infllm2.h"

#include "modules/families/block_sparse/sparse_attention_layer.h"

namespace weft {
namespace {

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  const SparseAttentionConfig config = sparse_attention_config(site, options, where);
  const std::int64_t block = options.integer("block");
  const std::int64_t window = options.integer("window");
  if (window % block != 0) {
    config_error("{}: window = {} is not a multiple of block = {}; local tokens are chosen by whole blocks", where,
                 window, block);
  }
  const KeySpan span = block_sparse::compression_span_from(options, where);
  const BlockRule rule =
      block_sparse::block_rule_from(options, span, window / block, options.integer("dense_length"), where);
  return std::make_unique<SparseAttentionLayer>(scope, config,
                                                mean_selector({.heads = config.heads.heads,
                                                               .kv_heads = config.heads.kv_heads,
                                                               .head_dim = config.heads.head_dim,
                                                               .rule = rule,
                                                               .span = span,
                                                               .score = BlockScore::overlap_max}));
}

std::vector<OptionSpec> option_specs() {
  std::vector<OptionSpec> specs = sparse_attention_options();
  for (OptionSpec& spec : block_sparse::block_options(96)) specs.push_back(std::move(spec));
  specs.push_back(
      integer_option("window", 2048, "tokens of the last blocks that a query always attends to", 1, 1 << 30));
  specs.push_back(integer_option(
      "dense_length", 8192, "queries with so many tokens or fewer up to them attend to all; 0 = none", 0, 1 << 30));
  return specs;
}

}  // namespace

const MixerType& infllm2_mixer() {
  static const MixerType type{.name = "infllm2",
                              .summary = "softmax attention that selects blocks by mean keys beyond a length",
                              .options = option_specs(),
                              .context_parallel = ContextParallel::keys_values,
                              .limits = {},
                              .create = create};
  return type;
}

}  // namespace weft
