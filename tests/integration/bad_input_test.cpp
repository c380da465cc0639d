// What a user can get wrong, one case each: the exact message, the exit code, and that nothing is lost.

#include <fstream>
#include <gtest/gtest.h>

#include "tests/integration/program.h"

namespace weft::testing {
namespace {

namespace fs = std::filesystem;

class BadInput : public ::testing::Test {
 protected:
  void SetUp() override {
    make_dataset(workspace_);
    recipe_ = make_recipe(workspace_, "bad", 8);
  }

  // Runs weft and compares exit code and standard error; FOLDER in `message` stands for the workspace.
  void expect_error(const std::vector<std::string>& arguments, int exit_code, std::string message) {
    const ProgramResult result = weft(arguments);
    for (std::size_t at; (at = message.find("FOLDER")) != std::string::npos;) {
      message.replace(at, 6, workspace_.path().string());
    }
    EXPECT_EQ(result.exit_code, exit_code);
    EXPECT_EQ(result.err, "weft: " + message + "\n");
    EXPECT_EQ(result.err.find("terminate called"), std::string::npos);
  }

  void expect_recipe_error(const std::string& override, const std::string& message) {
    SCOPED_TRACE(override);
    expect_error({"train", recipe_, "--set", override}, 2, "--set " + override + ": " + message);
    EXPECT_FALSE(fs::exists(workspace_ / "runs")) << "nothing is made for a recipe that cannot be";
  }

