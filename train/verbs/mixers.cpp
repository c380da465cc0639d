#include <array>
#include <fmt/ranges.h>
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

// Of a layer with default options.
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

// What a mixer can do, each with the reason if it cannot (empty = it can).
std::array<std::pair<const char*, const std::string*>, 3> abilities(const MixerType& type) {
  return {{{"documents", &type.limits.documents}, {"state", &type.limits.state}, {"decode", &type.limits.decode}}};
}

std::string memory(const MixerType& type) {
  const StateSize state = state_size(type);
  if (state.at_1k == state.at_64k) return fmt::format("constant, {:.0f} KiB", state.at_1k / 1024.0);
  return fmt::format("{:.0f} KiB to {:.0f} KiB", state.at_1k / 1024.0, state.at_64k / 1024.0);
}

const char* ranks_share(const MixerType& type) {
  return kContextParallel[static_cast<int>(type.context_parallel)];
}

nlohmann::json json_entry(const MixerType& type) {
  const StateSize state = state_size(type);
  nlohmann::json entry = {{"name", type.name},
                          {"summary", type.summary},
                          {"context_parallel", ranks_share(type)},
                          {"state_bytes_1k", state.at_1k},
                          {"state_bytes_64k", state.at_64k}};
  for (const auto& [ability, reason] : abilities(type)) entry[ability] = reason->empty() ? "yes" : *reason;
  for (const OptionSpec& option : type.options) {
    entry["options"][option.key] = {{"default", to_text(option.default_value)}, {"help", option.help}};
  }
  return entry;
}

void print_table(const std::vector<const MixerType*>& types) {
  fmt::print("{:<12} {:<10} {:<6} {:<7} {:<16} {:<24} {}\n", "mixer", "documents", "state", "decode", "ranks share",
             "memory of a sequence", "");
  for (const MixerType* type : types) {
    const auto can = abilities(*type);
    const auto yes = [&](std::size_t i) { return can[i].second->empty() ? "yes" : "no"; };
    fmt::print("{:<12} {:<10} {:<6} {:<7} {:<16} {:<24} {}\n", type->name, yes(0), yes(1), yes(2), ranks_share(*type),
               memory(*type), type->summary);
  }
  fmt::print(
      "\ndocuments: packed rows; state: continuing from one; decode: token by token. Memory at 1k and 64k tokens, for\n"
      "width 256 and default options. `weft mixers NAME` shows the options of one.\n");
}

void print_details(const MixerType& type) {
  fmt::print("{}: {}\n", type.name, type.summary);
  for (const auto& [ability, reason] : abilities(type)) {
    fmt::print("  {:<13}{}\n", ability, reason->empty() ? "yes" : "no: " + *reason);
  }
  fmt::print("  {:<13}{} a sequence (1k and 64k tokens, width 256, default options)\n", "memory", memory(type));
  fmt::print("  {:<13}{}\n", "ranks share", ranks_share(type));
  for (const OptionSpec& option : type.options) {
    const std::string choices = option.choices.empty() ? "" : fmt::format(" [{}]", fmt::join(option.choices, ", "));
    fmt::print("    {:<22} {:<14} {}{}\n", option.key, to_text(option.default_value), option.help, choices);
  }
}

}  // namespace

void run_mixers(const std::vector<std::string>& names, OutputForm form) {
  std::vector<const MixerType*> types;
  for (const std::string& name : names) {
    const MixerType* type = find_mixer(name);
    if (type == nullptr) config_error("there is no mixer \"{}\"; `weft mixers` lists them all", name);
    types.push_back(type);
  }
  if (names.empty()) types = mixer_types();
  if (form == OutputForm::json) {
    nlohmann::json list = nlohmann::json::array();
    for (const MixerType* type : types) list.push_back(json_entry(*type));
    fmt::print("{}\n", list.dump(2));
  } else if (names.empty()) {
    print_table(types);
  } else {
    for (const MixerType* type : types) print_details(*type);
  }
}

}  // namespace weft
