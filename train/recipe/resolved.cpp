// Recipes as text again: the resolved recipe, its digest, and what changed between two.
#include <algorithm>
#include <map>

#include "data/storage/sha256.h"
#include "train/recipe/schema.h"

namespace weft {
namespace {

// One key of a recipe as it is written.
struct Entry {
  std::string key;
  std::string value;
  Effect effect;
  bool in_digest = true;
};

struct Table {
  std::string header;  // "[run]"
  std::string path;    // "run", "optimizer.groups[0]"
  std::vector<Entry> entries;
};

Entry written_key(const KeySpec& spec, const OptionValue& value) {
  return {spec.option.key, toml_value(value, spec.automatic), spec.effect,
          !(spec.option.later && value == spec.option.default_value)};
}

// A table's values from its declaration, in the order of the declaration.
Table written_table(std::string header, std::string path, const std::vector<KeySpec>& keys, const Options& options) {
  Table table{std::move(header), std::move(path), {}};
  for (const KeySpec& spec : keys) {
    table.entries.push_back(written_key(spec, options.values().at(spec.option.key)));
  }
  return table;
}

Table written_task(const TaskTable& task) {
  std::vector<KeySpec> keys = task_keys();
  for (const KeySpec& spec : task_option_keys(*task.type)) keys.push_back(spec);
  return written_table("[task]", "task", keys, task_values(task));
}

std::vector<Table> written_tables(const Recipe& recipe) {
  std::vector<Table> tables;
  for (const SectionSpec& section : recipe_sections()) {
    const std::vector<Options> all = section.tables(recipe);
    for (std::size_t i = 0; i < all.size(); ++i) {
      tables.push_back(section.array ? written_table("[[" + section.name + "]]", fmt::format("{}[{}]", section.name, i),
                                                     section.keys, all[i])
                                     : written_table("[" + section.name + "]", section.name, section.keys, all[i]));
    }
    if (section.name == "data.mixture" && recipe.task) tables.push_back(written_task(*recipe.task));
    if (section.name != "model") continue;
    for (const MixerTable& mixer : recipe.mixers) {
      std::vector<KeySpec> keys;
      for (const OptionSpec& option : mixer.type->options) {
        keys.push_back({.option = option, .effect = Effect::incompatible});
      }
      Table table = written_table("[mixer." + mixer.name + "]", "mixer." + mixer.name, keys, mixer.options);
      table.entries.insert(table.entries.begin(), {"type", toml_string(mixer.type->name), Effect::incompatible});
      tables.push_back(std::move(table));
    }
  }
  return tables;
}

std::vector<Entry> written_keys(const Recipe& recipe) {
  std::vector<Entry> keys;
  for (const Table& table : written_tables(recipe)) {
    for (Entry entry : table.entries) {
      entry.key = table.path + "." + entry.key;
      keys.push_back(std::move(entry));
    }
  }
  return keys;
}

// Equal rates at all steps that are past, and the same guard.
bool same_until(const Recipe& before, const Recipe& after, std::int64_t step) {
  const LearningRateSchedule a = schedule_of(before);
  const LearningRateSchedule b = schedule_of(after);
  for (std::int64_t s = 0; s < step; ++s) {
    if (a.factor(s) != b.factor(s)) return false;
  }
  return spike_guard_on(before) == spike_guard_on(after);
}

std::string as_toml(const Table& table) {
  std::string text = table.header + "\n";
  for (const Entry& entry : table.entries) text += entry.key + " = " + entry.value + "\n";
  return text;
}

}  // namespace

std::string resolved_task(const TaskTable& task) {
  return as_toml(written_task(task));
}

std::string resolved_recipe(const Recipe& recipe) {
  std::string text;
  for (const Table& table : written_tables(recipe)) text += (text.empty() ? "" : "\n") + as_toml(table);
  return text;
}

std::string recipe_digest(const Recipe& recipe) {
  std::string text;
  for (const Entry& entry : written_keys(recipe)) {
    if (entry.effect != Effect::free && entry.in_digest) text += entry.key + " = " + entry.value + "\n";
  }
  return hex(sha256(text));
}

std::vector<RecipeChange> recipe_changes(const Recipe& before, const Recipe& after, std::int64_t step) {
  const std::vector<Entry> old_keys = written_keys(before);
  const std::vector<Entry> new_keys = written_keys(after);
  std::map<std::string, const Entry*> old_by_key;
  std::map<std::string, const Entry*> new_by_key;
  for (const Entry& entry : old_keys) old_by_key[entry.key] = &entry;
  for (const Entry& entry : new_keys) new_by_key[entry.key] = &entry;

  std::vector<RecipeChange> changes;
  for (const Entry& entry : new_keys) {
    const auto old = old_by_key.find(entry.key);
    const std::string before_text = old == old_by_key.end() ? "" : old->second->value;
    if (before_text == entry.value) continue;
    Effect effect = entry.effect;
    if (entry.key == "run.steps" && same_until(before, after, step)) effect = Effect::free;
    changes.push_back({entry.key, before_text, entry.value, effect});
  }
  for (const Entry& entry : old_keys) {
    if (!new_by_key.contains(entry.key)) changes.push_back({entry.key, entry.value, "", entry.effect});
  }
  return changes;
}

}  // namespace weft
