#include "train/optimizers/parameter_groups.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <utility>

namespace weft {
namespace {

// Below this extent orthogonalisation couples too few directions to be worth it.
constexpr std::int64_t kLeastMuonExtent = 64;

struct Defaults {
  UpdateRule rule;
  bool decays;
};

Defaults defaults_for(const Parameter& parameter, UpdateRule matrix_rule) {
  switch (parameter.kind) {
    case ParameterKind::matrix: {
      if (parameter.shape.rank() < 2) return {UpdateRule::adamw, false};
      const bool large = std::min(parameter.shape[-1], parameter.shape[-2]) >= kLeastMuonExtent;
      return {large ? matrix_rule : UpdateRule::adamw, true};
    }
    case ParameterKind::head:
      return {UpdateRule::adamw, true};
    case ParameterKind::embedding:
    case ParameterKind::vector:
    case ParameterKind::convolution:
    case ParameterKind::fast_weight:
      break;
  }
  return {UpdateRule::adamw, false};
}

std::string rule_label(std::size_t index, const GroupRule& rule) {
  return fmt::format("optimizer.groups[{}] (match = \"{}\")", index, rule.match);
}

// How many matrices Muon sees in a parameter: each leading index of a batch, or `split` stacked ones.
std::int64_t matrix_count(const Parameter& parameter, const GroupRule& rule, const std::string& label) {
  if (parameter.kind != ParameterKind::matrix || parameter.shape.rank() < 2 || parameter.shape.rank() > 3) {
    config_error("{}: muon needs a hidden matrix, and {} {} is none; use adamw", label, parameter.name,
                 parameter.shape.str());
  }
  if (parameter.shape.rank() == 3) {
    if (rule.split != 1) config_error("{}: {} is a batch of matrices already; remove split", label, parameter.name);
    return parameter.shape[0];
  }
  if (rule.split < 1 || parameter.shape[0] % rule.split != 0) {
    config_error("{}: split = {} does not divide the {} rows of {}", label, rule.split, parameter.shape[0],
                 parameter.name);
  }
  return rule.split;
}

// "layers.12.ffn.w_up" -> "layers.*.ffn.w_up".
std::string without_numbers(const std::string& name) {
  std::string joined;
  for (std::size_t begin = 0; begin <= name.size();) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    const std::string_view part = std::string_view(name).substr(begin, end - begin);
    const bool number = !part.empty() && std::ranges::all_of(part, [](char c) { return c >= '0' && c <= '9'; });
    if (begin > 0) joined += '.';
    joined += number ? std::string_view("*") : part;
    begin = end + 1;
  }
  return joined;
}

}  // namespace

std::string_view name_of(UpdateRule rule) {
  constexpr std::string_view names[] = {"adamw", "muon", "frozen"};
  return names[static_cast<int>(rule)];
}

double automatic_beta2(double tokens_per_step) {
  constexpr double kHalfLifeTokens = 7e6;
  return std::clamp(std::exp2(-tokens_per_step / kHalfLifeTokens), 0.9, 0.9995);
}

bool glob_matches(std::string_view pattern, std::string_view text) {
  // On a mismatch, only the last `*` can take one more character.
  std::size_t p = 0;
  std::size_t t = 0;
  std::size_t star = std::string_view::npos;
  std::size_t star_text = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      star_text = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++star_text;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

std::vector<ParameterPlan> plan_parameters(std::span<Parameter* const> parameters, const OptimizerOptions& options) {
  const GroupRule none;
  std::vector<std::int64_t> uses(options.groups.size());
  std::vector<ParameterPlan> plans;
  plans.reserve(parameters.size());
  for (Parameter* parameter : parameters) {
    const auto match = std::ranges::find_if(options.groups,
                                            [&](const GroupRule& r) { return glob_matches(r.match, parameter->name); });
    const auto index = static_cast<std::size_t>(match - options.groups.begin());
    const bool matched = match != options.groups.end();
    if (matched) ++uses[index];
    const GroupRule& rule = matched ? *match : none;
    const std::string label = matched ? rule_label(index, rule) : "optimizer.name = \"muon\"";

    const Defaults defaults = defaults_for(*parameter, options.rule);
    ParameterPlan plan{.parameter = parameter, .rule = rule.rule.value_or(defaults.rule)};
    const double wd_mult = rule.wd_mult.value_or(defaults.decays ? 1.0 : 0.0);
    const std::int64_t state_bytes = 4 * parameter->shape.numel();
    switch (plan.rule) {
      case UpdateRule::adamw:
        plan.learning_rate = options.learning_rate * rule.lr_mult;
        plan.weight_decay = options.weight_decay * wd_mult;
        plan.beta1 = rule.beta1.value_or(options.adamw.beta1);
        plan.beta2 = rule.beta2.value_or(options.adamw.beta2);
        plan.state_bytes = 2 * state_bytes;
        break;
      case UpdateRule::muon:
        plan.matrices = matrix_count(*parameter, rule, label);
        plan.learning_rate = options.muon.learning_rate * rule.lr_mult;
        plan.weight_decay = options.muon.weight_decay * wd_mult;
        plan.state_bytes = state_bytes;
        break;
      case UpdateRule::frozen:
        break;
    }
    plans.push_back(plan);
  }
  for (std::size_t i = 0; i < uses.size(); ++i) {
    if (uses[i] > 0 || parameters.empty()) continue;
    config_error("{} fits no parameter that earlier rules leave; names look like \"{}\"",
                 rule_label(i, options.groups[i]), parameters.back()->name);
  }
  return plans;
}

std::string describe_plans(std::span<const ParameterPlan> plans) {
  constexpr std::size_t kColumns = 7;
  using Row = std::array<std::string, kColumns>;
  struct Joined {
    Row row;
    std::int64_t count = 0;
    std::int64_t bytes = 0;
  };
  std::vector<Joined> joined;
  std::map<Row, std::size_t> place;
  for (const ParameterPlan& plan : plans) {
    const std::string shape = plan.matrices > 1 && plan.parameter->shape.rank() == 2
                                  ? fmt::format("{} / {}", plan.parameter->shape.str(), plan.matrices)
                                  : plan.parameter->shape.str();
    const bool frozen = plan.rule == UpdateRule::frozen;
    Row row{without_numbers(plan.parameter->name),
            "",
            shape,
            std::string(name_of(plan.rule)),
            frozen ? "-" : fmt::format("{:.4g}", plan.learning_rate),
            frozen ? "-" : fmt::format("{:.4g}", plan.weight_decay),
            ""};
    const auto [it, added] = place.emplace(row, joined.size());
    if (added) joined.push_back({std::move(row)});
    ++joined[it->second].count;
    joined[it->second].bytes += plan.state_bytes;
  }
  std::vector<Row> table{{"parameter", "count", "shape", "rule", "rate", "decay", "state bytes"}};
  for (Joined& entry : joined) {
    entry.row[1] = std::to_string(entry.count);
    entry.row[6] = std::to_string(entry.bytes);
    table.push_back(std::move(entry.row));
  }
  std::array<std::size_t, kColumns> widths{};
  for (const Row& row : table) {
    for (std::size_t c = 0; c < kColumns; ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string text;
  for (const Row& row : table) {
    std::string line;
    for (std::size_t c = 0; c < kColumns; ++c) line += fmt::format("{:<{}}  ", row[c], widths[c]);
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

}  // namespace weft
