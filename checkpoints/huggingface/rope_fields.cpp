#include "checkpoints/huggingface/rope_fields.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "autograd/check.h"

namespace weft {
namespace {

using nlohmann::json;
using Law = RopeScaling::Law;

constexpr double kMostTheta = 1e30;
constexpr double kMost = 1e9;
constexpr std::int64_t kMostTokens = std::numeric_limits<std::int32_t>::max();

// What `mscale` and `mscale_all_dim` stand for.
double attention_scale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

RopeScaling::Law law_of(ConfigReader& dict) {
  std::string type = "default";
  const char* key = dict.has("rope_type") ? "rope_type" : "type";
  if (dict.has(key)) type = dict.text(key);
  if (dict.has("type") && dict.text("type") != type) dict.refuse("type", "differs from rope_type");
  if (type == "default") return Law::none;
  if (type == "linear") return Law::linear;
  if (type == "llama3") return Law::llama3;
  if (type == "yarn") return Law::yarn;
  if (type == "dynamic") {
    dict.refuse(key, "its frequencies follow the length of each text, so that no model can be trained with it");
  }
  dict.refuse(key, "weft computes default, linear, llama3 and yarn");
}

void read_yarn(ConfigReader& dict, RopeScaling& scaling) {
  scaling.beta_fast = dict.real_or("beta_fast", 32.0, 1e-9, kMost);
  scaling.beta_slow = dict.real_or("beta_slow", 1.0, 1e-9, kMost);
  if (scaling.beta_slow >= scaling.beta_fast) dict.refuse("beta_slow", "expected less than beta_fast");
  scaling.truncate = dict.flag_or("truncate", true);
  const double mscale = dict.real_or("mscale", 0.0, 0.0, kMost);
  const double mscale_all_dim = dict.real_or("mscale_all_dim", 0.0, 0.0, kMost);
  if (dict.has("attention_factor")) {
    scaling.attention_factor = dict.real("attention_factor", 1e-9, kMost);
  } else if (mscale > 0.0 && mscale_all_dim > 0.0) {
    scaling.attention_factor =
        attention_scale(scaling.factor, mscale) / attention_scale(scaling.factor, mscale_all_dim);
  }
}

// `original`: original_max_position_embeddings from outside the dictionary, which then prevails.
RopeScaling read_scaling(ConfigReader& dict, std::int64_t max_positions, std::optional<std::int64_t> original) {
  RopeScaling scaling;
  scaling.law = law_of(dict);
  dict.expect("partial_rotary_factor", 1.0);
  if (scaling.law == Law::none) return scaling;
  if (scaling.law == Law::linear) {
    scaling.factor = dict.real("factor", 1.0, kMost);
    return scaling;
  }
  const std::int64_t own = dict.integer_or("original_max_position_embeddings", max_positions, 1, kMostTokens);
  scaling.original_length = original.value_or(own);
  if (scaling.law == Law::yarn && !dict.has("factor")) {
    // As if it were null: the lengths say it.
    scaling.factor = std::max(1.0, static_cast<double>(max_positions) / static_cast<double>(scaling.original_length));
  } else {
    scaling.factor = dict.real("factor", 1.0, kMost);
  }
  if (scaling.law == Law::yarn) {
    read_yarn(dict, scaling);
    return scaling;
  }
  scaling.low_freq_factor = dict.real("low_freq_factor", 1e-9, kMost);
  scaling.high_freq_factor = dict.real("high_freq_factor", 1e-9, kMost);
  if (scaling.low_freq_factor >= scaling.high_freq_factor) {
    dict.refuse("low_freq_factor", "expected less than high_freq_factor");
  }
  return scaling;
}

HubRope read_dictionary(ConfigReader dict, double theta, std::int64_t max_positions,
                        std::optional<std::int64_t> original) {
  HubRope rope;
  rope.theta = dict.real_or("rope_theta", theta, 1.0, kMostTheta);
  rope.scaling = read_scaling(dict, max_positions, original);
  dict.finish();
  return rope;
}

}  // namespace

std::vector<HubRope> read_rope(ConfigReader& config, const std::vector<std::string>& kinds, double default_theta,
                               std::int64_t max_positions) {
  const double theta = config.real_or("rope_theta", default_theta, 1.0, kMostTheta);
  std::optional<std::int64_t> original;
  if (config.has("original_max_position_embeddings")) {
    original = config.integer("original_max_position_embeddings", 1, kMostTokens);
  }
  config.expect("partial_rotary_factor", 1.0);

  std::vector<HubRope> older;
  config.ignore({"rope_scaling", "rope_parameters"});
  if (config.has("rope_scaling")) {
    older.assign(kinds.size(), read_dictionary(config.object("rope_scaling"), theta, max_positions, original));
  } else {
    older.assign(kinds.size(), HubRope{.theta = theta, .scaling = {}});
  }
  if (!config.has("rope_parameters")) return older;

  std::vector<HubRope> ropes;
  ConfigReader all = config.object("rope_parameters");
  const bool by_kind = std::ranges::any_of(kinds, [&](const std::string& kind) { return all.has(kind); });
  for (const std::string& kind : kinds) {
    if (by_kind && !all.has(kind)) {
      config_error("{}: there is no entry for {}, a kind of layer that the model has", all.source(), kind);
    }
    ropes.push_back(
        read_dictionary(by_kind ? all.object(kind) : config.object("rope_parameters"), theta, max_positions, original));
  }
  if (by_kind) {
    all.ignore({"full_attention", "sliding_attention"});
    all.finish();
  }
  const bool has_older = config.has("rope_scaling") || config.has("rope_theta");
  for (std::size_t i = 0; i < ropes.size() && has_older; ++i) {
    const bool same_theta = !config.has("rope_theta") || ropes[i].theta == theta;
    const bool same_scaling = !config.has("rope_scaling") || ropes[i].scaling == older[i].scaling;
    if (same_theta && same_scaling) continue;
    config.refuse("rope_parameters", same_theta ? "differs from rope_scaling" : "differs from rope_theta");
  }
  return ropes;
}

void write_rope(json& config, const HubRope& rope) {
  const RopeScaling& s = rope.scaling;
  json scaling;
  switch (s.law) {
    case Law::none:
      break;
    case Law::linear:
      scaling = {{"rope_type", "linear"}, {"factor", s.factor}};
      break;
    case Law::llama3:
      scaling = {{"rope_type", "llama3"},
                 {"factor", s.factor},
                 {"low_freq_factor", s.low_freq_factor},
                 {"high_freq_factor", s.high_freq_factor},
                 {"original_max_position_embeddings", s.original_length}};
      break;
    case Law::yarn:
      scaling = {{"rope_type", "yarn"},      {"factor", s.factor},
                 {"beta_fast", s.beta_fast}, {"beta_slow", s.beta_slow},
                 {"truncate", s.truncate},   {"original_max_position_embeddings", s.original_length}};
      if (s.attention_factor > 0.0) scaling["attention_factor"] = s.attention_factor;
      break;
  }
  config["rope_theta"] = rope.theta;
  config["rope_scaling"] = scaling;
  json parameters = scaling.is_null() ? json{{"rope_type", "default"}} : scaling;
  parameters["rope_theta"] = rope.theta;
  config["rope_parameters"] = parameters;
}

}  // namespace weft
