// Synthetic tasks through the program: training, going on, scoring, the panel, and what is said about mistakes.

#include <csignal>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/integration/program.h"

namespace weft::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr const char* kMqar =
    "name = \"mqar\"\nvocabulary = 64\nlength = 32\npairs = 4\ntest_examples = 100\nvalidation_examples = 32\n";
constexpr const char* kPasskey =
    "name = \"passkey\"\nlength = 192\ndigits = 1\ndepths = 2\ntest_examples = 6\nvalidation_examples = 4\n";

class Synthetic : public ::testing::Test {
 protected:
  std::string recipe(const std::string& name, const std::string& task, int steps, const std::string& more = {}) const {
    const std::string path = workspace_ / (name + ".toml");
    const std::int64_t length = task == kPasskey ? 192 : 32;
    write_text(path, fmt::format(R"(
[run]
steps = {}
out = "{}"
[model]
width = 16
layers = 2
pattern = ["attention", "gla"]
ffn = 0
tied = false
[mixer.attention]
heads = 1
[mixer.gla]
heads = 1
[task]
{}[data]
batch_tokens = {}
[optimizer]
learning_rate = 0.01
[parallel]
micro_batch_tokens = {}
{})",
                                 steps, workspace_ / "runs", task, 8 * length, 4 * length, more));
    return path;
  }

  std::string run(const std::string& name) const { return workspace_ / ("runs/" + name); }

  // Exit code 2, and a message that begins and goes on like this.
  static void expect_error(const std::vector<std::string>& arguments, const std::string& message) {
    const ProgramResult result = weft(arguments);
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_THAT(result.err, HasSubstr(message));
  }

  static nlohmann::json scores(const std::vector<std::string>& arguments) {
    const ProgramResult result = weft(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return nlohmann::json::parse(result.out, nullptr, false);
  }

  Workspace workspace_;
};

