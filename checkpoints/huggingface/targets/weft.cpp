#include "checkpoints/huggingface/targets/weft.h"

#include <nlohmann/json.hpp>

#include "checkpoints/huggingface/common_fields.h"
#include "checkpoints/huggingface/obstacles.h"
#include "checkpoints/huggingface/remote_code.h"
#include "checkpoints/huggingface/rule_list.h"

// Tensors have the names of weft's parameters behind "model.". config.json has `pattern`, names of mixers, and
// `mixers`, for each its type and all its options as a recipe has them.

namespace weft {
namespace {

std::vector<std::string> obstacles(const LanguageModelConfig& model) {
  Obstacles found;
  for (const MixerChoice& choice : model.pattern) {
    const std::string& mixer = choice.type->name;
    found.require(find_embedded_file(python_file_of_mixer(mixer)) != nullptr,
                  "{}: the mixer {} has no PyTorch module ({})", choice.table, mixer, python_file_of_mixer(mixer));
  }
  return std::move(found).lines();
}

// What entries of the pattern are called: the mixer's name, with a number from the second set of options on.
std::vector<std::string> names_of_pattern(const LanguageModelConfig& model) {
  std::vector<std::string> names;
  std::map<std::string, std::vector<const Options*>> seen;
  for (const MixerChoice& choice : model.pattern) {
    std::vector<const Options*>& sets = seen[choice.type->name];
    auto it = std::ranges::find_if(sets, [&](const Options* o) { return o->values() == choice.options.values(); });
    if (it == sets.end()) it = sets.insert(sets.end(), &choice.options);
    const auto index = it - sets.begin();
    names.push_back(index == 0 ? choice.type->name : fmt::format("{}_{}", choice.type->name, index + 1));
  }
  return names;
}

nlohmann::json options_json(const MixerChoice& choice) {
  nlohmann::json json = {{"type", choice.type->name}};
  for (const auto& [key, value] : choice.options.values()) {
    std::visit([&, &name = key](const auto& v) { json[name] = v; }, value);
  }
  return json;
}

nlohmann::json write_config(const HubModel& hub) {
  const LanguageModelConfig& model = hub.model;
  nlohmann::json config = common_fields(hub);
  config.erase("hidden_act");
  config["model_type"] = "weft";
  config["architectures"] = {"WeftForCausalLM"};
  config["auto_map"] = {{"AutoConfig", "configuration_weft.WeftConfig"},
                        {"AutoModel", "modeling_weft.WeftModel"},
                        {"AutoModelForCausalLM", "modeling_weft.WeftForCausalLM"}};
  config["ffn_bias"] = model.ffn_bias;
  config["residual"] = model.residual == Residual::pre_norm ? "pre_norm" : "post_norm_input";
  const std::vector<std::string> names = names_of_pattern(model);
  config["pattern"] = names;
  for (std::size_t i = 0; i < names.size(); ++i) config["mixers"][names[i]] = options_json(model.pattern[i]);
  return config;
}

OptionValue read_option(ConfigReader& reader, const OptionSpec& spec) {
  const nlohmann::json& value = reader.value(spec.key);
  if (std::holds_alternative<bool>(spec.default_value)) return reader.flag_or(spec.key, false);
  if (std::holds_alternative<double>(spec.default_value)) return reader.real(spec.key, spec.minimum, spec.maximum);
  if (std::holds_alternative<std::int64_t>(spec.default_value)) {
    const std::int64_t number =
        reader.integer(spec.key, std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max());
    const auto real = static_cast<double>(number);
    if (real < spec.minimum || real > spec.maximum) {
      reader.refuse(spec.key, fmt::format("expected {} to {}", spec.minimum, spec.maximum));
    }
    return number;
  }
  if (std::holds_alternative<std::string>(spec.default_value)) {
    std::string text = reader.text(spec.key);
    if (!spec.choices.empty() && std::ranges::find(spec.choices, text) == spec.choices.end()) {
      reader.refuse(spec.key, fmt::format("expected one of {}", fmt::join(spec.choices, ", ")));
    }
    return text;
  }
  return reader.texts(spec.key, static_cast<std::int64_t>(value.size()));
}

MixerChoice read_mixer(ConfigReader& mixers, const std::string& name) {
  ConfigReader reader = mixers.object(name);
  const std::string type_name = reader.text("type");
  const MixerType* type = find_mixer(type_name);
  if (type == nullptr) reader.refuse("type", "no such mixer; `weft mixers` lists them");
  MixerChoice choice{.type = type, .options = Options(type->options), .table = reader.source()};
  for (const OptionSpec& spec : type->options) {
    if (reader.has(spec.key)) choice.options.set(spec.key, read_option(reader, spec));
  }
  reader.finish();
  return choice;
}

HubModel read_config(const nlohmann::json& json, const std::string& source) {
  ConfigReader config(json, source);
  HubModel hub = read_common_fields(config, {.least_ffn = 0});
  LanguageModelConfig& model = hub.model;
  model.max_tokens = hub.max_positions;
  model.ffn_bias = config.flag_or("ffn_bias", false);
  const std::string residual = config.has("residual") ? config.text("residual") : "pre_norm";
  if (residual != "pre_norm" && residual != "post_norm_input") {
    config.refuse("residual", "expected \"pre_norm\" or \"post_norm_input\"");
  }
  model.residual = residual == "pre_norm" ? Residual::pre_norm : Residual::post_norm_input;
  const nlohmann::json& pattern = config.value("pattern");
  if (!pattern.is_array() || pattern.empty() || static_cast<std::int64_t>(pattern.size()) > model.layers) {
    config.refuse("pattern", fmt::format("expected 1 to {} names of mixers", model.layers));
  }
  ConfigReader mixers = config.object("mixers");
  for (const std::string& name : config.texts("pattern", static_cast<std::int64_t>(pattern.size()))) {
    model.pattern.push_back(read_mixer(mixers, name));
  }
  mixers.finish();
  config.finish();
  return hub;
}

std::vector<TensorRule> tensors(const LanguageModelConfig& model) {
  RuleList rules(model);
  for (const std::string& parameter : rules.parameters()) {
    TensorRule& rule = rules.add("model." + parameter, parameter);
    // Decays come from exponentials of these.
    rule.keep_fp32 = parameter.ends_with("a_log") || parameter.ends_with("dt_bias");
  }
  return std::move(rules).take();
}

}  // namespace

const HubTarget& weft_target() {
  static const HubTarget target{.name = "weft",
                                .model_type = "weft",
                                .summary = "any model, by Python files beside the weights (trust_remote_code)",
                                .obstacles = obstacles,
                                .write_config = write_config,
                                .read_config = read_config,
                                .tensors = tensors};
  return target;
}

}  // namespace weft
