// Against what the Python package `tokenizers` does: tests/golden/make_tokenizers.py made the files.
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <thread>

#include "data/storage/file.h"
#include "data/storage/json.h"
#include "data/tokenizers/stream_decoder.h"
#include "data/tokenizers/tokenizer.h"

namespace weft {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;

const std::string kFolder = "tests/golden/tokenizers/";

class TokenizerGolden : public testing::TestWithParam<const char*> {
 protected:
  const std::unique_ptr<Tokenizer> tokenizer_ = make_tokenizer(kFolder + GetParam() + ".json");
  const std::vector<std::string> lines_ = read_json_file(kFolder + "lines.json").get<std::vector<std::string>>();
  const json expected_ = read_json_file(kFolder + GetParam() + ".expected.json");

  // Entry `i` of what was stored only where it differs from `otherwise`.
  Ids or_else(const char* key, std::size_t i, const Ids& otherwise) const {
    const std::string index = std::to_string(i);
    return expected_[key].contains(index) ? expected_[key][index].get<Ids>() : otherwise;
  }
};

TEST_P(TokenizerGolden, EncodesAndDecodesEveryLine) {
  ASSERT_GT(lines_.size(), 140u);
  std::size_t tokens = 0;
  for (std::size_t i = 0; i < lines_.size(); ++i) {
    const Ids text = expected_["text"][i].get<Ids>();
    const Ids markup = or_else("markup", i, text);
    ASSERT_EQ(tokenizer_->encode(lines_[i]), text) << "line " << i << ": " << lines_[i];
    ASSERT_EQ(tokenizer_->encode(lines_[i], EncodeMode::markup), markup) << "line " << i << ": " << lines_[i];
    ASSERT_EQ(tokenizer_->encode(lines_[i], EncodeMode::prompt), or_else("prompt", i, markup)) << "line " << i;
    ASSERT_EQ(tokenizer_->decode(markup), expected_["decoded"][i].get<std::string>()) << "line " << i;
    std::vector<std::uint16_t> narrow;
    tokenizer_->encode(lines_[i], narrow);
    ASSERT_EQ(Ids(narrow.begin(), narrow.end()), text);
    tokens += text.size();
  }
  EXPECT_GT(tokens, 3000u);
  EXPECT_FALSE(expected_["markup"].empty());
}

TEST_P(TokenizerGolden, StreamsTheSameText) {
  for (std::size_t i = 0; i < lines_.size(); ++i) {
    const Ids ids = or_else("markup", i, expected_["text"][i].get<Ids>());
    StreamDecoder decoder(*tokenizer_);
    std::string text;
    for (const std::int32_t id : ids) text += decoder.push(id);
    text += decoder.finish();
    EXPECT_EQ(text, tokenizer_->decode(ids)) << "line " << i;
  }
}

TEST_P(TokenizerGolden, ManyThreadsShareOneTokenizer) {
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t i = 0; i < lines_.size(); ++i) {
        const std::size_t line = (i * (t + 1) + t) % lines_.size();
        if (tokenizer_->encode(lines_[line]) != expected_["text"][line].get<Ids>()) ++wrong[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(wrong.size(), 0));
}

TEST_P(TokenizerGolden, TheFingerprintIsOfTheContentNotOfTheSpelling) {
  const std::string path = kFolder + GetParam() + ".json";
  const std::string pretty = read_json_file(path).dump(2);
  const auto same = parse_tokenizer_json(pretty, "pretty");
  EXPECT_EQ(same->fingerprint(), tokenizer_->fingerprint());
  EXPECT_EQ(same->file(), pretty);
  EXPECT_EQ(tokenizer_->file(), read_small_file(path, 1 << 20));
  json other = read_json_file(path);
  other["model"]["merges"].erase(other["model"]["merges"].size() - 1);
  EXPECT_NE(parse_tokenizer_json(other.dump(), "other")->fingerprint(), tokenizer_->fingerprint());
  EXPECT_NE(parse_tokenizer_json(pretty, "eos", {.eos = 1})->fingerprint(),
            parse_tokenizer_json(pretty, "eos", {.eos = 2})->fingerprint());
}

INSTANTIATE_TEST_SUITE_P(Styles, TokenizerGolden,
                         testing::Values("gpt2", "llama3", "qwen2", "smollm", "marks", "llama2", "metaspace"),
                         [](const auto& style) { return std::string(style.param); });

TEST(TokenizerGoldenIds, KnowsItsTokens) {
  const auto gpt2 = make_tokenizer(kFolder + "gpt2.json");
  EXPECT_EQ(gpt2->name(), "tokenizer.json");
  EXPECT_EQ(gpt2->vocab_size(), 1200);
  EXPECT_EQ(gpt2->eos_id(), 0);
  EXPECT_EQ(gpt2->bos_id(), -1);
  EXPECT_TRUE(gpt2->is_special(0));
  EXPECT_FALSE(gpt2->is_special(1));
  EXPECT_EQ(gpt2->token_id("<|endoftext|>"), 0);
  EXPECT_EQ(gpt2->token_id("no such token"), -1);
  EXPECT_EQ(gpt2->text_bytes(0), 0);
  // As the file spells it, with U+0120 for the space.
  const auto the = static_cast<std::int32_t>(gpt2->token_id("\u0120the"));
  ASSERT_GT(the, 0);
  EXPECT_EQ(gpt2->text_bytes(the), 4);
  EXPECT_EQ(gpt2->decode(Ids{the, 0, the}), " the the");
  const auto llama3 = make_tokenizer(kFolder + "llama3.json");
  EXPECT_EQ(llama3->bos_id(), llama3->token_id("<|begin_of_text|>"));
  EXPECT_EQ(llama3->eos_id(), llama3->token_id("<|end_of_text|>"));
  EXPECT_EQ(llama3->encode("", EncodeMode::prompt), Ids{static_cast<std::int32_t>(llama3->bos_id())});
  const auto llama2 = make_tokenizer(kFolder + "llama2.json");
  EXPECT_EQ(llama2->text_bytes(0), 0);
  EXPECT_EQ(llama2->text_bytes(static_cast<std::int32_t>(llama2->token_id("<0xE2>"))), 1);
  EXPECT_EQ(llama2->text_bytes(static_cast<std::int32_t>(llama2->token_id("\u2581"))), 1);
}

TEST(TokenizerGoldenIds, InvalidUtf8BecomesReplacementCharacters) {
  const auto gpt2 = make_tokenizer(kFolder + "gpt2.json");
  EXPECT_EQ(gpt2->encode("a\xFF\xE2\x82z"), gpt2->encode("a\uFFFD\uFFFDz"));
  const auto llama2 = make_tokenizer(kFolder + "llama2.json");
  const auto byte = static_cast<std::int32_t>(llama2->token_id("<0xE2>"));
  EXPECT_EQ(llama2->decode(Ids{byte, byte, static_cast<std::int32_t>(llama2->token_id("x"))}), "\uFFFD\uFFFDx");
}

}  // namespace
}  // namespace weft