TEST_F(Synthetic, ARunIsTheSameHoweverItIsInterrupted) {
  const std::string settings = "[checkpoint]\nevery = 10\n[validation]\nevery = 10\n";
  ASSERT_EQ(weft({"train", recipe("straight", kMqar, 120, settings)}).exit_code, 0);
  const std::vector<std::string> straight = timeless_rows(run("straight"));
  ASSERT_EQ(straight.size(), 1u + 120u + 12u);
  EXPECT_THAT(straight.back(), HasSubstr("val_accuracy"));

  const std::string stopped = recipe("stopped", kMqar, 120, settings);
  Program program({WEFT_PROGRAM, "train", stopped});
  while (program.running() &&
         (!fs::exists(run("stopped") + "/metrics.jsonl") || timeless_rows(run("stopped")).size() < 14)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  program.kill(SIGKILL);
  program.wait();
  ASSERT_LT(timeless_rows(run("stopped")).size(), straight.size()) << "it was over before it could be interrupted";
  ASSERT_EQ(weft({"train", stopped}).exit_code, 0);
  std::vector<std::string> rows = timeless_rows(run("stopped"));
  ASSERT_EQ(rows.size(), straight.size());
  for (std::size_t i = 1; i < rows.size(); ++i) EXPECT_EQ(rows[i], straight[i]);  // the first one has the name

  // Two ranks draw the same examples.
  const ProgramResult two = run_program(mpirun(2, {"train", recipe("two", kMqar, 4, settings)}));
  ASSERT_EQ(two.exit_code, 0) << two.err;
  const StepHistory one_rank = step_history(run("straight"));
  const StepHistory two_ranks = step_history(run("two"));
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(two_ranks.digests[i], one_rank.digests[i]) << i;
}

TEST_F(Synthetic, EvalScoresTheTestSplit) {
  ASSERT_EQ(weft({"train", recipe("mqar", kMqar, 5)}).exit_code, 0);
  const nlohmann::json own = scores({"eval", run("mqar"), "--task", "--json"});
  EXPECT_EQ(own["task"], "mqar");
  EXPECT_EQ(own["examples"], 100);
  EXPECT_EQ(own["accuracy"]["count"], 400);
  EXPECT_EQ(own["exact"]["count"], 100);
  EXPECT_EQ(own["buckets"][0]["name"], "L=32 n=4");
  EXPECT_LE(own["accuracy"]["low"], own["accuracy"]["value"]);
  EXPECT_GE(own["accuracy"]["high"], own["accuracy"]["value"]);
  EXPECT_EQ(scores({"eval", run("mqar"), "--task", "--json"}), own);

  const nlohmann::json longer = scores({"eval", run("mqar"), "--task", "mqar", "--set", "length=48", "--set",
                                        "task.updates=2", "--set", "test_examples=10", "--json"});
  EXPECT_EQ(longer["buckets"].size(), 2u);
  EXPECT_EQ(longer["buckets"][1]["name"], "L=48 n=4 updated");
  EXPECT_NE(longer["task_digest"], own["task_digest"]);

  // Another task that the model knows enough tokens for.
  const nlohmann::json other = scores(
      {"eval", run("mqar"), "--task", "state_tracking", "--set", "group=a5", "--set", "test_examples=5", "--json"});
  EXPECT_EQ(other["buckets"].size(), 5u);
  EXPECT_TRUE(other.contains("longest_exact"));

  const ProgramResult text = weft({"eval", run("mqar"), "--task"});
  EXPECT_THAT(text.out, HasSubstr("on the test split of mqar: 100 examples"));
  EXPECT_THAT(text.out, HasSubstr("L=32 n=4"));
}

TEST_F(Synthetic, PasskeysAreTextAndDecodedGreedily) {
  ASSERT_EQ(weft({"train", recipe("passkey", kPasskey, 3)}).exit_code, 0);
  const nlohmann::json own = scores({"eval", run("passkey"), "--task", "--json"});
  EXPECT_EQ(own["greedy"]["count"], 6);
  EXPECT_EQ(own["buckets"].size(), 2u);
  EXPECT_GE(own["greedy"]["hits"], own["exact"]["hits"]) << "all labels right is found by greedy decoding, too";
  const ProgramResult text = weft({"generate", run("passkey"), "--prompt", "The", "--tokens", "4"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  expect_error({"eval", run("passkey"), "--data", "anything", "--bigram"},
               "--bigram counts the training data, but the model was trained on the task passkey; leave it out");
}

TEST_F(Synthetic, SaysWhatIsWrongWithARecipe) {
  const auto error = [&](const std::string& task, const std::string& message) {
    expect_error({"train", recipe("bad", task, 5)}, message);
  };
  error("name = \"mqra\"\n",
        "bad.toml:16: name in [task] is \"mqra\", but must be one of \"copy\", \"induction\", \"listops\", \"mqar\", "
        "\"passkey\", \"selective_copy\", \"state_tracking\"; did you mean \"mqar\"?");
  error("pairs = 4\n", "bad.toml:15: [task] needs the key \"name\"");
  error(std::string(kMqar) + "lenght = 32\n",
        "bad.toml:22: unknown key \"lenght\" in [task]; did you mean \"length\"?");
  error(std::string(kMqar) + "passes = 4\n",
        "bad.toml:15: [task]: pairs = 4 need 2 pairs (passes + 1) + 2 updates = 40 positions, but length = 32; lower "
        "pairs or raise length");

  const std::string good = recipe("good", kMqar, 5);
  const auto set_error = [&](const std::string& setting, const std::string& message) {
    expect_error({"train", good, "--set", setting}, "--set " + setting + ": " + message);
  };
  set_error("data.sequence_length=64",
            "sequence_length in [data] is 64, but the rows of [task] have 32 tokens; leave it out");
  set_error("data.train=text", "train in [data] is for datasets, but rows come from [task]; leave it out");
  set_error("data.packing=pack", "packing in [data] is for datasets, but rows come from [task]; leave it out");
  set_error("validation.tokens=64",
            "tokens in [validation] is for datasets; with [task], set validation_examples there");
  set_error("model.vocabulary=50", "vocabulary in [model] is 50, fewer than the 64 token ids of [task]; leave it out");
  set_error("task=5", "[task] must be a table, not the integer 5");

  ASSERT_EQ(weft({"train", good}).exit_code, 0);
  expect_error({"train", good, "--set", "task.pairs=5"}, "task.pairs: 4 -> 5");
}

TEST_F(Synthetic, SaysWhatIsWrongWithAnEvaluation) {
  ASSERT_EQ(weft({"train", recipe("mqar", kMqar, 2)}).exit_code, 0);
  const std::string path = run("mqar");
  expect_error({"eval", path},
               path + ": trained on the task mqar, whose tokens are no text; score it with weft eval --task");
  expect_error({"generate", path}, path + ": trained on the task mqar, whose tokens are no text");
  expect_error({"eval", path, "--task", "mqra"}, "--task mqra: name in [task] is \"mqra\", but must be one of");
  expect_error({"eval", path, "--task", "--set", "pair=3"},
               "--set task.pair=3: unknown key \"pair\" in [task]; did you mean \"pairs\"?");
  expect_error({"eval", path, "--task", "--set", "pairs=0"},
               "--set task.pairs=0: pairs in [task] is 0, but must be at least 1");
  expect_error({"eval", path, "--task", "--set", "pairs=30"}, "pairs = 30 need");
  expect_error({"eval", path, "--task", "--set", "vocabulary=128"},
               path + ": the task mqar has 128 token ids, but the model only 64");
  expect_error(
      {"eval", path, "--task", "passkey"},
      path + ": the task passkey needs a model of the tokenizer byte, but this one was trained on symbols of a task");
  expect_error({"eval", path, "--set", "pairs=3"}, "--set requires --task");
  expect_error({"eval", path, "--task", "mqar", "--data", path}, "--data excludes --task");
}

TEST_F(Synthetic, ThePanelWritesTheRowsOfItsRecipes) {
  fs::create_directories(workspace_ / "panel");
  for (const char* name : {"one", "two"}) {
    fs::rename(recipe(name, kMqar, 2), workspace_ / ("panel/" + std::string(name) + ".toml"));
  }
  const std::string table = workspace_ / "table.md";
  write_text(table, "Before\n<!-- panel: begin -->\n<!-- panel: end -->\nAfter\n");
  const auto panel = [&](std::vector<std::string> more) {
    // Batches of 320 tokens are whole rows of both kinds of task.
    std::vector<std::string> arguments = {"panel",
                                          "--recipes",
                                          workspace_ / "panel",
                                          "--out",
                                          workspace_ / "runs",
                                          "--table",
                                          table,
                                          "--set",
                                          "data.batch_tokens=320",
                                          "--set",
                                          "parallel.micro_batch_tokens=320"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return weft(arguments);
  };
  const ProgramResult all = panel({});
  ASSERT_EQ(all.exit_code, 0) << all.err;
  const std::string text = read_text(table);
  EXPECT_THAT(text, ::testing::StartsWith("Before\n<!-- panel: begin -->\n| mixer |"));
  EXPECT_THAT(text, HasSubstr("\n| one | "));
  EXPECT_THAT(text, HasSubstr("\n| two | "));
  EXPECT_THAT(text, HasSubstr("|\n<!-- panel: end -->\nAfter\n"));
  EXPECT_TRUE(fs::exists(run("one-parity") + "/metrics.jsonl"));

  // One row alone; what fails is said, and shown in the table.
  const ProgramResult failing =
      panel({"two", "--set", "optimizer.groups=[{match = \"nothing of the kind\", lr_mult = 2.0}]"});
  EXPECT_EQ(failing.exit_code, 1);
  EXPECT_THAT(failing.err, HasSubstr("two-s3: failed: training ended with status 2; see "));
  const std::string after = read_text(table);
  EXPECT_THAT(after, HasSubstr("| failed | failed | failed | failed | failed |"));
  const std::size_t one = text.find("| one");
  EXPECT_THAT(after, HasSubstr(text.substr(one, text.find('\n', one) - one))) << "other rows stay";
  expect_error({"panel", "three", "--recipes", workspace_ / "panel", "--table", table},
               "there is no recipe three.toml");
  write_text(table, "no markers\n");
  expect_error({"panel", "one", "--recipes", workspace_ / "panel", "--out", workspace_ / "runs", "--table", table,
                "--set", "data.batch_tokens=320", "--set", "parallel.micro_batch_tokens=320"},
               "the table's marker lines");
}

}  // namespace
}  // namespace weft::testing
