// Models of other libraries as runs, and runs that begin with the parameters of others.

#include <algorithm>
#include <cstring>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <signal.h>
#include <sstream>
#include <thread>

#include "tests/integration/program.h"

namespace weft::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json run_json(const std::vector<std::string>& arguments) {
  const ProgramResult result = weft(arguments);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return json::parse(result.out);
}

json provenance_of(const std::string& run) {
  const json checkpoints = run_json({"inspect", run, "--json"}).at("checkpoints");
  const std::string newest = checkpoints.at(0).at("directory");
  return run_json({"inspect", newest, "--json"}).at("provenance");
}

double last_validation_loss(const std::string& run) {
  double loss = -1.0;
  std::istringstream rows(read_text(fs::path(run) / "metrics.jsonl"));
  for (std::string row; std::getline(rows, row);) {
    const json parsed = json::parse(row);
    if (parsed.contains("val_loss")) loss = parsed.at("val_loss");
  }
  return loss;
}

TEST(Import, MakesARunWithTheParametersAndARecipe) {
  const Workspace workspace;
  const json made = run_json({"import", "tests/golden/models/qwen2", "--out", workspace / "model", "--json"});
  EXPECT_EQ(made.at("class"), "qwen2");
  EXPECT_EQ(made.at("tensors"), 26);
  const json inspected = run_json({"inspect", made.at("checkpoint"), "--json"});
  EXPECT_EQ(inspected.at("step"), 0);
  EXPECT_EQ(inspected.at("digest"), made.at("digest"));
  EXPECT_EQ(inspected.at("bytes_by_kind"), (json{{"master", 4 * made.at("parameters").get<int>()}}));
  EXPECT_EQ(inspected.at("info").at("config").at("model_type"), "qwen2");
  EXPECT_EQ(inspected.at("provenance").at("hub"),
            (json{{"target", "qwen2"}, {"max_positions", 256}, {"bos", 1}, {"eos", {2}}, {"pad", -1}}));
  EXPECT_EQ(weft({"fsck", workspace / "model"}).exit_code, 0);
  // The same model again gives the same arrays; a folder that is there is not touched.
  const json again = run_json({"import", "tests/golden/models/qwen2", "--out", workspace / "again", "--json"});
  EXPECT_EQ(again.at("parameters"), made.at("parameters"));
  const ProgramResult refused = weft({"import", "tests/golden/models/qwen2", "--out", workspace / "model"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_EQ(refused.err, "weft: " + (workspace / "model") + ": exists already; choose another --out\n");
  const std::string recipe = read_text(workspace / "model/recipe.toml");
  EXPECT_NE(recipe.find("pattern = [\"attention\", \"window\"]"), std::string::npos) << recipe;
}

// A slash at the end, and names that TOML takes for numbers or dates.
TEST(Import, TakesAnyNameOfAFolder) {
  const Workspace workspace;
  for (const char* name : {"model/", "2024", "2026-11-23", "true", "a \"quoted\" one"}) {
    const ProgramResult result = weft({"import", "tests/golden/models/llama_mha", "--out", workspace / name});
    EXPECT_EQ(result.exit_code, 0) << name << ": " << result.err;
    EXPECT_TRUE(fs::exists(fs::path(workspace / name) / "recipe.toml")) << name;
  }
  std::size_t folders = 0;
  for (const auto& entry : fs::directory_iterator(workspace.path())) folders += entry.is_directory() ? 1 : 0;
  EXPECT_EQ(folders, 5U);
}

TEST(Import, LeavesNothingOfAModelThatCannotBeRead) {
  const Workspace workspace;
  fs::copy("tests/golden/models/llama3", workspace / "broken");
  json config = json::parse(read_text(workspace / "broken/config.json"));
  config["num_hidden_layers"] = 1;
  write_text(workspace / "broken/config.json", config.dump());
  const ProgramResult refused = weft({"import", workspace / "broken", "--out", workspace / "model"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_NE(refused.err.find("model.layers.1.input_layernorm.weight [32]: not a tensor of this class"),
            std::string::npos)
      << refused.err;
  // Infinity in the embedding.
  fs::copy("tests/golden/models/llama_mha", workspace / "infinite");
  std::string weights = read_text(workspace / "infinite/model.safetensors");
  weights.replace(weights.size() - 4, 4, std::string("\x00\x00\x80\x7f", 4));
  write_text(workspace / "infinite/model.safetensors", weights);
  const ProgramResult infinite = weft({"import", workspace / "infinite", "--out", workspace / "model"});
  EXPECT_EQ(infinite.exit_code, 3);
  EXPECT_NE(infinite.err.find("1 of 24 values of model.norm.weight are not finite"), std::string::npos) << infinite.err;
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(workspace.path())) left.push_back(entry.path().filename());
  std::ranges::sort(left);
  EXPECT_EQ(left, (std::vector<std::string>{"broken", "infinite"}));
}

// Some files of this class have another name for it.
TEST(Import, NamesATensorThatIsNotFiniteAsItsFileDoes) {
  const Workspace workspace;
  fs::copy("tests/golden/models/kimi_linear", workspace / "infinite");
  const std::string file = workspace / "infinite/model.safetensors";
  const std::string tensor = "model.layers.0.block_sparse_moe.down_proj.weight";
  std::string weights = read_text(file);
  std::uint64_t header = 0;
  std::memcpy(&header, weights.data(), sizeof(header));
  const std::size_t begin = json::parse(weights.substr(8, header)).at(tensor).at("data_offsets").at(0);
  weights.replace(8 + header + begin, 2, "\x80\x7f");  // infinity, as bf16
  write_text(file, weights);
  const ProgramResult refused = weft({"import", workspace / "infinite", "--out", workspace / "model"});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_TRUE(refused.err.starts_with("weft: " + file + ": 1 of ")) << refused.err;
  EXPECT_NE(refused.err.find(" values of " + tensor + " are not finite"), std::string::npos) << refused.err;
}

// An interpreter that does not come back.
TEST(Export, LeavesNothingWhenItIsStopped) {
  const Workspace workspace;
  run_json({"import", "tests/golden/models/llama_mha", "--out", workspace / "model", "--json"});
  const std::string python = workspace / "python", started = workspace / "started", id = workspace / "id";
  write_text(python,
             "#!/bin/sh\n[ \"$1\" = -c ] && exit 0\necho $$ > " + id + "\ntouch " + started + "\nexec sleep 60\n");
  fs::permissions(python, fs::perms::owner_all);
  Program exporting({WEFT_PROGRAM, "export", workspace / "model", "--out", workspace / "out", "--verify", "python",
                     "--python", python});
  while (!fs::exists(started) && exporting.running()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  exporting.kill(SIGTERM);
  const ProgramResult result = exporting.wait();
  EXPECT_EQ(result.exit_code, 128 + SIGTERM);
  EXPECT_EQ(result.err, "\nweft: stopped; " + (workspace / "out") + " was not made, and nothing is left of it\n");
  for (const auto& entry : fs::directory_iterator(workspace.path())) {
    EXPECT_FALSE(entry.path().filename().string().starts_with("out")) << entry.path();
  }
  EXPECT_NE(kill(std::stoi(read_text(id)), 0), 0) << "the interpreter goes on";
}

TEST(Import, RefusesTensorsThatTheIndexForgot) {
  const Workspace workspace;
  fs::copy("tests/golden/models/qwen2_yarn_sharded", workspace / "sharded");
  const fs::path index = fs::path(workspace / "sharded") / "model.safetensors.index.json";
  json listed = json::parse(read_text(index));
  ASSERT_EQ(listed["weight_map"].erase("model.layers.0.self_attn.q_proj.bias"), 1U);
  write_text(index, listed.dump());
  const ProgramResult refused = weft({"import", workspace / "sharded", "--out", workspace / "model"});
  EXPECT_NE(refused.exit_code, 0);
  EXPECT_NE(refused.err.find("tensor \"model.layers.0.self_attn.q_proj.bias\" is in a file but not in "
                             "model.safetensors.index.json; the index is out of date"),
            std::string::npos)
      << refused.err;
}

class InitFrom : public ::testing::Test {
 protected:
  void SetUp() override {
    make_dataset(workspace_);
    first_ = make_recipe(workspace_, "first", 6, "[validation]\nevery = 6\n");
    ASSERT_EQ(weft({"train", first_}).exit_code, 0);
  }
  std::vector<std::string> second(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments = {"train",           first_,  "--set",
                                          "run.name=second", "--set", "model.init_from=" + (workspace_ / "runs/first")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }

  Workspace workspace_;
  std::string first_;
};

TEST_F(InitFrom, ARunBeginsWithTheParametersOfAnother) {
  const ProgramResult result = weft(second({"--set", "optimizer.learning_rate=0"}));
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(last_validation_loss(workspace_ / "runs/second"), last_validation_loss(workspace_ / "runs/first"));
  const json origin = provenance_of(workspace_ / "runs/second").at("init_from");
  EXPECT_EQ(origin.at("path"), workspace_ / "runs/first");
  EXPECT_EQ(origin.at("step"), 6);
  // A run that goes on keeps its own parameters, and remembers.
  fs::remove_all(workspace_ / "runs/first");
  const ProgramResult longer = weft(second({"--set", "run.steps=8", "--set", "optimizer.learning_rate=0"}));
  ASSERT_EQ(longer.exit_code, 0) << longer.err;
  EXPECT_EQ(provenance_of(workspace_ / "runs/second").at("init_from"), origin);
}

TEST_F(InitFrom, ModelsMustAgree) {
  const ProgramResult other = weft(second({"--set", "model.ffn=96"}));
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_NE(other.err.find("the checkpoint is of another model than the recipe describes:\n"), std::string::npos)
      << other.err;
  EXPECT_NE(other.err.find("layers.0.ffn.w_gate"), std::string::npos) << other.err;
  std::vector<std::string> missing = second();
  missing.back() = "model.init_from=nowhere";
  const ProgramResult none = weft(missing);
  EXPECT_EQ(none.exit_code, 2);
  EXPECT_EQ(none.err, "weft: model.init_from: nowhere: no such run or checkpoint\n");
}

}  // namespace
}  // namespace weft::testing
