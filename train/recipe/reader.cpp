// TOML text to a recipe: every key against the schema, every defect with its place.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <set>
#include <toml++/toml.h>

#include "data/storage/file.h"
#include "train/recipe/schema.h"

namespace weft {
namespace {

constexpr std::uint64_t kMostBytes = 1 << 20;

std::string quote_list(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "\"" : ", \"") + word + "\"";
  return text;
}

std::string did_you_mean(const std::string& suggestion) {
  return suggestion.empty() ? "" : fmt::format("; did you mean \"{}\"?", suggestion);
}

std::string kind_of(const toml::node& node) {
  if (const auto* text = node.as_string()) {
    std::string shown = text->get();
    if (shown.size() > 40) shown = shown.substr(0, 40) + "...";
    return "the string " + toml_string(shown);
  }
  if (const auto* number = node.as_integer()) return fmt::format("the integer {}", number->get());
  if (const auto* number = node.as_floating_point()) return fmt::format("the number {}", number->get());
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  if (node.is_table()) return "a table";
  if (node.is_array()) return "an array";
  return "a date or time";
}

// The parser recurses over the parts of a dotted key, so their number is bounded before it sees the text. Strings that
// look like such a key are refused too; recipes have no use for them.
void refuse_deep_keys(std::string_view text, const std::string& source) {
  constexpr int kMostParts = 32;
  int parts = 1;
  std::int64_t line = 1;
  bool part_begun = false;
  for (const char c : text) {
    const bool bare = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
                      c == '-' || c == '"' || c == '\'';
    if (bare) {
      part_begun = true;
    } else if (c == '.' && part_begun) {
      if (++parts > kMostParts) config_error("{}:{}: a key of more than {} parts", source, line, kMostParts);
      part_begun = false;
    } else if (c != ' ' && c != '\t') {
      parts = 1;
      part_begun = false;
    }
    if (c == '\n') ++line;
  }
}

// Leaf and table names set by --set, merged into the document.
class Overrides {
 public:
  Overrides(std::span<const std::string> texts, RecipePlaces& places, RecipeProblems& problems)
      : texts_(texts), places_(places), problems_(problems) {}

  void apply(toml::table& root) {
    for (std::size_t i = 0; i < texts_.size(); ++i) apply_one(root, texts_[i], static_cast<std::int64_t>(i));
  }

 private:
  static std::vector<std::string> split(const std::string& path) {
    std::vector<std::string> parts;
    for (std::size_t begin = 0; begin <= path.size();) {
      const std::size_t end = std::min(path.find('.', begin), path.size());
      parts.push_back(path.substr(begin, end - begin));
      begin = end + 1;
    }
    return parts;
  }

  // Puts a TOML value under `key`, or the text itself as a string if it is none.
  static void insert_value(toml::table& table, const std::string& key, const std::string& text) {
    try {
      toml::table parsed = toml::parse("value = " + text);
      if (parsed.size() == 1) {
        table.insert_or_assign(key, std::move(*parsed.get("value")));
        return;
      }
    } catch (const toml::parse_error&) {
      // A bare word, as in --set run.name=first.
    }
    table.insert_or_assign(key, text);
  }

  void apply_one(toml::table& root, const std::string& text, std::int64_t index) {
    const RecipePlaces::Place place = RecipePlaces::of_override(text, index);
    refuse_deep_keys(text, place.text.substr(0, 60));
    const std::size_t equals = text.find('=');
    const std::vector<std::string> parts = split(text.substr(0, equals));
    if (equals == std::string::npos || std::ranges::any_of(parts, [](const auto& part) { return part.empty(); })) {
      return problems_.add(place, "expected KEY=VALUE with a dotted key, e.g. --set optimizer.learning_rate=0.001");
    }
    toml::table* table = &root;
    std::string path;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
      path += (i ? "." : "") + parts[i];
      if (!table->contains(parts[i])) table->insert(parts[i], toml::table{});
      table = table->get(parts[i])->as_table();
      if (table == nullptr) {
        return problems_.add(
            place, fmt::format("[{}] cannot be reached this way; give a whole value with --set '{}=...'", path, path));
      }
    }
    insert_value(*table, parts.back(), text.substr(equals + 1));
    places_.add_override(path.empty() ? parts.back() : path + "." + parts.back(), text, index);
  }

