// Datasets of tokenizer files: they keep what their ids mean, and say so when it is lost.
#include <algorithm>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "data/dataset.h"
#include "data/prepare/prepare.h"
#include "data/prepare/prepare_test_support.h"
#include "data/sampler/row_source.h"
#include "data/storage/utf8.h"
#include "data/tokenizers/sentencepiece/model_file.h"

namespace weft {
namespace {

using namespace data_test;

const std::string kModel = "tests/golden/sentencepiece/bpe_bytes.model";

class PrepareTokenizer : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_ / "hf");
    std::filesystem::copy_file(kModel, folder_ / "hf/tokenizer.model");
    write_text(folder_ / "hf/generation_config.json", R"({"eos_token_id":[2,7]})");
    write_text(folder_ / "hf/tokenizer_config.json", R"({"eos_token":"</s>"})");
    write_text(folder_ / "a.txt", "bana kor\n\nkor bana kor\n\nvis \u0434\u043e\u043c\n\nbana <s> bana\n");
  }
  PrepareOptions options(const std::string& out) const {
    PrepareOptions options = options_for(folder_ / out, {folder_ / "a.txt"});
    options.tokenizer = folder_ / "hf";
    options.shuffle_seed.reset();
    return options;
  }
  std::string error_of_opening(const std::string& dataset) const {
    return message_of(ExitCode::config, [&] { Dataset(folder_ / dataset).tokenizer(); });
  }

  TemporaryFolder folder_;
};

TEST_F(PrepareTokenizer, TheDatasetKeepsItsTokenizer) {
  prepare(options("d"));
  const auto original = make_tokenizer(folder_ / "hf");
  std::filesystem::remove_all(folder_ / "hf");
  const Dataset dataset(folder_ / "d");
  EXPECT_EQ(dataset.manifest().tokenizer_name, "tokenizer.model");
  ASSERT_EQ(dataset.manifest().tokenizer_files.size(), 3u);
  EXPECT_EQ(dataset.manifest().tokenizer_files[0].name, "tokenizer.model");
  const TokenizerBundle bundle = dataset.tokenizer();
  EXPECT_EQ(bundle.tokenizer->fingerprint(), original->fingerprint());
  EXPECT_EQ(bundle.tokenizer->file(), read_text(kModel));
  EXPECT_EQ(stop_ids(bundle), (std::vector<std::int32_t>{2, 7}));
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(dataset.n_tokens()));
  dataset.read(0, tokens);
  EXPECT_EQ(bundle.tokenizer->decode(tokens), "bana kor\n kor bana kor\n vis \u0434\u043e\u043c\n bana <s> bana\n");
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 1), 0) << "what spells a special token is text";
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 2), 4);
  EXPECT_NO_THROW(verify_dataset(folder_ / "d"));
  EXPECT_NE(describe_dataset(folder_ / "d").find("tokenizer.model, 8397 bytes"), std::string::npos);
}

TEST_F(PrepareTokenizer, TheSameBytesAgain) {
  prepare(options("one"));
  PrepareOptions other = options("two");
  other.threads = 3;
  prepare(other);
  EXPECT_EQ(content_of(folder_ / "one"), content_of(folder_ / "two"));
}

TEST_F(PrepareTokenizer, LostAndDamagedFiles) {
  prepare(options("d"));
  const std::string file = folder_ / "d/tokenizer.model";
  const std::string good = read_text(file);
  std::filesystem::remove(file);
  EXPECT_EQ(error_of_opening("d"), file + ": the tokenizer's file is missing, dataset.json lists it");
  write_text(file, good);
  flip_bit(file, 100);
  EXPECT_EQ(error_of_opening("d"), fmt::format("{}: its SHA-256 is {}, dataset.json says {}; copy the file again", file,
                                               hex(sha256(read_text(file))), hex(sha256(good))));
  EXPECT_THROW(verify_dataset(folder_ / "d"), Error);

  // Another tokenizer, with a manifest to match.
  const std::string other = read_text("tests/golden/sentencepiece/unigram.model");
  write_text(file, other);
  auto manifest = nlohmann::json::parse(read_text(folder_ / "d/dataset.json"));
  nlohmann::json& entry = manifest["tokenizer"]["files"][0];
  entry["bytes"] = other.size();
  entry["sha256"] = hex(sha256(other));
  write_text(folder_ / "d/dataset.json", manifest.dump());
  const std::string message = error_of_opening("d");
  EXPECT_TRUE(message.starts_with(folder_ / "d: its ids are of the tokenizer tokenizer.model ")) << message;
  EXPECT_NE(message.find(", but the file there is tokenizer.model "), std::string::npos);

  entry["name"] = "../tokenizer.model";
  write_text(folder_ / "d/dataset.json", manifest.dump());
  EXPECT_EQ(error_of_opening("d"), (folder_ / "d/dataset.json") +
                                       ", tokenizer, files[0]: key \"name\": \"../tokenizer.model\" is no file of a "
                                       "tokenizer");
}