  Workspace workspace_;
  std::string recipe_;
};

TEST_F(BadInput, RecipeValues) {
  expect_recipe_error("optimizer.lerning_rate=1",
                      "unknown key \"lerning_rate\" in [optimizer]; did you mean \"learning_rate\"?");
  expect_recipe_error("run.steps=abc", "steps in [run] must be an integer, not the string \"abc\"");
  expect_recipe_error("run.steps=-1", "steps in [run] is -1, but must be at least 1");
  expect_recipe_error("model.pattern=[\"nothing\"]",
                      "pattern in [model] names \"nothing\", but there is no table [mixer.nothing]");
  expect_recipe_error("mixer.gla.heads=0", "heads in [mixer.gla] is 0, but must be at least 1");
  expect_recipe_error("parallel.cp=2", "cp in [parallel] is 2, but this build does not split rows over ranks; use 1");
  expect_recipe_error("data.sequence_length=1", "sequence_length in [data] is 1, but must be at least 2");
}

// What cannot be had is said before anything is made.
TEST_F(BadInput, DevicesThatAreNotThere) {
  expect_error({"train", recipe_, "--set", "run.device=cpu", "--set", "run.precision=bf16"}, 2,
               "run.precision = \"bf16\" is for GPUs; the CPU computes in fp32: use \"auto\" or \"fp32\"");
#ifndef WEFT_CUDA
  expect_error(
      {"train", recipe_, "--set", "run.device=cuda"}, 2,
      "run.device = \"cuda\", but this weft was built without CUDA; build it with `cmake --preset cuda`, or use "
      "\"cpu\"");
#endif
}

TEST_F(BadInput, RecipeFiles) {
  expect_error({"train", workspace_ / "missing.toml"}, 2, "there is no recipe FOLDER/missing.toml");
  write_text(workspace_ / "syntax.toml", "[run\nname = \"x\"\n");
  expect_error({"train", workspace_ / "syntax.toml"}, 2,
               "FOLDER/syntax.toml:1:5: not valid TOML: Error while parsing table header: expected ']', saw '\\n'");
  write_text(workspace_ / "misspelt.toml", read_text(recipe_) + "weigth_decay = 0.1\n");
  expect_error({"train", workspace_ / "misspelt.toml"}, 2,
               "FOLDER/misspelt.toml:39: unknown key \"weigth_decay\" in [optimizer]; did you mean \"weight_decay\"?");
}

TEST_F(BadInput, RowsThatTheDataCannotFill) {
  expect_error({"train", recipe_, "--set", "data.sequence_length=1048576", "--set", "data.batch_tokens=1048576"}, 2,
               "dataset FOLDER/data: 38943 tokens are too few for rows of 1048576; at least 2097153 are needed");
}

TEST_F(BadInput, AMissingDataset) {
  expect_error({"train", recipe_, "--set", "data.train=" + (workspace_ / "nowhere")}, 2,
               "dataset FOLDER/nowhere: no such folder; 'weft prepare --out FOLDER/nowhere INPUT...' makes one");
}

TEST_F(BadInput, AnUnwritableFolder) {
  write_text(workspace_ / "file", "");
  expect_error(
      {"train", recipe_, "--set", "run.out=" + (workspace_ / "file")}, 7,
      "FOLDER/file/bad: the run's folder cannot be created: Not a directory; set run.out to a place that can be "
      "written");
}

TEST_F(BadInput, ATruncatedDataset) {
  const fs::path shard = workspace_ / "data/tokens-00000.h5";
  const auto bytes = fs::file_size(shard);
  fs::resize_file(shard, bytes / 2);
  expect_error({"train", recipe_}, 2,
               "FOLDER/data/tokens-00000.h5: " + std::to_string(bytes / 2) + " bytes, dataset.json says " +
                   std::to_string(bytes) + "; the file is truncated: copy or prepare the dataset again");
}

TEST_F(BadInput, ACorruptedDatasetIsNamedByShardAndToken) {
  const fs::path shard = workspace_ / "data/tokens-00000.h5";
  std::string bytes = read_text(shard);
  const std::size_t at = bytes.find(std::string("t\0h\0e\0 \0", 8), bytes.size() / 3);
  ASSERT_NE(at, std::string::npos);
  bytes[at] = 'T';
  write_text(shard, bytes);
  expect_error(
      {"train", recipe_}, 2,
      "FOLDER/data/tokens-00000.h5: tokens [0, 38943) (block 0) do not match their checksum; the file is damaged: "
      "copy or prepare the dataset again");
  EXPECT_EQ(weft({"fsck", workspace_ / "data"}).exit_code, 7);
}

TEST_F(BadInput, AForeignDataset) {
  write_text(workspace_ / "data/dataset.json", "{\"format\":\"parquet\"}");
  expect_error({"train", recipe_}, 2,
               "FOLDER/data/dataset.json: not the manifest of a weft dataset (\"format\" is not \"weft-tokens\")");
}

TEST_F(BadInput, AMissingOrForeignCheckpoint) {
  expect_error({"generate", workspace_ / "runs/none"}, 2, "FOLDER/runs/none: no such run or checkpoint");
  expect_error({"eval", workspace_ / "data"}, 2, "FOLDER/data: neither a checkpoint nor a run with checkpoints");
  expect_error({"inspect", recipe_}, 7, "FOLDER/bad.toml is neither a run, a checkpoint nor a shard of one");
  expect_error({"train", recipe_, "--resume", workspace_ / "none"}, 7,
               "cannot load checkpoint FOLDER/none: cannot open FOLDER/none/manifest.json: No such file or directory");
}

TEST_F(BadInput, AllCheckpointsDamaged) {
  ASSERT_EQ(weft({"train", recipe_}).exit_code, 0);
  const fs::path manifest = workspace_ / "runs/bad/checkpoints/step_0000000008/manifest.json";
  const std::string before = read_text(manifest);
  write_text(manifest, before.substr(0, before.size() / 2));
  const std::string metrics = read_text(workspace_ / "runs/bad/metrics.jsonl");
  const ProgramResult result = weft({"train", recipe_});
  EXPECT_EQ(result.exit_code, 7) << "never silently from scratch";
  EXPECT_NE(result.err.find("step_0000000008"), std::string::npos) << result.err;
  EXPECT_EQ(read_text(workspace_ / "runs/bad/metrics.jsonl"), metrics) << "nothing is lost";
}

TEST_F(BadInput, GoingBackInARunThatHasGoneOn) {
  ASSERT_EQ(weft({"train", recipe_, "--set", "checkpoint.every=4"}).exit_code, 0);
  const std::string metrics = read_text(workspace_ / "runs/bad/metrics.jsonl");
  const std::string earlier = workspace_ / "runs/bad/checkpoints/step_0000000004";
  expect_error(
      {"train", recipe_, "--resume", earlier}, 2,
      "FOLDER/runs/bad holds a later checkpoint, of step 8, from which the run goes on; to branch off at step 4 "
      "choose another run.name");
  EXPECT_EQ(read_text(workspace_ / "runs/bad/metrics.jsonl"), metrics) << "nothing is lost";
  EXPECT_EQ(weft({"train", recipe_, "--resume", earlier, "--set", "run.name=branch"}).exit_code, 0);
}

TEST_F(BadInput, AnotherArchitectureInTheSameRun) {
  ASSERT_EQ(weft({"train", recipe_}).exit_code, 0);
  const ProgramResult result = weft({"train", recipe_, "--set", "model.ffn=128"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(
      result.err.find(
          "the run in this folder has another model or data order; choose another run.name, or change these back:\n"
          "  model.ffn: 64 -> 128"),
      std::string::npos)
      << result.err;
}

TEST_F(BadInput, TextThatCannotBePrepared) {
  expect_error({"prepare", "--out", workspace_ / "p", workspace_ / "none.txt"}, 2,
               "input FOLDER/none.txt: no such file, and no file matches it as a pattern");
  expect_error({"prepare", "--out", workspace_ / "data", recipe_}, 2,
               "output FOLDER/data exists; remove it or choose another --out");
  write_text(workspace_ / "empty.txt", "");
  expect_error({"prepare", "--out", workspace_ / "p", workspace_ / "empty.txt"}, 2,
               "none of the 1 documents can be used (empty: 1); FOLDER/empty.txt: an empty document");
  expect_error({"prepare", "--out", workspace_ / "p", "--tokenizer", "foo.json", recipe_}, 2,
               "tokenizer \"foo.json\": neither \"byte\" nor the path of a tokenizer's file");
}

TEST_F(BadInput, InvalidUtf8IsSkippedCountedAndNamed) {
  write_text(workspace_ / "mixed.txt", "fine\n\nbad \xff\xfe\n\nfine too\n");
  const ProgramResult result =
      weft({"prepare", "--out", workspace_ / "p", "--split", "blank", workspace_ / "mixed.txt"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.out.find("skipped invalid_utf8: 1\nfirst invalid_utf8: " + (workspace_ / "mixed.txt") +
                            ": document 2: invalid UTF-8 at byte 4 of the document\n"),
            std::string::npos)
      << result.out;
}

TEST_F(BadInput, CommandLines) {
  const ProgramResult none = weft({});
  EXPECT_EQ(none.exit_code, 2);
  EXPECT_NE(none.err.find("weft --help"), std::string::npos);
  const ProgramResult bare = weft({"train"});
  EXPECT_EQ(bare.exit_code, 2);
  EXPECT_EQ(bare.err, "weft: recipe is required\nRun `weft --help` for what can be asked.\n");
}

}  // namespace
}  // namespace weft::testing