  std::span<const std::string> texts_;
  RecipePlaces& places_;
  RecipeProblems& problems_;
};

class Reader {
 public:
  Reader(const std::string& source, const std::vector<const MixerType*>& mixers) : places_(source), mixers_(mixers) {}

  Recipe read(std::string_view text, std::span<const std::string> overrides) {
    toml::table root = parse(text);
    note_places(root, "");
    Overrides(overrides, places_, problems_).apply(root);
    check_top_level(root);
    rows_follow_task(root);

    Recipe recipe;
    for (const SectionSpec& section : recipe_sections()) section.assign(recipe, read_section(root, section));
    if (recipe.run.name.empty()) recipe.run.name = std::filesystem::path(places_.source()).stem().string();
    read_mixers(root, recipe);
    if (const toml::table* table = root["task"].as_table()) recipe.task = read_task(*table);
    std::vector<std::string> tables;
    if (const toml::table* all = root["mixer"].as_table()) {
      for (const auto& [name, node] : *all) tables.emplace_back(name.str());
    }
    // Contradictions between values are worth reporting only once each value is sound.
    if (problems_.empty()) settle_rows(recipe, places_, problems_);
    if (problems_.empty()) check_recipe(recipe, tables, places_, problems_);
    problems_.raise();
    return recipe;
  }

  TaskTable read_task_alone(std::string_view text, std::span<const std::string> overrides) {
    toml::table root = parse(text);
    Overrides(overrides, places_, problems_).apply(root);
    const TaskTable task = read_task(*root["task"].as_table());
    problems_.raise();
    return task;
  }

 private:
  toml::table parse(std::string_view text) const {
    refuse_deep_keys(text, places_.source());
    try {
      return toml::parse(text, std::string_view(places_.source()));
    } catch (const toml::parse_error& error) {
      config_error("{}:{}:{}: not valid TOML: {}", places_.source(), error.source().begin.line,
                   error.source().begin.column, error.description());
    }
  }

  void note_places(const toml::table& table, const std::string& prefix) {
    for (const auto& [key, node] : table) {
      const std::string path = prefix.empty() ? std::string(key.str()) : prefix + "." + std::string(key.str());
      places_.add(path, key.source().begin.line);
      if (const toml::table* child = node.as_table()) {
        note_places(*child, path);
      } else if (const toml::array* array = node.as_array()) {
        for (std::size_t i = 0; i < array->size(); ++i) {
          const std::string element = fmt::format("{}[{}]", path, i);
          places_.add(element, (*array)[i].source().begin.line);
          if (const toml::table* item = (*array)[i].as_table()) note_places(*item, element);
        }
      }
    }
  }

  void problem(const std::string& key, std::string message) { problems_.add(places_.find(key), std::move(message)); }

  void check_top_level(const toml::table& root) {
    std::vector<std::string> known = {"mixer", "task"};
    for (const SectionSpec& section : recipe_sections()) {
      if (section.name.find('.') == std::string::npos) known.push_back(section.name);
    }
    for (const auto& [key, node] : root) {
      const std::string name(key.str());
      if (std::ranges::find(known, name) != known.end()) {
        if (!node.is_table()) problem(name, fmt::format("[{}] must be a table, not {}", name, kind_of(node)));
        continue;
      }
      if (node.is_table()) {
        const std::string suggestion = nearest(name, known);
        problem(name, fmt::format("unknown table [{}]{}", name,
                                  suggestion.empty() ? "" : fmt::format("; did you mean [{}]?", suggestion)));
      } else {
        problem(name, fmt::format("key \"{}\" stands outside every table{}", name, section_hint(name, "")));
      }
    }
  }

