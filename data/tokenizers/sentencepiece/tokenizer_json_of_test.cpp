// What is written of a tokenizer.model, read again by weft's own reader of tokenizer.json, whose ids are those of the
// package `tokenizers`. bench/tokenizers/compare_sentencepiece.py asks that package itself.
#include "data/tokenizers/sentencepiece/tokenizer_json_of.h"

#include <functional>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "autograd/philox.h"
#include "data/dataset_test_support.h"
#include "data/storage/json.h"

namespace weft {
namespace {

using nlohmann::json;

const std::string kFolder = "tests/golden/sentencepiece/";

SentencePieceModel golden(const std::string& name) {
  return parse_sentencepiece_model(read_small_file(kFolder + name + ".model", 1 << 20), name);
}

std::string written(const SentencePieceModel& model, const TokenizerJsonChoices& choices = {}) {
  const SentencePieceJson result = tokenizer_json_of(model, choices);
  EXPECT_EQ(result.obstacle, "");
  return result.text;
}

using Changed = std::function<void(SentencePieceModel&)>;

// Both tokenizers of a golden model that is changed a little.
struct Pair {
  std::unique_ptr<Tokenizer> model, file;
};
Pair both(const std::string& name, const Changed& change) {
  SentencePieceModel changed = golden(name);
  change(changed);
  auto model = parse_tokenizer_model(serialize(changed, changed.dummy_prefix), name);
  auto file = parse_tokenizer_json(written(changed, tokenizer_json_choices(*model, nullptr)), name);
  return {std::move(model), std::move(file)};
}

TEST(TokenizerJsonOf, GoldenModels) {
  for (const std::string name : {"bpe_bytes", "bpe_plain"}) {
    const json expected = read_json_file(kFolder + "cases.json")[name];
    const Pair of = both(name, [](auto&) {});
    EXPECT_EQ(of.file->vocab_size(), of.model->vocab_size());
    for (const json& one : expected["cases"]) {
      const auto text = one["text"].get<std::string>();
      const auto ids = one["ids"].get<std::vector<std::int32_t>>();
      // A special piece at the beginning takes the place of the dummy prefix.
      if (!text.starts_with("<s>")) {
        EXPECT_EQ(of.file->encode(text), ids) << text;
      }
      const bool plain = (ids.empty() || ids[0] != 0) && text.find("\u2581") == text.npos;
      if (plain) {
        EXPECT_EQ(of.file->decode(ids), one["decoded"].get<std::string>()) << text;
      }
      EXPECT_EQ(of.file->encode(text, EncodeMode::prompt), of.model->encode(text, EncodeMode::prompt)) << text;
    }
  }
}

// Texts of everything that spaces and pieces can be beside, in all four ways to treat spaces.
TEST(TokenizerJsonOf, RandomTexts) {
  const std::vector<std::string> parts = {" ", " ",   "  ",     "\u2581", "ba",    "na", "k",      "aaa",     "\n",
                                          "7", "<s>", "<tool>", "</s>",   "<unk>", "\t", "\u6c34", "e\u0301", "<0x41>"};
  int compared = 0;
  for (int way = 0; way < 4; ++way) {
    const Pair of = both("bpe_bytes", [&](SentencePieceModel& model) {
      model.dummy_prefix = (way & 1) != 0;
      model.remove_extra_spaces = (way & 2) != 0;
    });
    RandomWords words(5, RandomStream::test, 0);
    for (int i = 0; i < 3000; ++i) {
      std::string text;
      for (std::uint64_t n = words.below(9); n > 0; --n) text += parts[words.below(parts.size())];
      const std::size_t begin = std::min(text.find_first_not_of(' '), text.size());
      const std::string trimmed = text.substr(begin, text.find_last_not_of(' ') + 1 - begin);
      if (trimmed == "<tool>") continue;  // which the header excepts
      const std::vector<std::int32_t> ids = of.model->encode(text, EncodeMode::prompt);
      ASSERT_EQ(of.file->encode(text, EncodeMode::prompt), ids) << way << " \"" << text << '"';
      if (text.find("<s>") != text.npos || text.find("</s>") != text.npos) continue;
      ASSERT_EQ(of.file->encode(text), of.model->encode(text)) << way << " \"" << text << '"';
      if (text.find("\u2581") != text.npos) continue;
      ASSERT_EQ(of.file->decode(ids), of.model->decode(ids)) << way << " \"" << text << '"';
      ++compared;
    }
  }
  EXPECT_GT(compared, 4000);
}

TEST(TokenizerJsonOf, Prompts) {
  const SentencePieceModel model = golden("bpe_bytes");
  const auto begins = parse_tokenizer_model(serialize(model, true), "m");
  const auto plain = parse_tokenizer_model(serialize(model, true), "m", {.bos_in_prompts = false});
  EXPECT_EQ(tokenizer_json_choices(*begins, nullptr).begin, 1);
  EXPECT_EQ(tokenizer_json_choices(*plain, nullptr).begin, -1);
  EXPECT_FALSE(tokenizer_json_choices(*plain, {{"unk_token", nullptr}}).unknown_is_special);
  EXPECT_TRUE(tokenizer_json_choices(*plain, {{"unk_token", "<unk>"}}).unknown_is_special);
  const auto named = parse_tokenizer_json(written(model, {.begin = 1, .unknown_is_special = true}), "m");
  EXPECT_EQ(named->encode("<unk>", EncodeMode::prompt), (std::vector<std::int32_t>{1, 0}));
  EXPECT_TRUE(named->is_special(0));
}

SentencePieceModel small(SentencePieceModel::Algorithm algorithm) {
  SentencePieceModel model;
  model.algorithm = algorithm;
  model.pieces = {{"<unk>", 0, PieceType::unknown}, {"<s>", 0, PieceType::control},    {"a", -4, PieceType::normal},
                  {"b", -5, PieceType::normal},     {"\u2581", -6, PieceType::normal}, {"ab", -1, PieceType::normal},
                  {"ba", -2, PieceType::normal},    {"aba", -3, PieceType::normal}};
  return model;
}
constexpr auto kBpe = SentencePieceModel::Algorithm::bpe;
constexpr auto kUnigram = SentencePieceModel::Algorithm::unigram;

TEST(TokenizerJsonOf, MergesAreRankedByTheScoresOfWhatTheyMake) {
  const json file = json::parse(written(small(kBpe)));
  EXPECT_EQ(file["model"]["merges"], json({"a b", "b a", "a ba", "ab a"}));
  EXPECT_EQ(file["model"]["vocab"]["aba"], 7);
  EXPECT_EQ(file["post_processor"], nullptr);
  EXPECT_TRUE(file["model"]["fuse_unk"].get<bool>());
}

TEST(TokenizerJsonOf, UnigramScoresAreThoseThatTheLibraryReckonsWith) {
  SentencePieceModel model = small(kUnigram);
  model.pieces.push_back({"<own>", 0, PieceType::user_defined});
  const json file = json::parse(written(model));
  EXPECT_EQ(file["model"]["type"], "Unigram");
  EXPECT_EQ(file["model"]["unk_id"], 0);
  EXPECT_EQ(file["model"]["vocab"][5], json({"ab", -1.0}));
  EXPECT_EQ(file["model"]["vocab"][0], json({"<unk>", -6.0}));
  EXPECT_NEAR(file["model"]["vocab"][8][1].get<double>(), -0.1, 1e-12);
  ASSERT_EQ(file["added_tokens"].size(), 1u);
  EXPECT_EQ(file["added_tokens"][0]["content"], "<s>");
  // "<unk>" in a text is no piece. "<o" is in one, "<u" is not.
  EXPECT_EQ(file["pre_tokenizer"]["pattern"]["Regex"], "<(?=unk>)|<(?=s>)");
  model.pieces.push_back({"<u", -3, PieceType::normal});
  EXPECT_EQ(json::parse(written(model))["pre_tokenizer"]["pattern"]["Regex"], "(?<=<)u(?=nk>)|<(?=s>)");
}

std::string obstacle(SentencePieceModel::Algorithm algorithm, const Changed& change) {
  SentencePieceModel model = small(algorithm);
  change(model);
  const SentencePieceJson result = tokenizer_json_of(model, {});
  EXPECT_EQ(result.text, "");
  return result.obstacle;
}

TEST(TokenizerJsonOf, SaysWhatCannotBeSaid) {
  EXPECT_EQ(obstacle(kBpe, [](auto& m) { m.charsmap = "x"; }),
            "it has rules of normalisation, which `tokenizers` applies to other characters than sentencepiece does");
  EXPECT_EQ(obstacle(kBpe, [](auto& m) { m.escape_spaces = false; }), "spaces stay spaces in it");
  EXPECT_EQ(obstacle(kBpe, [](auto& m) { m.whitespace_as_suffix = true; }), "spaces are at the ends of its pieces");
  EXPECT_EQ(obstacle(kBpe, [](auto& m) { m.pieces[6].type = PieceType::unused; }), "its piece 6 is of type unused");
  EXPECT_EQ(obstacle(kBpe, [](auto& m) { m.pieces[6].score = -3; }),
            "its pieces \"ba\" and \"aba\" have the same score");
  EXPECT_EQ(obstacle(kBpe, [](auto& m) { m.pieces[3].text = "c"; }),
            "a character of its piece \"ab\" is no piece: \"b\"");
  EXPECT_EQ(obstacle(kBpe, [](auto& m) { m.pieces[0].text = "?"; }), "its unknown piece is a single character");
  EXPECT_EQ(obstacle(kBpe, [](auto& m) { m.pieces[1].text = "<s s>"; }), "its piece \"<s s>\" has spaces in it");
  EXPECT_EQ(obstacle(kBpe,
                     [](auto& m) {
                       m.pieces.push_back({"x<unk>", -9, PieceType::normal});
                     }),
            "its piece \"x<unk>\" has the unknown piece in it");
  EXPECT_EQ(obstacle(kBpe,
                     [](auto& m) {
                       m.pieces.push_back({"[<s>]", 0, PieceType::user_defined});
                     }),
            "its piece \"<s>\" is part of its piece \"[<s>]\"");
  EXPECT_EQ(obstacle(kUnigram,
                     [](auto& m) {
                       for (SentencePiece& piece : m.pieces) piece.score = 1;
                     }),
            "its scores are not below zero");
  EXPECT_EQ(obstacle(kUnigram,
                     [](auto& m) {
                       m.pieces[5].text = "<unk";
                       m.pieces[6].text = "k>";
                     }),
            "its pieces reach over every place of \"<unk>\"");
  EXPECT_EQ(
      obstacle(kBpe,
               [](auto& m) {
                 for (int i = 0; i < 2100; ++i) {
                   m.pieces.push_back({std::string(1020, 'x') + std::to_string(i), -10.F - static_cast<float>(i)});
                 }
               }),
      "its pieces are too long");
}

// A folder of an export: its datasets are those of the tokenizer.model.
TEST(TokenizerJsonOf, BesideItsModelItIsTheModel) {
  const data_test::TemporaryFolder folder;
  for (const std::string name : {"bpe_bytes", "bpe_plain"}) {
    data_test::write_text(folder / "tokenizer.model", read_small_file(kFolder + name + ".model", 1 << 20));
    data_test::write_text(folder / "tokenizer_config.json", R"({"add_bos_token": false})");
    const auto alone = make_tokenizer(folder / "tokenizer.model");
    const std::string text = written(golden(name), tokenizer_json_choices(*alone, nullptr));
    data_test::write_text(folder / "tokenizer.json", text);
    const auto found = make_tokenizer(folder / "");
    EXPECT_EQ(found->name(), "tokenizer.model");
    EXPECT_EQ(found->fingerprint(), alone->fingerprint());
    data_test::write_text(folder / "tokenizer.json", text + "\n");
    EXPECT_EQ(make_tokenizer(folder / "")->name(), "tokenizer.json");
  }
}

}  // namespace
}  // namespace weft
