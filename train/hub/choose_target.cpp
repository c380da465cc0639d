#include "train/hub/choose_target.h"

#include <algorithm>

#include "autograd/check.h"

namespace weft {
namespace {

// Those that need a GPU to run, so that only who asks for them gets them.
bool by_name_only(const HubTarget& target) {
  return target.name.starts_with("fla_");
}

std::string lines_of(const std::vector<std::string>& obstacles) {
  std::string text;
  for (const std::string& line : obstacles) text += "\n  " + line;
  return text;
}

}  // namespace

const HubTarget& choose_target(const LanguageModelConfig& model, const std::string& name, const std::string& profile) {
  if (name == "auto" && profile != "none") return choose_target(model, profile, profile);
  if (name != "auto") {
    const HubTarget* target = find_hub_target(name);
    if (target == nullptr) {
      std::vector<std::string> names{"auto"};
      for (const HubTarget& each : hub_targets()) names.push_back(each.name);
      config_error("--to {}: there is no such target; expected one of {}", name, fmt::join(names, ", "));
    }
    const std::vector<std::string> obstacles = target->obstacles(model);
    if (!obstacles.empty()) config_error("{} cannot express this model:{}", name, lines_of(obstacles));
    return *target;
  }
  std::string all;
  for (const HubTarget& target : hub_targets()) {
    if (by_name_only(target)) continue;
    const std::vector<std::string> obstacles = target.obstacles(model);
    if (obstacles.empty()) return target;
    all += fmt::format("\n{}:{}", target.name, lines_of(obstacles));
  }
  config_error("no target can express this model:{}", all);
}

}  // namespace weft
