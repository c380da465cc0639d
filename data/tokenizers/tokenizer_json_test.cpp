// Files that are not as they should be, and where BOS and EOS come from.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "data/dataset_test_support.h"
#include "data/storage/file.h"
#include "data/tokenizers/tokenizer.h"

namespace weft {
namespace {

using nlohmann::json;

json small() {
  return json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": true}],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
              "vocab": {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "aab": 4}, "merges": ["a b", ["a", "ab"]]}})");
}

std::vector<std::int32_t> ids_of(const json& file, std::string_view text) {
  return parse_tokenizer_json(file.dump(), "file")->encode(text);
}

TEST(TokenizerJson, ReadsMergesOfBothForms) {
  EXPECT_EQ(ids_of(small(), "aaabxb"), (std::vector<std::int32_t>{1, 4, 0, 2}));
  json file = small();
  file["model"]["merges"].insert(file["model"]["merges"].begin(), "#version: 0.2");
  file["model"].erase("type");
  file.erase("truncation");
  EXPECT_EQ(ids_of(file, "aab"), std::vector<std::int32_t>{4});
}

TEST(TokenizerJson, UnknownCharacters) {
  json file = small();
  EXPECT_EQ(ids_of(file, "xxaxx"), (std::vector<std::int32_t>{0, 0, 1, 0, 0}));
  file["model"]["fuse_unk"] = true;
  EXPECT_EQ(ids_of(file, "xxaxx"), (std::vector<std::int32_t>{0, 1, 0}));
  file["model"]["unk_token"] = nullptr;
  EXPECT_EQ(ids_of(file, "xxaxx"), std::vector<std::int32_t>{1});
  file["model"]["ignore_merges"] = true;
  file["model"]["vocab"]["xx"] = 5;
  EXPECT_EQ(ids_of(file, "xx"), std::vector<std::int32_t>{5});
}

TEST(TokenizerJson, SplitsInEveryWay) {
  const auto pieces = [](json pattern, const char* behavior, bool invert) {
    json file = small();
    file["model"]["vocab"] = {{"<unk>", 0}, {"a", 1}, {"-", 2}, {"a-", 3}, {"-a", 4}, {"--", 5}, {"aa", 6}};
    file["model"]["merges"] = {"- -", "a a", "a -", "- a"};
    file["pre_tokenizer"] = {{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}, {"invert", invert}};
    return ids_of(file, "aa--aa");
  };
  using Ids = std::vector<std::int32_t>;
  const json dash = {{"String", "-"}};
  EXPECT_EQ(pieces(dash, "Isolated", false), (Ids{6, 2, 2, 6}));
  EXPECT_EQ(pieces(dash, "Removed", false), (Ids{6, 6}));
  EXPECT_EQ(pieces(dash, "Removed", true), (Ids{2, 2}));
  EXPECT_EQ(pieces(dash, "Contiguous", false), (Ids{6, 5, 6}));
  EXPECT_EQ(pieces({{"Regex", "-+"}}, "Isolated", false), (Ids{6, 5, 6}));
  // Empty matches cut the text, too.
  EXPECT_EQ(pieces({{"Regex", "-*"}}, "Isolated", false), (Ids{1, 1, 5, 1, 1}));
  // aa-|-|aa and aa|-|-aa, in which "a a" goes before "a -".
  EXPECT_EQ(pieces(dash, "MergedWithPrevious", false), (Ids{6, 2, 2, 6}));
  EXPECT_EQ(pieces(dash, "MergedWithNext", false), (Ids{6, 2, 2, 6}));
}

