#include <nlohmann/json.hpp>

#include "modules/mixer.h"
#include "train/verbs/verbs.h"

namespace weft {
namespace {

constexpr const char* kContextParallel[] = {"states", "halos", "keys and values"};

std::string to_text(const OptionValue& value) {
  struct Visitor {
    std::string operator()(bool v) const { return v ? "true" : "false"; }
    std::string operator()(std::int64_t v) const { return std::to_string(v); }
    std::string operator()(double v) const { return fmt::format("{}", v); }
    std::string operator()(const std::string& v) const { return "\"" + v + "\""; }
    std::string operator()(const std::vector<std::string>& v) const { return fmt::format("{} texts", v.size()); }
  };
  return std::visit(Visitor{}, value);
}

// The smallest legal layer of this type, for its state size.
struct StateSize {
  double at_1k;
  double at_64k;
};

StateSize state_size(const MixerType& type) {
  ParameterStore store;
  const MixerSite site{.width = 256, .layers = 4, .layer = 1, .max_tokens = 65536};
  const auto mixer = type.create(ParameterScope(store), site, Options(type.options), "[mixer." + type.name + "]");
  return {mixer->state_bytes(1024), mixer->state_bytes(65536)};
}

}  // namespace

void run_mixers(OutputForm form) {
  nlohmann::json list = nlohmann::json::array();
  for (const MixerType* type : mixer_types()) {
    const StateSize state = state_size(*type);
    const std::vector<std::pair<const char*, const std::string*>> abilities = {
        {"documents", &type->limits.documents}, {"state", &type->limits.state}, {"decode", &type->limits.decode}};
    if (form == OutputForm::json) {
      nlohmann::json entry = {{"name", type->name},
                              {"summary", type->summary},
                              {"context_parallel", kContextParallel[static_cast<int>(type->context_parallel)]},
                              {"state_bytes_1k", state.at_1k},
                              {"state_bytes_64k", state.at_64k}};
      for (const auto& [ability, reason] : abilities) entry[ability] = reason->empty() ? "yes" : *reason;
      for (const OptionSpec& option : type->options) {
        entry["options"][option.key] = {{"default", to_text(option.default_value)}, {"help", option.help}};
      }
      list.push_back(entry);
      continue;
    }
    fmt::print("{}: {}\n", type->name, type->summary);
    for (const auto& [ability, reason] : abilities) {
      fmt::print("  {:<13}{}\n", ability, reason->empty() ? "yes" : "no: " + *reason);
    }
    fmt::print("  {:<13}{}: {:.0f} KiB a sequence at 1k tokens, {:.0f} KiB at 64k (width 256, default options)\n",
               "memory", state.at_1k == state.at_64k ? "constant" : "grows", state.at_1k / 1024.0,
               state.at_64k / 1024.0);
    fmt::print("  {:<13}{}\n", "ranks share", kContextParallel[static_cast<int>(type->context_parallel)]);
    for (const OptionSpec& option : type->options) {
      fmt::print("    {:<22} {:<14} {}\n", option.key, to_text(option.default_value), option.help);
    }
    fmt::print("\n");
  }
  if (form == OutputForm::json) fmt::print("{}\n", list.dump(2));
}

}  // namespace weft