  // Where else a key would be known.
  static std::string section_hint(const std::string& key, const std::string& not_in) {
    for (const SectionSpec& section : recipe_sections()) {
      if (section.name == not_in) continue;
      for (const KeySpec& spec : section.keys) {
        if (spec.option.key == key) return fmt::format("; it belongs in [{}]", section.name);
      }
    }
    return {};
  }

  std::vector<Options> read_section(const toml::table& root, const SectionSpec& section) {
    const toml::node* node = root.at_path(section.name).node();
    std::vector<Options> tables;
    if (!section.array) {
      const toml::table* table = node == nullptr ? nullptr : node->as_table();
      // A child that is no table is reported by its parent only if the parent exists.
      if (node != nullptr && table == nullptr && section.name.find('.') != std::string::npos) {
        problem(section.name, fmt::format("[{}] must be a table, not {}", section.name, kind_of(*node)));
      }
      tables.push_back(read_table(table, section.name, "[" + section.name + "]", section.keys, children_of(section)));
      return tables;
    }
    if (node == nullptr) return tables;
    const toml::array* array = node->as_array();
    const std::string label = "[[" + section.name + "]]";
    if (array == nullptr) {
      problem(section.name, fmt::format("{} must be an array of tables, not {}", label, kind_of(*node)));
      return tables;
    }
    for (std::size_t i = 0; i < array->size(); ++i) {
      const std::string path = fmt::format("{}[{}]", section.name, i);
      const toml::table* table = (*array)[i].as_table();
      if (table == nullptr) {
        problem(path, fmt::format("{} must be an array of tables, and entry {} is {}", label, i, kind_of((*array)[i])));
        continue;
      }
      tables.push_back(read_table(table, path, label, section.keys, {}));
    }
    return tables;
  }

  static std::vector<std::string> children_of(const SectionSpec& section) {
    std::vector<std::string> children;
    for (const SectionSpec& other : recipe_sections()) {
      if (other.name.starts_with(section.name + ".")) children.push_back(other.name.substr(section.name.size() + 1));
    }
    return children;
  }

  // `path` is the table's dotted name, `label` how messages call it. `children` are names that are read elsewhere.
  Options read_table(const toml::table* table, const std::string& path, const std::string& label,
                     const std::vector<KeySpec>& keys, const std::vector<std::string>& children) {
    Options options;
    for (const KeySpec& spec : keys) options.set(spec.option.key, spec.option.default_value);
    std::set<std::string> seen;
    if (table != nullptr) {
      for (const auto& [key, node] : *table) {
        const std::string name(key.str());
        if (std::ranges::find(children, name) != children.end()) continue;
        const auto spec = std::ranges::find(keys, name, [](const KeySpec& k) { return k.option.key; });
        if (spec == keys.end()) {
          unknown_key(name, path, label, keys, children);
          continue;
        }
        seen.insert(name);
        if (auto value = read_value(node, *spec, path + "." + name, label)) options.set(name, std::move(*value));
      }
    }
    for (const KeySpec& spec : keys) {
      if (spec.option.required && !seen.contains(spec.option.key)) {
        problem(path, fmt::format("{} needs the key \"{}\": {}", label, spec.option.key, spec.option.help));
      }
    }
    return options;
  }

  void unknown_key(const std::string& name, const std::string& path, const std::string& label,
                   const std::vector<KeySpec>& keys, const std::vector<std::string>& children) {
    std::vector<std::string> known = children;
    for (const KeySpec& spec : keys) known.push_back(spec.option.key);
    std::string hint = did_you_mean(nearest(name, known));
    if (hint.empty()) hint = section_hint(name, path);
    if (hint.empty()) hint = "; known keys: " + quote_list(known);
    problem(path + "." + name, fmt::format("unknown key \"{}\" in {}{}", name, label, hint));
  }

