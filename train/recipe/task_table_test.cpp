// The [task] table of recipes.
#include <algorithm>
#include <filesystem>
#include <functional>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "train/recipe/recipe.h"

namespace weft {
namespace {

using ::testing::HasSubstr;

constexpr const char* kGood = R"([run]
steps = 10
seed = 3
[model]
width = 16
layers = 1
pattern = ["gla"]
[mixer.gla]
heads = 1
[task]
name = "mqar"
vocabulary = 64
length = 32
pairs = 4
[data]
batch_tokens = 128
)";

Recipe parse(std::string_view text, const std::vector<std::string>& overrides = {}) {
  return parse_recipe(text, "task.toml", overrides);
}

std::string error_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "no error";
}

TEST(TaskTable, GivesRowsTheirLengthAndTheModelItsVocabulary) {
  const Recipe recipe = parse(kGood);
  ASSERT_TRUE(recipe.task);
  EXPECT_EQ(recipe.task->type->name, "mqar");
  EXPECT_EQ(recipe.task->options.integer("pairs"), 4);
  EXPECT_EQ(recipe.task->options.integer("passes"), 1);
  EXPECT_EQ(recipe.task->validation_examples, 256);
  EXPECT_EQ(recipe.task->where, "task.toml:10: [task]");
  EXPECT_EQ(recipe.data.sequence_length, 32);
  EXPECT_EQ(recipe.data.rows_per_step(), 4);
  EXPECT_EQ(make_task(*recipe.task, data_seed(recipe))->vocabulary(), 64);
  EXPECT_EQ(parse(kGood, {{"data.sequence_length=auto"}}).data.sequence_length, 32);
}

TEST(TaskTable, ReadsBackAsItIsWritten) {
  for (const TaskType* type : task_types()) {
    std::vector<std::string> overrides = {"task={name = \"" + type->name + "\"}", "task.test_examples=7"};
    const std::int64_t length = type->create(Options(type->options), 1, "test")->row_length();
    overrides.push_back("data.batch_tokens=" + std::to_string(length));
    const Recipe recipe = parse(kGood, overrides);
    const std::string text = resolved_recipe(recipe);
    EXPECT_THAT(text,
                HasSubstr("[task]\nname = \"" + type->name + "\"\nvalidation_examples = 256\ntest_examples = 7\n"));
    const Recipe again = parse(text);
    EXPECT_EQ(resolved_recipe(again), text);
    EXPECT_EQ(recipe_digest(again), recipe_digest(recipe));
    EXPECT_TRUE(recipe_changes(recipe, again, 5).empty());
  }
}

TEST(TaskTable, OtherExamplesAreAnotherRun) {
  const Recipe recipe = parse(kGood);
  const auto effect_of = [&](const std::string& setting) {
    const std::vector<RecipeChange> changes = recipe_changes(recipe, parse(kGood, {{setting}}), 5);
    EXPECT_EQ(changes.size(), 1u) << setting;
    return changes.at(0).effect;
  };
  EXPECT_EQ(effect_of("task.pairs=5"), Effect::incompatible);
  EXPECT_EQ(effect_of("task.test_examples=5"), Effect::free);
  EXPECT_EQ(effect_of("task.validation_examples=5"), Effect::free);
}

TEST(TaskTable, ChangesForAnEvaluation) {
  const Recipe recipe = parse(kGood);
  const std::vector<std::string> changes = {"pairs=6", "task.length=48"};
  const TaskTable own = task_table(recipe, "", changes);
  EXPECT_EQ(own.type->name, "mqar");
  EXPECT_EQ(own.options.integer("pairs"), 6);
  EXPECT_EQ(own.options.integer("length"), 48);
  EXPECT_EQ(own.options.integer("vocabulary"), 64) << "as in training";
  const TaskTable other = task_table(recipe, "copy", {});
  EXPECT_EQ(other.options.integer("symbols"), 32) << "the default";
  const std::vector<std::string> slip = {"lenght=48"};
  EXPECT_EQ(error_of([&] { task_table(recipe, "", slip); }),
            "--set task.lenght=48: unknown key \"lenght\" in [task]; did you mean \"length\"?");
  EXPECT_THAT(error_of([&] { task_table(recipe, "cpoy", {}); }), HasSubstr("did you mean \"copy\"?"));
}

TEST(TaskTable, Errors) {
  const auto error = [](const std::vector<std::string>& overrides) {
    return error_of([&] { parse(kGood, overrides); });
  };
  EXPECT_EQ(error({"task.updates=5"}),
            "task.toml:10: [task]: updates = 5 is more than pairs = 4; at most every key can be updated");
  EXPECT_THAT(error({"task.filler=ones"}), HasSubstr("must be one of \"random\", \"zero\""));
  EXPECT_THAT(error({"data.anchor=true"}), HasSubstr("anchor in [data] is for datasets"));
  EXPECT_THAT(error({"data.mixture=[{path = \"a\"}]"}), HasSubstr("[[data.mixture]] is for datasets"));
  EXPECT_THAT(error({"data.batch_tokens=100"}), HasSubstr("no multiple of sequence_length = 32; try 96 or 128"));

  std::string without = kGood;
  without.erase(without.find("[task]"), without.find("[data]") - without.find("[task]"));
  EXPECT_EQ(error_of([&] { parse(without); }),
            "task.toml:10: [data] needs the key \"sequence_length\": tokens of a row; "
            "with [task] it may be left out (auto): as the task's rows");
  EXPECT_EQ(
      error_of([&] { parse(without + "sequence_length = \"auto\"\n"); }),
      "task.toml:12: sequence_length in [data] is \"auto\", but there is no [task] whose rows it could follow; give "
      "the tokens of a row");
}

std::vector<std::string> recipes_of(const std::string& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path().string());
  std::ranges::sort(paths);
  return paths;
}

// From the repository root.
TEST(TaskTable, RecipesOfTheRepositoryAreSound) {
  for (const std::string& path : recipes_of("recipes/synthetic")) EXPECT_TRUE(load_recipe(path).task) << path;
}

// Rows of the panel compare mixers, so nothing else may differ.
TEST(TaskTable, RecipesOfThePanelDifferInTheirMixersOnly) {
  const Recipe first = load_recipe("recipes/panel/attention.toml");
  EXPECT_EQ(first.task->type->name, "mqar");
  for (const std::string& path : recipes_of("recipes/panel")) {
    for (const RecipeChange& change : recipe_changes(first, load_recipe(path), 0)) {
      EXPECT_TRUE(change.key == "run.name" || change.key == "model.pattern" || change.key.starts_with("mixer."))
          << path << " has another " << change.key << ": " << change.after;
    }
  }
}

}  // namespace
}  // namespace weft
