// A tokenizer's way through the program: prepare, train, a checkpoint that is copied alone, eval, generate.

#include <fstream>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/integration/program.h"

namespace weft::testing {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const std::string kModels = "tests/golden/sentencepiece/";

class TokenizerWay : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string text;
    for (int i = 0; i < 600; ++i) text += "bana kor vis " + std::to_string(i * 7919 % 1000) + " caf\u00e9.\n\n";
    write_text(workspace_ / "text.txt", text);
    fs::create_directories(workspace_ / "hf");
    fs::copy_file(kModels + "bpe_bytes.model", workspace_ / "hf/tokenizer.model");
    prepare("data", workspace_ / "hf");
  }
  void prepare(const std::string& out, const std::string& tokenizer) {
    const ProgramResult result = weft({"prepare", "--out", workspace_ / out, "--split", "blank", "--hold-out", "10",
                                       "--tokenizer", tokenizer, workspace_ / "text.txt"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
  }
  void expect_error(const std::vector<std::string>& arguments, int exit_code, const std::string& message) {
    const ProgramResult result = weft(arguments);
    EXPECT_EQ(result.exit_code, exit_code);
    EXPECT_NE(result.err.find(message), std::string::npos) << result.err;
  }

  Workspace workspace_;
};

TEST_F(TokenizerWay, ACheckpointIsEnough) {
  const std::string recipe = make_recipe(workspace_, "sp", 6);
  // Rows beyond the tokenizer's are allowed: embeddings are padded.
  const ProgramResult train = weft({"train", recipe, "--set", "model.vocabulary=576"});
  ASSERT_EQ(train.exit_code, 0) << train.err;
  fs::copy(workspace_ / "runs/sp/checkpoints/step_0000000006", workspace_ / "alone", fs::copy_options::recursive);
  fs::rename(workspace_ / "data-validation", workspace_ / "held-out");
  for (const char* gone : {"data", "hf", "runs"}) fs::remove_all(workspace_ / gone);
  EXPECT_EQ(read_text(workspace_ / "alone/tokenizer.model"), read_text(kModels + "bpe_bytes.model"));
  EXPECT_EQ(weft({"fsck", workspace_ / "alone"}).exit_code, 0);

  const ProgramResult eval = weft({"eval", workspace_ / "alone", "--data", workspace_ / "held-out", "--json"});
  ASSERT_EQ(eval.exit_code, 0) << eval.err;
  const json scores = json::parse(eval.out);
  // Labels without end tokens stand for the bytes of the text, but for the first token of each document.
  EXPECT_GT(scores["bits_per_byte"].get<double>(), 1.0);
  EXPECT_LT(scores["bits_per_byte"].get<double>(), scores["loss"].get<double>() / 0.6931);

  const ProgramResult text =
      weft({"generate", workspace_ / "alone", "--prompt", "<s>bana", "--tokens", "20", "--json"});
  ASSERT_EQ(text.exit_code, 0) << text.err;
  const json generated = json::parse(text.out);
  EXPECT_LE(generated["tokens"].size(), 20u);
  const ProgramResult shown = weft({"generate", workspace_ / "alone", "--prompt", "bana", "--tokens", "20"});
  EXPECT_EQ(shown.exit_code, 0) << shown.err;
  EXPECT_TRUE(shown.out.starts_with("bana"));

  // The folder of a checkpoint is one of a tokenizer, too.
  prepare("again", workspace_ / "alone");
  EXPECT_EQ(weft({"eval", workspace_ / "alone", "--data", workspace_ / "again-validation"}).exit_code, 0);

  std::ofstream(workspace_ / "alone/tokenizer.model", std::ios::app) << "x";
  expect_error({"generate", workspace_ / "alone"}, 7, "tokenizer.model: 8398 bytes, its manifest says 8397");
  fs::remove(workspace_ / "alone/tokenizer.model");
  expect_error({"generate", workspace_ / "alone"}, 7, "alone/tokenizer.model: No such file");
}

TEST_F(TokenizerWay, MismatchesNameBoth) {
  const std::string recipe = make_recipe(workspace_, "sp", 5);
  expect_error({"train", recipe, "--set", "model.vocabulary=559"}, 2,
               "model.vocabulary is 559, but the data's tokenizer has 560 ids; leave it out, or choose one that is not "
               "smaller");
  ASSERT_EQ(weft({"train", recipe}).exit_code, 0);
  prepare("other", kModels + "unigram.model");
  const std::string run = workspace_ / "runs/sp";
  const std::string own = json::parse(weft({"inspect", workspace_ / "data", "--json"}).out)["tokenizer_fingerprint"];
  const std::string others =
      json::parse(weft({"inspect", workspace_ / "other", "--json"}).out)["tokenizer_fingerprint"];
  expect_error({"eval", run, "--data", workspace_ / "other-validation"}, 2,
               "prepared with the tokenizer tokenizer.model " + others.substr(0, 12) +
                   ", but the model was trained with tokenizer.model " + own.substr(0, 12));
  expect_error({"train", recipe, "--set", "data.validation=\"" + (workspace_ / "other-validation") + "\""}, 2,
               "were prepared with different tokenizers (tokenizer.model " + own.substr(0, 12));
  // The data of a run is prepared anew, with another tokenizer of as many ids.
  fs::remove_all(workspace_ / "data");
  fs::remove_all(workspace_ / "data-validation");
  fs::remove(workspace_ / "hf/tokenizer.model");
  std::string model = read_text(kModels + "bpe_bytes.model");
  const std::size_t piece = model.find("<tool>");
  ASSERT_NE(piece, std::string::npos);
  model[piece + 1] = 'T';
  write_text(workspace_ / "hf/tokenizer.model", model);
  prepare("data", workspace_ / "hf");
  const ProgramResult resumed = weft({"train", recipe, "--set", "run.steps=6"});
  EXPECT_EQ(resumed.exit_code, 2);
  EXPECT_NE(resumed.err.find("its ids are of the tokenizer tokenizer.model " + own.substr(0, 12) +
                             ", but those of the data are of the tokenizer tokenizer.model "),
            std::string::npos)
      << resumed.err;
}

// From a corpus to a model with nothing from elsewhere.
TEST_F(TokenizerWay, TrainedHere) {
  const ProgramResult trained =
      weft({"train-tokenizer", "--vocab", "300", "--out", workspace_ / "own.json", workspace_ / "text.txt"});
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  fs::remove_all(workspace_ / "data");
  fs::remove_all(workspace_ / "data-validation");
  prepare("data", workspace_ / "own.json");
  ASSERT_EQ(weft({"train", make_recipe(workspace_, "own", 5)}).exit_code, 0);
  const ProgramResult text =
      weft({"generate", workspace_ / "runs/own", "--prompt", "bana<|endoftext|>", "--tokens", "3"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_EQ(
      weft({"train-tokenizer", "--vocab", "10", "--out", workspace_ / "b.json", workspace_ / "text.txt"}).exit_code, 2);
}

}  // namespace
}  // namespace weft::testing