  std::optional<OptionValue> read_value(const toml::node& node, const KeySpec& spec, const std::string& path,
                                        const std::string& label) {
    const OptionSpec& option = spec.option;
    const auto refuse = [&](std::string_view expected) -> std::optional<OptionValue> {
      problem(path, fmt::format("{} in {} must be {}{}, not {}", option.key, label, expected,
                                spec.automatic ? " or \"auto\"" : "", kind_of(node)));
      return std::nullopt;
    };
    if (spec.automatic && node.as_string() != nullptr && node.as_string()->get() == "auto") {
      if (std::holds_alternative<double>(option.default_value)) return *spec.automatic;
      return static_cast<std::int64_t>(*spec.automatic);
    }
    if (std::holds_alternative<bool>(option.default_value)) {
      return node.is_boolean() ? std::optional<OptionValue>(node.as_boolean()->get()) : refuse("true or false");
    }
    if (std::holds_alternative<std::int64_t>(option.default_value)) {
      if (!node.is_integer()) return refuse("an integer");
      const std::int64_t number = node.as_integer()->get();
      if (!in_range(static_cast<double>(number), fmt::format("{}", number), option, path, label)) return std::nullopt;
      return number;
    }
    if (std::holds_alternative<double>(option.default_value)) {
      if (!node.is_number()) return refuse("a number");
      const double number = *node.value<double>();
      if (!in_range(number, fmt::format("{}", number), option, path, label)) return std::nullopt;
      return number;
    }
    if (std::holds_alternative<std::string>(option.default_value)) {
      if (!node.is_string()) return refuse("a string");
      return chosen(node.as_string()->get(), option, path, label);
    }
    const toml::array* array = node.as_array();
    std::vector<std::string> list;
    if (array == nullptr) return refuse("an array of strings");
    for (const toml::node& item : *array) {
      if (!item.is_string()) {
        problem(path, fmt::format("{} in {} must be an array of strings, and one entry is {}", option.key, label,
                                  kind_of(item)));
        return std::nullopt;
      }
      list.push_back(item.as_string()->get());
      if (!chosen(list.back(), option, path, label)) return std::nullopt;
    }
    return list;
  }

  bool in_range(double number, const std::string& shown, const OptionSpec& option, const std::string& path,
                const std::string& label) {
    if (std::isfinite(number) && number >= option.minimum && number <= option.maximum) return true;
    const bool low = std::isfinite(option.minimum);
    const bool high = std::isfinite(option.maximum);
    std::string expected = "a finite number";
    if (number < option.minimum) {
      expected = fmt::format("at least {}", option.minimum);
    } else if (number > option.maximum) {
      expected = fmt::format("at most {}", option.maximum);
    } else if (low && high) {
      expected = fmt::format("between {} and {}", option.minimum, option.maximum);
    }
    problem(path, fmt::format("{} in {} is {}, but must be {}", option.key, label, shown, expected));
    return false;
  }

  std::optional<OptionValue> chosen(const std::string& text, const OptionSpec& option, const std::string& path,
                                    const std::string& label) {
    if (option.choices.empty() || std::ranges::find(option.choices, text) != option.choices.end()) return text;
    problem(path, fmt::format("{} in {} is {}, but must be one of {}{}", option.key, label, toml_string(text),
                              quote_list(option.choices), did_you_mean(nearest(text, option.choices))));
    return std::nullopt;
  }

  // With a task, data.sequence_length may be left out.
  static void rows_follow_task(toml::table& root) {
    toml::table* data = root["data"].as_table();
    if (root.contains("task") && data != nullptr && !data->contains("sequence_length")) {
      data->insert("sequence_length", "auto");
    }
  }

  // A task that cannot be told, or has bad options, is a problem; the result is then not used.
  TaskTable read_task(const toml::table& table) {
    TaskTable task;
    const toml::node* name = table.get("name");
    const TaskType* type = name == nullptr || !name->is_string() ? nullptr : find_task(name->as_string()->get());
    std::vector<KeySpec> keys = task_keys();
    if (type == nullptr) {
      // Its other keys mean nothing without it.
      toml::table alone;
      if (name != nullptr) alone.insert("name", *name);
      read_table(&alone, "task", "[task]", keys, {});
      return task;
    }
    for (const KeySpec& spec : task_option_keys(*type)) keys.push_back(spec);
    set_task_values(task, read_table(&table, "task", "[task]", keys, {}));
    task.where = places_.find("task").text + ": [task]";
    return task;
  }

