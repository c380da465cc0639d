// docs/recipes.md from the schema.
#include <cmath>

#include "train/recipe/schema.h"

namespace weft {
namespace {

std::string type_of(const KeySpec& spec) {
  constexpr const char* names[] = {"boolean", "integer", "number", "string", "strings"};
  return std::string(names[spec.option.default_value.index()]) + (spec.automatic ? " or \"auto\"" : "");
}

std::string range_of(const OptionSpec& option) {
  if (!option.choices.empty()) {
    std::string text;
    for (const std::string& choice : option.choices) text += (text.empty() ? "`" : ", `") + choice + "`";
    return text;
  }
  const bool low = std::isfinite(option.minimum);
  const bool high = std::isfinite(option.maximum);
  if (low && high) return fmt::format("{} to {}", option.minimum, option.maximum);
  if (low) return fmt::format("from {}", option.minimum);
  if (high) return fmt::format("up to {}", option.maximum);
  return "";
}

std::string_view effect_name(Effect effect) {
  constexpr std::string_view names[] = {"", "branch", "new run"};
  return names[static_cast<int>(effect)];
}

// `|` would end a cell.
std::string cell(const std::string& text) {
  std::string escaped;
  for (const char c : text) escaped += c == '|' ? std::string("\\|") : std::string(1, c);
  return escaped;
}

std::string key_table(const std::vector<KeySpec>& keys) {
  std::string text = "| key | type | default | values | meaning | on resume |\n|---|---|---|---|---|---|\n";
  for (const KeySpec& spec : keys) {
    const std::string shown =
        spec.option.required ? "required" : fmt::format("`{}`", toml_value(spec.option.default_value, spec.automatic));
    text += fmt::format("| `{}` | {} | {} | {} | {} | {} |\n", spec.option.key, type_of(spec), shown,
                        range_of(spec.option), cell(spec.option.help), effect_name(spec.effect));
  }
  return text;
}

std::string task_reference() {
  std::string text =
      "\n## `[task]`\n\n"
      "A synthetic task in place of datasets: its rows are made up as they are needed, from the data's seed. Training\n"
      "draws examples 0, 1, 2, ... of the train split; `data/synthetic/README.md` describes the tasks.\n\n";
  text += key_table(task_keys());
  for (const TaskType* type : task_types()) {
    text += fmt::format("\n### `name = \"{}\"`\n\n{}\n\n", type->name, type->summary);
    text += key_table(task_option_keys(*type));
  }
  return text;
}

}  // namespace

std::string recipe_reference() {
  std::string text =
      "# Recipes\n"
      "\n"
      "<!-- Written by recipe_reference(); to change it, change train/recipe/schema.cpp and run\n"
      "     WEFT_UPDATE_DOCS=1 train_tests --gtest_filter=RecipeReference.* from the repository root. -->\n"
      "\n"
      "A recipe is a TOML file that describes a whole run: `weft train RECIPE`. Every key below can also be given on\n"
      "the command line as `--set table.key=value`; what is no TOML value is taken as a string, and tables in an "
      "array\n"
      "are given whole: `--set 'optimizer.groups=[{match = \"embedding\", lr_mult = 0.5}]'`. Unknown keys, wrong "
      "types\n"
      "and impossible values are errors that name the file, the line and what was expected. Each run keeps its "
      "resolved\n"
      "recipe, with every default written out, in `recipe.toml`.\n"
      "\n"
      "The last column says what a changed key means for a run that goes on from a checkpoint: nothing, a `branch`\n"
      "(allowed and logged; the run is no longer the one that was started), or a `new run` (the checkpoint does not\n"
      "fit). More steps are no branch while the learning rates of the steps so far stay the same: with `schedule = "
      "\"wsd\"`,\n"
      "until the cooldown begins.\n"
      "\n"
      "## `[mixer.NAME]`\n"
      "\n"
      "One table for each name in `model.pattern`. `type` says which mixer it is, by default the one called NAME; the\n"
      "other keys are that mixer's options, which `weft mixers` lists. Two tables of one type make two kinds of "
      "layers.\n";
  for (const SectionSpec& section : recipe_sections()) {
    text += fmt::format("\n## `{}`\n\n{}\n\n", section.array ? "[[" + section.name + "]]" : "[" + section.name + "]",
                        section.help);
    text += key_table(section.keys);
    if (section.name == "data.mixture") text += task_reference();
  }
  return text;
}

}  // namespace weft
