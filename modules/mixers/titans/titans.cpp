#include "modules/mixers/titans/titans.h"

#include "modules/head_options.h"
#include "modules/mixers/titans/segmented.h"
#include "modules/mixers/titans/windowed.h"
#include "modules/rope_options.h"

namespace weft {
namespace {

using titans::Config;
using titans::Variant;

Config config_from(const MixerSite& site, const Options& options, const std::string& where) {
  const std::int64_t heads = options.integer("heads");
  const std::int64_t head_dim = head_dim_from(site, options, where);
  if (head_dim % 2 != 0) {
    config_error(
        "{}: head_dim = {} is odd; the attention's rotary positions turn channels in pairs and need an even "
        "number",
        where, head_dim);
  }
  const std::int64_t chunk = options.integer("chunk"), hidden = options.integer("hidden_factor") * head_dim;
  const double rate = options.real("inner_learning_rate");
  const double default_rate = (hidden > 0 ? 0.16 : 1.6) / static_cast<double>(chunk);
  const std::string& name = options.text("variant");
  return {.site = site,
          .variant = name == "mag"   ? Variant::gate
                     : name == "mac" ? Variant::context
                                     : Variant::layer,
          .heads = heads,
          .head_dim = head_dim,
          .window = options.integer("window"),
          .persistent = options.integer("persistent"),
          .chunk = chunk,
          .hidden = hidden,
          .rate_max = rate > 0.0 ? rate : default_rate,
          .rope = {.rotary_dim = head_dim, .base = options.real("rope_base")}};
}

std::unique_ptr<Mixer> create(const ParameterScope& scope, const MixerSite& site, const Options& options,
                              const std::string& where) {
  const Config config = config_from(site, options, where);
  if (config.variant == Variant::context) return std::make_unique<titans::SegmentedTitans>(scope, config);
  return std::make_unique<titans::WindowedTitans>(scope, config);
}

std::vector<OptionSpec> option_specs() {
  return {
      choice_option("variant", "mag",
                    "memory as a gate of the attention, as context of its segments, or as a layer before it",
                    {"mag", "mac", "mal"}),
      integer_option("heads", 4, "heads H, of the memory and of the attention", 1, 4096),
      integer_option("head_dim", 0, "width D of a head; 0 = width / heads", 0, 4096),
      integer_option("window", 64, "tokens that a query's attention sees, itself included; mac: tokens of a segment", 1,
                     1 << 24),
      integer_option("persistent", 4, "learned tokens n_p that every query sees", 0, 65536),
      integer_option("chunk", 16, "tokens C of a chunk: the memory's gradients are taken at the weights it starts with",
                     1, 4096),
      integer_option("hidden_factor", 0, "hidden width of the memory in head widths; 0 = a linear memory", 0, 64),
      real_option("inner_learning_rate", 0.0,
                  "largest step theta of the memory; 0 = 1.6 / chunk, with a hidden layer 0.16 / chunk", 0.0, 1e3),
      rope_base_option("base of the attention's rotary frequencies")};
}

}  // namespace

const MixerType& titans_mixer() {
  static const MixerType type{.name = "titans",
                              .summary = "Titans: short attention with a memory that learns with momentum and forgets",
                              .options = option_specs(),
                              .context_parallel = ContextParallel::state,
                              .limits = {},
                              .create = create};
  return type;
}

}  // namespace weft