  // Every [mixer.NAME] table is checked; those of the pattern enter the recipe.
  void read_mixers(const toml::table& root, Recipe& recipe) {
    const toml::table* all = root["mixer"].as_table();
    if (all == nullptr) return;
    std::vector<MixerTable> tables;
    for (const auto& [key, node] : *all) {
      const std::string name(key.str());
      const std::string path = "mixer." + name;
      const toml::table* table = node.as_table();
      if (table == nullptr) {
        problem(path, fmt::format("[{}] must be a table, not {}", path, kind_of(node)));
        continue;
      }
      const MixerType* type = mixer_type(*table, name, path);
      if (type == nullptr) continue;
      std::vector<KeySpec> keys = {{.option = {.key = "type", .default_value = name, .help = "", .choices = {}}}};
      for (const OptionSpec& option : type->options) keys.push_back({.option = option});
      Options options = read_table(table, path, "[" + path + "]", keys, {});
      Options own;
      for (const OptionSpec& option : type->options) own.set(option.key, options.values().at(option.key));
      tables.push_back({name, type, std::move(own), fmt::format("{}: [{}]", places_.find(path).text, path)});
    }
    for (const std::string& name : recipe.model.pattern) {
      const auto used = std::ranges::find(recipe.mixers, name, &MixerTable::name);
      const auto table = std::ranges::find(tables, name, &MixerTable::name);
      if (used == recipe.mixers.end() && table != tables.end()) recipe.mixers.push_back(*table);
    }
  }

  const MixerType* mixer_type(const toml::table& table, const std::string& name, const std::string& path) {
    std::string wanted = name;
    std::string where = path;
    if (const toml::node* node = table.get("type")) {
      where += ".type";
      if (!node->is_string()) {
        problem(where, fmt::format("type in [{}] must be a string, not {}", path, kind_of(*node)));
        return nullptr;
      }
      wanted = node->as_string()->get();
    }
    std::vector<std::string> names;
    for (const MixerType* type : mixers_) {
      if (type->name == wanted) return type;
      names.push_back(type->name);
    }
    problem(where, fmt::format("[{}]: there is no mixer {}; mixers are {}{}{}", path, toml_string(wanted),
                               quote_list(names), did_you_mean(nearest(wanted, names)),
                               where == path ? " (a table of another name says which by type = \"...\")" : ""));
    return nullptr;
  }

  RecipePlaces places_;
  RecipeProblems problems_;
  const std::vector<const MixerType*>& mixers_;
};

}  // namespace

Recipe parse_recipe(std::string_view text, const std::string& source, std::span<const std::string> overrides,
                    const std::vector<const MixerType*>& mixers) {
  return Reader(source, mixers).read(text, overrides);
}

TaskTable task_table(const Recipe& recipe, const std::string& name, std::span<const std::string> overrides) {
  WEFT_CHECK(!name.empty() || recipe.task, "neither a name nor a task of the recipe's own");
  const std::string wanted = !name.empty() ? name : recipe.task->type->name;
  const bool own = recipe.task && recipe.task->type->name == wanted;
  std::vector<std::string> dotted;
  for (const std::string& text : overrides) dotted.push_back(text.starts_with("task.") ? text : "task." + text);
  const std::string text = own ? resolved_task(*recipe.task) : "[task]\nname = " + toml_string(wanted) + "\n";
  return Reader("--task " + wanted, mixer_types()).read_task_alone(text, dotted);
}

Recipe load_recipe(const std::string& path, std::span<const std::string> overrides,
                   const std::vector<const MixerType*>& mixers) {
  if (!std::filesystem::is_regular_file(path)) config_error("there is no recipe {}", path);
  if (std::filesystem::file_size(path) > kMostBytes) {
    config_error("{} is no recipe: it is larger than {} bytes", path, kMostBytes);
  }
  return parse_recipe(read_small_file(path, kMostBytes), path, overrides, mixers);
}

}  // namespace weft