TEST_F(PrepareTokenizer, AnIndexIsRebuiltWithItsTokenizer) {
  prepare(options("d"));
  const DatasetManifest before = Dataset(folder_ / "d").manifest();
  std::filesystem::remove(folder_ / "d/dataset.json");
  const DatasetManifest rebuilt = index_dataset(folder_ / "d");
  EXPECT_EQ(rebuilt.tokenizer_files.size(), before.tokenizer_files.size());
  EXPECT_EQ(rebuilt.tokenizer_files[0].sha256, before.tokenizer_files[0].sha256);
  EXPECT_NO_THROW(verify_dataset(folder_ / "d"));
  std::filesystem::remove(folder_ / "d/dataset.json");
  std::filesystem::remove(folder_ / "d/tokenizer.model");
  EXPECT_EQ(message_of(ExitCode::config, [&] { index_dataset(folder_ / "d"); }),
            (folder_ / "d/tokenizer.model") + ": the file of the tokenizer is missing; its shards name it");
}

// More ids than 16 bits hold.
TEST_F(PrepareTokenizer, WideVocabularies) {
  SentencePieceModel model;
  model.algorithm = SentencePieceModel::Algorithm::bpe;
  model.pieces = {{"<unk>", 0, PieceType::unknown}, {"</s>", 0, PieceType::control}};
  model.pieces.push_back({"\u2581", -1, PieceType::normal});
  model.pieces.push_back({"\n", -1, PieceType::normal});
  // Ideographs and Hangul, and some that nothing uses in between.
  for (int i = 0; i < 40'000; ++i) model.pieces.push_back({fmt::format("unused{}", i), -3, PieceType::unused});
  for (char32_t c = 0x4E00; c < 0x9FFF; ++c) {
    std::string text;
    append_utf8(c, text);
    model.pieces.push_back({text, -2, PieceType::normal});
  }
  for (char32_t c = 0xAC00; c < 0xD7A3; ++c) {
    std::string text;
    append_utf8(c, text);
    model.pieces.push_back({text, -2, PieceType::normal});
  }
  ASSERT_GT(model.pieces.size(), 65536u);
  std::filesystem::create_directories(folder_ / "wide");
  write_text(folder_ / "wide/tokenizer.model", serialize(model, true));
  write_text(folder_ / "a.txt", "\u6c34\u6d41\n\n\ud55c\uad6d \u6c34\n\n\ud55c\n");
  PrepareOptions wide = options("d");
  wide.tokenizer = folder_ / "wide";
  prepare(wide);

  const auto dataset = std::make_shared<const Dataset>(folder_ / "d");
  EXPECT_EQ(dataset->manifest().token_bytes, 4);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(dataset->n_tokens()));
  dataset->read(0, tokens);
  EXPECT_GT(*std::max_element(tokens.begin(), tokens.end()), 65536);
  EXPECT_EQ(dataset->tokenizer().tokenizer->decode(tokens), "\u6c34\u6d41\n \ud55c\uad6d \u6c34\n \ud55c\n");
  EXPECT_NO_THROW(verify_dataset(folder_ / "d"));

  RowOptions rows;
  rows.length = 4;
  const std::unique_ptr<RowSource> source = make_evaluation_source(dataset, rows);
  std::vector<std::int32_t> seen;
  for (std::int64_t r = 0; r < source->rows(); ++r) {
    const Row row = source->build(0, r);
    seen.insert(seen.end(), row.tokens.begin(), row.tokens.end());
  }
  for (const std::int32_t token : tokens) {
    const bool is_seen = std::find(seen.begin(), seen.end(), token) != seen.end();
    EXPECT_TRUE(is_seen || token <= 65536) << token;
  }
}

TEST_F(PrepareTokenizer, PathsThatAreNone) {
  const auto error_for = [&](const std::string& tokenizer) {
    PrepareOptions o = options("d");
    o.tokenizer = tokenizer;
    return message_of(ExitCode::config, [&] { prepare(o); });
  };
  EXPECT_EQ(error_for(folder_ / "none"),
            fmt::format("tokenizer \"{}\": neither \"byte\" nor the path of a tokenizer's file", folder_ / "none"));
  std::filesystem::create_directories(folder_ / "empty");
  EXPECT_EQ(
      error_for(folder_ / "empty"),
      fmt::format("tokenizer \"{}\": the folder has neither tokenizer.json nor tokenizer.model", folder_ / "empty"));
  EXPECT_EQ(error_for(folder_ / "a.txt"), fmt::format("tokenizer \"{}\": expected \"byte\", a tokenizer.json or "
                                                      "tokenizer.model, or a folder that holds one",
                                                      folder_ / "a.txt"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "d"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "d.partial"));
  write_text(folder_ / "hf/generation_config.json", R"({"eos_token_id":["x"]})");
  EXPECT_THROW(prepare(options("d")), Error);
}

}  // namespace
}  // namespace weft
