#include "modules/mixers/swa_ttt/swa_ttt_options.h"

#include <limits>

#include "modules/head_options.h"
#include "modules/rope_options.h"

namespace weft {
namespace {

constexpr double kForgetInit = 0.0025;

// What the options of a preset are when a recipe leaves them at "auto" (chunk: at 0).
struct Preset {
  std::int64_t chunk;
  const char *loss, *norm, *residual, *orthogonalise, *momentum, *forget, *value_norm, *value_silu, *gate;
};
constexpr Preset kAllMem{.chunk = 1024,
                         .loss = "l2",
                         .norm = "read_raw",
                         .residual = "on",
                         .orthogonalise = "off",
                         .momentum = "on",
                         .forget = "on",
                         .value_norm = "on",
                         .value_silu = "off",
                         .gate = "channel"};
constexpr Preset kLact{.chunk = 2048,
                       .loss = "dot",
                       .norm = "post",
                       .residual = "off",
                       .orthogonalise = "on",
                       .momentum = "on",
                       .forget = "off",
                       .value_norm = "off",
                       .value_silu = "on",
                       .gate = "head"};

// A recipe's value, or the preset's for "auto".
std::string chosen(const Options& options, const char* key, const char* preset) {
  const std::string& value = options.text(key);
  return value == "auto" ? preset : value;
}
bool is_on(const Options& options, const char* key, const char* preset) {
  return chosen(options, key, preset) == "on";
}

NormMode norm_from(const std::string& name) {
  if (name == "post") return NormMode::post;
  if (name == "pre") return NormMode::pre;
  return name == "read_raw" ? NormMode::read_raw : NormMode::none;
}

std::int64_t memory_dim_from(const MixerSite& site, const Options& options, std::int64_t query_width, bool shared,
                             MemoryGate gate, const std::string& where) {
  const std::int64_t memory_heads = options.integer("memory_heads"), set = options.integer("memory_dim");
  const bool tied = shared || gate == MemoryGate::head;
  const std::int64_t width = tied ? query_width : site.width;
  const std::int64_t memory_dim = set > 0 ? set : width / memory_heads;
  if (tied && memory_heads * memory_dim != query_width) {
    config_error(
        "{}: memory_heads = {} of memory_dim = {} are {} channels, but the {} attention heads have {}; {} "
        "needs as many",
        where, memory_heads, memory_dim, memory_heads * memory_dim, options.integer("heads"), query_width,
        shared ? "projections = \"shared\"" : "gate = \"head\"");
  }
  if (set == 0 && width % memory_heads != 0) {
    config_error("{}: memory_heads = {} does not divide the model's width = {}; set memory_dim", where, memory_heads,
                 site.width);
  }
  return memory_dim;
}

AttentionOptions attention_from(const Options& options, std::int64_t chunk, const std::string& where) {
  const std::int64_t window = options.integer("window") == 0 ? chunk : options.integer("window");
  if (window < chunk) {
    config_error(
        "{}: window = {} is shorter than the memory's chunk = {}; tokens between the start of a chunk and the "
        "window would be visible to nobody; use window >= chunk, or a shorter chunk",
        where, window, chunk);
  }
  return {.window = static_cast<std::int32_t>(window),
          .sink_tokens = static_cast<std::int32_t>(options.integer("sinks")),
          .soft_cap = 0.0};
}

// First values that the sigmoids and the softplus cannot take.
void check_first_values(const SwaTttConfig& c, const std::string& where) {
  if (!(c.eta_init > 0.0)) config_error("{}: eta_init = {} must be positive", where, c.eta_init);
  if (c.eta_max != 0.0 && c.eta_max <= c.eta_init) {
    config_error("{}: eta_max = {} is not above eta_init = {}; use a larger bound, or 0 for none", where, c.eta_max,
                 c.eta_init);
  }
  if (!(c.forget_init > 0.0 && c.forget_init < 1.0)) {
    config_error("{}: forget_init = {} must lie between 0 and 1", where, c.forget_init);
  }
}

void check_without_effect(const Options& options, const SwaTttConfig& c, const std::string& where) {
  if (c.gate == MemoryGate::head && c.alpha_init != 1.0) {
    config_error("{}: alpha_init = {} has no effect with gate = \"head\"; remove it, or use gate = \"channel\"", where,
                 c.alpha_init);
  }
  if (c.memory.detach_norm && c.memory.norm == NormMode::none) {
    config_error("{}: detach_norm = true has no effect with norm = \"none\"; remove it", where);
  }
  if (!c.forget && c.forget_init != kForgetInit) {
    config_error("{}: forget_init = {} has no effect without forgetting; remove it, or set forget = \"on\"", where,
                 c.forget_init);
  }
  if (!options.flag("rope") && options.real("rope_base") != 10000.0) {
    config_error("{}: rope_base = {} has no effect with rope = false; remove one", where, options.real("rope_base"));
  }
}

}  // namespace

SwaTttConfig swa_ttt_config(const MixerSite& site, const Options& options, const std::string& where) {
  const Preset& preset = options.text("preset") == "lact" ? kLact : kAllMem;
  const std::int64_t heads = options.integer("heads");
  const std::int64_t kv_heads = kv_heads_from(options, where);
  const std::int64_t head_dim = head_dim_from(site, options, where);
  const bool shared = options.text("projections") == "shared";
  const MemoryGate gate = chosen(options, "gate", preset.gate) == "head" ? MemoryGate::head : MemoryGate::channel;
  const std::int64_t memory_dim = memory_dim_from(site, options, heads * head_dim, shared, gate, where);
  const std::int64_t chunk = options.integer("chunk") == 0 ? preset.chunk : options.integer("chunk");
  const SwaTttConfig config{
      .width = site.width,
      .layers = site.layers,
      .heads = heads,
      .kv_heads = kv_heads,
      .head_dim = head_dim,
      .attention = attention_from(options, chunk, where),
      .sink_logit = options.flag("sink_logit"),
      .qk_norm = options.flag("qk_norm"),
      .rope = rope_from(options, "head_dim", head_dim, where),
      .memory_heads = options.integer("memory_heads"),
      .memory_dim = memory_dim,
      .memory_hidden = options.integer("memory_hidden") == 0 ? memory_dim : options.integer("memory_hidden"),
      .memory = {.chunk = chunk,
                 .loss = chosen(options, "loss", preset.loss) == "dot" ? InnerLoss::dot : InnerLoss::l2,
                 .norm = norm_from(chosen(options, "norm", preset.norm)),
                 .residual = is_on(options, "residual", preset.residual),
                 .orthogonalise = is_on(options, "orthogonalise", preset.orthogonalise),
                 .detach_norm = options.flag("detach_norm")},
      .momentum = is_on(options, "momentum", preset.momentum),
      .forget = is_on(options, "forget", preset.forget),
      .value_norm = is_on(options, "value_norm", preset.value_norm),
      .value_silu = is_on(options, "value_silu", preset.value_silu),
      .shared = shared,
      .gate = gate,
      .alpha_init = options.real("alpha_init"),
      .eta_init = options.real("eta_init"),
      .forget_init = options.real("forget_init"),
      .eta_max = options.real("eta_max")};
  check_first_values(config, where);
  check_without_effect(options, config, where);
  return config;
}

std::vector<OptionSpec> swa_ttt_options() {
  constexpr double kMany = std::numeric_limits<std::int32_t>::max();
  const std::vector<std::string> on_off{"auto", "on", "off"};
  return {
      choice_option("preset", "allmem", "what \"auto\" (and chunk = 0) stands for in the options below",
                    {"allmem", "lact"}),
      integer_option("heads", 4, "query heads of the attention", 1, 65536),
      kv_heads_option(),
      integer_option("head_dim", 0, "width of an attention head; 0 = width / heads", 0, 65536),
      integer_option("window", 0, "tokens a query sees, itself included, at least chunk; 0 = chunk", 0, kMany),
      integer_option("sinks", 0, "first tokens of a document that stay visible behind the window", 0, kMany),
      flag_option("sink_logit", false, "a learned logit for each head that only enlarges the softmax denominator"),
      flag_option("qk_norm", true, "RMS norm of the attention's queries and keys, for each head"),
      rope_option("rotary positions in the attention; the memory has none"),
      rope_base_option(),
      integer_option("memory_heads", 4, "memories side by side, H_m", 1, 65536),
      integer_option(
          "memory_dim", 0,
          "width d_m of a memory's keys and values; 0 = width, or the queries' where tied to them, / memory_heads", 0,
          65536),
      integer_option("memory_hidden", 0, "hidden width d_h of a memory's network; 0 = memory_dim", 0, 65536),
      integer_option("chunk", 0, "tokens L that are written together; 0 = preset", 0, kMany),
      choice_option("loss", "auto", "what writing minimises: -<f(k), v> or |f(k) - v|^2 / 2", {"auto", "dot", "l2"}),
      choice_option("norm", "auto", "when rows of the fast weights go back to their first norms",
                    {"auto", "none", "post", "pre", "read_raw"}),
      choice_option("residual", "auto", "f(x) = x + network(x)", on_off),
      choice_option("orthogonalise", "auto", "orthogonalise each update by Newton-Schulz steps", on_off),
      choice_option("momentum", "auto", "updates carry a learned part of the one before", on_off),
      choice_option("forget", "auto", "a learned part of the weights decays with each update", on_off),
      choice_option("value_norm", "auto", "RMS norm of the memory's values, for each head", on_off),
      choice_option("value_silu", "auto", "SiLU of the memory's values", on_off),
      choice_option("gate", "auto", "a learned factor a channel after wo_m, or a gate a memory head before wo",
                    {"auto", "channel", "head"}),
      choice_option("projections", "own", "queries, keys and values of the memory: its own, or the attention's",
                    {"own", "shared"}),
      real_option("alpha_init", 1.0, "first value of the channel gate; 0 starts as attention alone", -1e3, 1e3),
      real_option("eta_init", 1e-3, "first inner learning rate of every token", 0.0, 1e3),
      real_option("forget_init", kForgetInit, "first part of the weights that decays with an update", 0.0, 1.0),
      real_option("eta_max", 0.0, "bound of the inner learning rates; 0 = none", 0.0, 1e3),
      flag_option("detach_norm", false, "no gradient through the first norms of the fast weights")};
}

}  // namespace weft
