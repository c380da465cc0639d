// The one declaration of every recipe key: its name, type, default, range, help and effect. Reading, writing,
// comparing and documenting recipes walk these lists.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "modules/options.h"
#include "train/recipe/recipe.h"

namespace weft {

struct KeySpec {
  OptionSpec option;
  Effect effect = Effect::run;
  std::optional<double> automatic = {};  // the value that the word "auto" stands for
};

struct SectionSpec {
  std::string name;  // dotted: "run", "optimizer.muon"
  std::string help;
  bool array = false;  // [[name]]: any number of tables
  std::vector<KeySpec> keys;
  std::function<std::vector<Options>(const Recipe&)> tables;         // one unless `array`
  std::function<void(Recipe&, const std::vector<Options>&)> assign;  // the inverse
};

// All tables but [mixer.NAME] and [task], parents before their children.
const std::vector<SectionSpec>& recipe_sections();

// [task]: the keys that every task has, `name` first, and those that are a task's own.
const std::vector<KeySpec>& task_keys();
std::vector<KeySpec> task_option_keys(const TaskType& type);
// The values of all of them, and back.
Options task_values(const TaskTable& table);
void set_task_values(TaskTable& table, const Options& values);
// The table as TOML.
std::string resolved_task(const TaskTable& task);

// A value as TOML: shortest text that reads back to the same value; "auto" where it means that.
std::string toml_value(const OptionValue& value, std::optional<double> automatic = {});
std::string toml_string(std::string_view text);

// The candidate nearest to `word` by edits (insert, delete, replace, swap neighbours), if it is near enough to be a
// slip of the pen; else empty.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

// Where keys were set, for messages.
class RecipePlaces {
 public:
  explicit RecipePlaces(std::string source) : source_(std::move(source)) {}

  struct Place {
    std::string text;  // "quickstart.toml:12" or "--set run.steps=5"
    std::int64_t order = 0;
  };
  static Place of_override(const std::string& text, std::int64_t index) {
    return {"--set " + text, kOverrides + index};
  }
  void add(const std::string& key, std::int64_t line) { places_[key] = {source_ + ":" + std::to_string(line), line}; }
  // Replaces the places of everything below the key, too.
  void add_override(const std::string& key, const std::string& text, std::int64_t index);
  // Of a dotted key; a key that was not set is where its table is, or just the file.
  Place find(std::string key) const;
  bool is_override(const std::string& key) const { return find(key).order >= kOverrides; }
  const std::string& source() const { return source_; }

 private:
  static constexpr std::int64_t kOverrides = std::int64_t{1} << 40;
  std::string source_;
  std::map<std::string, Place> places_;
};

// Collects defects so that one reading reports them all.
class RecipeProblems {
 public:
  void add(const RecipePlaces::Place& place, std::string message) {
    problems_.push_back({place.order, place.text + ": " + std::move(message)});
  }
  // The message begins with its place already.
  void add_complete(const RecipePlaces::Place& place, std::string message) {
    problems_.push_back({place.order, std::move(message)});
  }
  bool empty() const { return problems_.empty(); }
  // Error (config) with the messages by place, if there are any.
  void raise() const;

 private:
  struct Problem {
    std::int64_t order;
    std::string message;
  };
  std::vector<Problem> problems_;
};

// Where rows come from and how long they are: with a [task], sequence_length is that of its rows, and keys for datasets
// are refused. Adds a problem for each contradiction, the task's own objections included.
void settle_rows(Recipe& recipe, const RecipePlaces& places, RecipeProblems& problems);

// What keys mean together: adds a problem for each contradiction. `tables` are the names of all [mixer.NAME] tables,
// used or not.
void check_recipe(const Recipe& recipe, const std::vector<std::string>& tables, const RecipePlaces& places,
                  RecipeProblems& problems);

// "FIRST-LAST" or "N"; nothing if it is neither.
std::optional<std::pair<std::int64_t, std::int64_t>> parse_step_range(const std::string& text);
// "INTEGER:REAL", integers >= 0 increasing, reals >= 0; nothing if an element is not so.
std::optional<std::vector<std::pair<std::int64_t, double>>> parse_points(const std::vector<std::string>& texts);

}  // namespace weft