TEST(TokenizerJson, MergesMatchesWithTheirNeighbours) {
  json file = small();
  file["model"]["vocab"] = {{"<unk>", 0}, {"a", 1}, {"-", 2}, {"a-", 3}, {"-a", 4}};
  file["model"]["merges"] = {"- a", "a -"};
  file["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"String", "-"}}}, {"behavior", "MergedWithPrevious"}};
  EXPECT_EQ(ids_of(file, "a-a--a"), (std::vector<std::int32_t>{3, 3, 2, 1}));
  file["pre_tokenizer"]["behavior"] = "MergedWithNext";
  EXPECT_EQ(ids_of(file, "a-a--a"), (std::vector<std::int32_t>{1, 4, 2, 4}));
}

// Steps that double every x.
json doubling(const char* list, int steps) {
  const json step = {{"type", "Replace"}, {"pattern", {{"String", "x"}}}, {"content", "xx"}};
  return {{"type", "Sequence"}, {list, std::vector<json>(static_cast<std::size_t>(steps), step)}};
}

TEST(TokenizerJson, RefusesWhatItDoesNotKnowOrUnderstand) {
  struct Row {
    const char* pointer;  // what is set in the small file
    json value;
    const char* message;  // after "file"
  };
  const json byte_level = {{"type", "ByteLevel"}};
  const json digits = {{"type", "Digits"}};
  const Row rows[] = {
      {"/version", "2.0", ": version \"2.0\", expected \"1.0\""},
      {"/extra", 1, ": unknown key \"extra\""},
      {"/model", 7, ": key \"model\": expected an object, found number"},
      {"/model/type", "Unigram", ", model: a model Unigram; weft reads BPE"},
      {"/model/dropout", 0.1,
       ", model: \"dropout\" is 0.1, so that the same text gives different ids; expected null or 0"},
      {"/model/continuing_subword_prefix", "##",
       ", model: \"continuing_subword_prefix\" is not empty; weft reads vocabularies without marks for parts of words"},
      {"/model/unk_token", "?", ", model: \"unk_token\" is \"?\", which is no token of the vocabulary"},
      {"/model/vocab", json::object(), ", model.vocab: no tokens"},
      {"/model/vocab/c", 3, ", model.vocab: \"c\" has id 3, as another token has"},
      {"/model/vocab/c", -1, ", model.vocab: \"c\" has id -1, expected 0 to 1035 for 6 tokens"},
      {"/model/vocab/c", 4'000'000'000, ", model.vocab: \"c\" has id 4000000000, expected 0 to 1035 for 6 tokens"},
      {"/model/vocab/c", "5", ", model.vocab: the id of \"c\" is no integer"},
      {"/model/merges/0", "a b a",
       ", model.merges[0]: expected two tokens, as \"left right\" or [\"left\", \"right\"]"},
      {"/model/merges/1",
       {"a", "b", "a"},
       ", model.merges[1]: expected two tokens, as \"left right\" or [\"left\", \"right\"]"},
      {"/model/merges/0", "a x", ", model.merges[0]: \"x\" is no token of the vocabulary"},
      {"/model/merges/0", "b a", ", model.merges[0]: \"ba\" is no token of the vocabulary"},
      {"/model/merges/0", " b", ", model.merges[0]: \"\" is no token of the vocabulary"},
      {"/added_tokens", 1, ", added_tokens: expected a list"},
      {"/added_tokens/0/id", 5, ", added_tokens[0]: \"<unk>\" has id 5, expected 0: that of the vocabulary"},
      {"/added_tokens/0/content", "", ", added_tokens[0]: a content of 0 bytes, expected 1 to 1024"},
      {"/added_tokens/0/content", "<x>",
       ", added_tokens[0]: \"<x>\" has id 0, expected 5: new tokens follow the vocabulary without gaps"},
      {"/added_tokens/1", small()["added_tokens"][0], ", added_tokens[1]: \"<unk>\" is there twice"},
      {"/normalizer",
       {{"type", "BertNormalizer"}},
       ", normalizer: the normalizer \"BertNormalizer\" is not among those that weft has: NFC, NFKC, Prepend, Replace, "
       "Sequence"},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"Regex", "a*"}}}, {"content", ""}},
       ", normalizer: a Replace of a regular expression that matches where there is no character"},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"Regex", "\\w"}}}, {"content", ""}},
       ", normalizer: \\w at byte 0 of the pattern \\w: not among the regular expressions that weft runs"},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"Regex", "a."}}}, {"content", std::string(1024, 'x')}},
       ", normalizer: the steps up to this one make a text 512 times as long at worst, at most 256 is expected"},
      {"/normalizer",
       {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", ""}},
       ", normalizer.pattern: the pattern is empty"},
      {"/normalizer", doubling("normalizers", 40),
       ", normalizer.normalizers[8]: the steps up to this one make a text 512 times as long at worst, at most 256 is "
       "expected"},
      {"/normalizer",
       {{"type", "Sequence"}, {"normalizers", std::vector<json>(3, {{"type", "NFKC"}})}},
       ", normalizer.normalizers[2]: the steps up to this one make a text 1331 times as long at worst, at most 256 is "
       "expected"},
      {"/normalizer",
       {{"type", "Prepend"}, {"prepend", std::string(1025, 'x')}},
       ", normalizer: 1025 bytes in front of every text, at most 1024 are expected"},
      {"/decoder", doubling("decoders", 40),
       ", decoder.decoders[8]: the steps up to this one make a text 512 times as long at worst, at most 256 is "
       "expected"},
      {"/pre_tokenizer",
       {{"type", "Whitespace"}},
       ", pre_tokenizer: the pre-tokenizer \"Whitespace\" is not among those that weft has: Split, Digits, Metaspace, "
       "ByteLevel, Sequence"},
      {"/pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", {byte_level, digits}}},
       ", pre_tokenizer.pretokenizers[1]: a step after ByteLevel, which has to be the last one"},
      {"/pre_tokenizer",
       {{"type", "Split"}, {"pattern", {{"Regex", "\\w+"}}}, {"behavior", "Isolated"}},
       ", pre_tokenizer: \\w at byte 0 of the pattern \\w+: not among the regular expressions that weft runs"},
      {"/pre_tokenizer",
       {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Dropped"}},
       ", pre_tokenizer: \"behavior\" is \"Dropped\"; expected Isolated, Removed, MergedWithPrevious, MergedWithNext "
       "or "
       "Contiguous"},
      {"/pre_tokenizer",
       {{"type", "Metaspace"}, {"replacement", "ab"}},
       ", pre_tokenizer: \"replacement\" is \"ab\"; expected one character"},
      {"/pre_tokenizer", byte_level, ", decoder: the pre-tokenizer ByteLevel needs the decoder ByteLevel"},
      {"/decoder", byte_level, ", decoder: the decoder ByteLevel without the pre-tokenizer ByteLevel"},
      {"/decoder", nullptr, ", decoder: there is no decoder, so that tokens cannot become text again"},
      {"/decoder",
       {{"type", "WordPiece"}},
       ", decoder: the decoder \"WordPiece\" is not among those that weft has: ByteLevel, ByteFallback, Fuse, Replace, "
       "Strip, Metaspace, Sequence"},
      {"/decoder",
       {{"type", "Strip"}, {"content", " "}, {"start", 0}, {"stop", 1}},
       ", decoder: weft strips one character at the beginning of the whole text, after Fuse, and nothing else"},
      {"/post_processor",
       {{"type", "BertProcessing"}},
       ", post_processor: the post-processor \"BertProcessing\" is not among those that weft has: TemplateProcessing, "
       "ByteLevel, Sequence"},
      {"/post_processor",
       {{"type", "TemplateProcessing"},
        {"single", {{{"SpecialToken", {{"id", "x"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
        {"special_tokens", {{"x", {{"id", "x"}, {"ids", {5}}, {"tokens", {"x"}}}}}}},
       ", post_processor.special_tokens.x: id 5 is not in the vocabulary of 5"},
      {"/post_processor",
       {{"type", "TemplateProcessing"}, {"single", json::array()}, {"special_tokens", json::object()}},
       ", post_processor: the template \"single\" has no place for the text"},
  };
  for (const Row& row : rows) {
    json file = small();
    file[json::json_pointer(row.pointer)] = row.value;
    EXPECT_EQ(data_test::message_of(ExitCode::storage, [&] { parse_tokenizer_json(file.dump(), "file"); }),
              std::string("file") + row.message)
        << row.pointer << " " << row.value;
  }
}

// An added token is short as it is written, but not as it is looked for.
TEST(TokenizerJson, BoundsAddedTokensAsNormalised) {
  json file = small();
  file["added_tokens"][1] = {{"id", 5}, {"content", "xxxxxxxx"}, {"normalized", true}};
  const auto message = [&](int bytes) {
    file["normalizer"] = {{"type", "Replace"},
                          {"pattern", {{"String", "x"}}},
                          {"content", std::string(static_cast<std::size_t>(bytes), 'y')}};
    return data_test::message_of(ExitCode::storage, [&] { parse_tokenizer_json(file.dump(), "file"); });
  };
  EXPECT_EQ(message(129),
            "file: the added token \"xxxxxxxx\" has 1032 bytes after the normalizer, at most 1024 are expected");
  file["normalizer"]["content"] = std::string(128, 'y');
  EXPECT_EQ(parse_tokenizer_json(file.dump(), "file")->encode("xxxxxxxx", EncodeMode::prompt),
            std::vector<std::int32_t>{5});
}

TEST(TokenizerJson, RefusesBrokenText) {
  const std::string text = small().dump();
  const auto message = [](std::string broken) {
    return data_test::message_of(ExitCode::storage, [&] { parse_tokenizer_json(std::move(broken), "file"); });
  };
  // Every truncation is an error, and none a crash.
  for (std::size_t bytes = 0; bytes < text.size(); bytes += 7) {
    EXPECT_NE(message(text.substr(0, bytes)).find("invalid JSON"), std::string::npos) << bytes;
  }
  EXPECT_EQ(message(R"({"version": "1.0", "version": "1.0"})"), "file: invalid JSON: duplicate key \"version\"");
  EXPECT_EQ(message(R"({"model": )" + std::string(200, '[') + std::string(200, ']') + "}"),
            "file: invalid JSON: nesting deeper than 64");
  EXPECT_NE(message("{\"a\": \"\xFF\"}").find("UTF-8"), std::string::npos);
}

TEST(TokenizerJson, ByteFallbackOfAByteLevelVocabularyNeedsEveryByte) {
  json file = small();
  file["pre_tokenizer"] = file["decoder"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  file["model"]["byte_fallback"] = true;
  EXPECT_EQ(data_test::message_of(ExitCode::storage, [&] { parse_tokenizer_json(file.dump(), "file"); }),
            "file, model: byte_fallback in a byte-level vocabulary that lacks the byte 0x00");
}

class TokenizerFolder : public testing::Test {
 protected:
  TokenizerFolder() {
    json file = small();
    for (const char* name : {"<s>", "</s>", "<|im_end|>"}) {
      const std::size_t n = file["added_tokens"].size();
      file["added_tokens"].push_back({{"id", 4 + n}, {"content", name}, {"special", true}});
    }
    write("tokenizer.json", file);
  }
  void write(const char* name, const json& value) { data_test::write_text(folder_ / name, value.dump()); }
  std::pair<std::int64_t, std::int64_t> ids(const BoundaryIds& given = {}) const {
    const auto tokenizer = make_tokenizer(folder_ / "", given);
    return {tokenizer->bos_id(), tokenizer->eos_id()};
  }
  using Pair = std::pair<std::int64_t, std::int64_t>;

  data_test::TemporaryFolder folder_;
};

TEST_F(TokenizerFolder, FindsBosAndEosByTheRule) {
  EXPECT_EQ(ids(), Pair(5, 6));
  write("config.json", {{"eos_token_id", 1}});
  EXPECT_EQ(ids(), Pair(5, 1));
  write("generation_config.json", {{"bos_token_id", nullptr}, {"eos_token_id", {2, 3}}});
  EXPECT_EQ(ids(), Pair(5, 2));
  write("special_tokens_map.json", {{"eos_token", {{"content", "ab"}}}});
  EXPECT_EQ(ids(), Pair(5, 3));
  write("tokenizer_config.json", {{"eos_token", "<|im_end|>"}, {"bos_token", nullptr}});
  EXPECT_EQ(ids(), Pair(5, 7));
  EXPECT_EQ(ids({.bos = -1, .eos = 4}), Pair(-1, 4));
  EXPECT_EQ(make_tokenizer(folder_ / "tokenizer.json")->eos_id(), 7);
}

TEST_F(TokenizerFolder, RefusesIdsAndTokensThatAreNone) {
  const std::string folder = folder_ / "";
  write("generation_config.json", {{"eos_token_id", 8}});
  EXPECT_EQ(data_test::message_of(ExitCode::storage, [&] { ids(); }),
            folder + "generation_config.json: \"eos_token_id\" is 8, but tokenizer.json has the ids 0 to 7");
  write("tokenizer_config.json", {{"eos_token", "<end>"}});
  EXPECT_EQ(data_test::message_of(ExitCode::storage, [&] { ids(); }),
            folder + "tokenizer_config.json: \"eos_token\" is \"<end>\", which is no token of tokenizer.json");
  write("tokenizer_config.json", {{"eos_token", 3}});
  EXPECT_EQ(data_test::message_of(ExitCode::storage, [&] { ids(); }),
            folder + "tokenizer_config.json: \"eos_token\" is expected to be the text of a token, found number");
  std::filesystem::remove(folder_ / "tokenizer.json");
  EXPECT_EQ(data_test::message_of(ExitCode::config, [&] { ids(); }),
            "tokenizer \"" + folder + "\": the folder has neither tokenizer.json nor tokenizer.model");
}

}  // namespace
}  // namespace weft
