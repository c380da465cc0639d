// Against a plain implementation of the algorithm, and what its file is to tokenizer.json's reader.
#include "data/train_tokenizer/train_tokenizer.h"

#include <algorithm>
#include <functional>
#include <gtest/gtest.h>
#include <map>
#include <nlohmann/json.hpp>

#include "autograd/philox.h"
#include "data/dataset_test_support.h"
#include "data/storage/utf8.h"
#include "data/train_tokenizer/count_words.h"
#include "data/train_tokenizer/merge_pairs.h"

namespace weft {
namespace {

using namespace data_test;
using nlohmann::json;

// Counts all pairs anew for every merge.
LearnedMerges learn_plainly(const std::map<std::string, std::int64_t>& words, std::size_t vocabulary,
                            std::int64_t min_count) {
  LearnedMerges learned;
  for (int byte = 0; byte < 256; ++byte) learned.tokens.emplace_back(1, static_cast<char>(byte));
  std::vector<std::pair<std::vector<std::uint32_t>, std::int64_t>> split;
  for (const auto& [word, count] : words) {
    std::vector<std::uint32_t> ids;
    for (const char c : word) ids.push_back(static_cast<unsigned char>(c));
    split.emplace_back(ids, count);
  }
  while (learned.tokens.size() < vocabulary) {
    std::map<std::pair<std::uint32_t, std::uint32_t>, std::int64_t> counts;
    for (const auto& [ids, count] : split) {
      for (std::size_t i = 0; i + 1 < ids.size(); ++i) counts[{ids[i], ids[i + 1]}] += count;
    }
    auto best = counts.end();
    for (auto at = counts.begin(); at != counts.end(); ++at) {
      if (best == counts.end() || at->second > best->second) best = at;  // the first of equals
    }
    if (best == counts.end() || best->second < min_count) break;
    const auto pair = best->first;
    const std::string text = learned.tokens[pair.first] + learned.tokens[pair.second];
    const auto known = std::find(learned.tokens.begin(), learned.tokens.end(), text);
    const auto id = static_cast<std::uint32_t>(known - learned.tokens.begin());
    if (known == learned.tokens.end()) learned.tokens.push_back(text);
    learned.pairs.push_back(pair);
    for (auto& [ids, count] : split) {
      std::vector<std::uint32_t> merged;
      for (std::size_t i = 0; i < ids.size(); ++i) {
        const bool here = i + 1 < ids.size() && ids[i] == pair.first && ids[i + 1] == pair.second;
        merged.push_back(here ? id : ids[i]);
        if (here) ++i;
      }
      ids = merged;
    }
  }
  return learned;
}

std::vector<unsigned char> all_bytes() {
  std::vector<unsigned char> bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.push_back(static_cast<unsigned char>(byte));
  return bytes;
}

TEST(LearnMerges, IsThePlainAlgorithm) {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    RandomWords random(seed, RandomStream::test, 0);
    // Few letters: many ties, runs of one letter, and texts that are made in several ways.
    const std::uint64_t letters = 1 + seed % 4;
    std::map<std::string, std::int64_t> words;
    WordTable table;
    for (int i = 0; i < 60; ++i) {
      std::string word;
      for (std::uint64_t n = 1 + random.below(12); n > 0; --n) word += static_cast<char>('a' + random.below(letters));
      const auto count = static_cast<std::int64_t>(1 + random.below(5));
      words[word] += count;
      table.add(word, count);
    }
    const std::int64_t min_count = 1 + static_cast<std::int64_t>(seed % 3);
    const LearnedMerges expected = learn_plainly(words, 330, min_count);
    const LearnedMerges found = learn_merges(table, {}, all_bytes(), 330, min_count, {});
    EXPECT_EQ(found.pairs, expected.pairs) << seed;
    EXPECT_EQ(found.tokens, expected.tokens) << seed;
  }
}

TEST(LearnMerges, NothingSpellsAReservedToken) {
  WordTable words;
  words.add("abab", 10);
  const LearnedMerges learned = learn_merges(words, {"abab"}, all_bytes(), 300, 1, {});
  EXPECT_EQ(learned.tokens.size(), 258u);
  EXPECT_EQ(learned.tokens.back(), "ab");
}

class TrainTokenizer : public testing::Test {
 protected:
  void SetUp() override {
    RandomWords random(5, RandomStream::test, 0);
    const std::vector<std::string> stock = {"the", "loom",      "weaver's",   "WEAVER'S", "1234", "\u0434\u043e\u043c",
                                            "  ",  "caf\u00e9", "cafe\u0301", "x_1",      "\n\n", "\u6c34\u6d41",
                                            "!!"};
    std::string text;
    for (int i = 0; i < 20'000; ++i) text += stock[random.below(stock.size())] + (random.below(3) == 0 ? "" : " ");
    write_text(folder_ / "a.txt", text);
    write_text(folder_ / "b.jsonl", "{\"text\":\"the loom the loom\"}\nbroken\n{\"text\":\"\"}\n");
  }
  TrainTokenizerOptions options(const std::string& out) const {
    TrainTokenizerOptions options;
    options.corpus.inputs = {folder_ / "a.txt", folder_ / "b.jsonl"};
    options.out = folder_ / out;
    options.vocabulary = 320;
    return options;
  }
  std::string error_of(const std::function<void(TrainTokenizerOptions&)>& change) const {
    TrainTokenizerOptions changed = options("bad.json");
    change(changed);
    const std::string message = message_of(ExitCode::config, [&] { train_tokenizer(changed); });
    EXPECT_FALSE(std::filesystem::exists(changed.out) && changed.out.ends_with("bad.json"));
    return message;
  }

  TemporaryFolder folder_;
};

TEST_F(TrainTokenizer, WritesWhatIsRead) {
  for (const WordStyle style : {WordStyle::gpt2, WordStyle::llama3, WordStyle::qwen2}) {
    TrainTokenizerOptions o = options(fmt::format("{}/tokenizer.json", static_cast<int>(style)));
    o.style = style;
    o.special = {"<|endoftext|>", "<|user|>"};
    const TrainTokenizerResult result = train_tokenizer(o);
    EXPECT_EQ(result.vocabulary, 320);
    EXPECT_EQ(result.documents, 2);
    EXPECT_EQ(result.skipped, 2);
    const auto tokenizer = make_tokenizer(o.out);
    EXPECT_EQ(tokenizer->vocab_size(), 320);
    EXPECT_EQ(tokenizer->eos_id(), 0);
    EXPECT_EQ(tokenizer->token_id("<|user|>"), 1);
    EXPECT_EQ(tokenizer->encode("<|user|>", EncodeMode::markup), std::vector<std::int32_t>{1});
    const std::string text = "the weaver's LOOM 12345\n\n \u0434\u043e\u043c caf\u00e9 \U0001f600";
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
    EXPECT_LT(tokenizer->encode(text).size(), text.size() - 8);
    // No token crosses from a word into the next: single digits stay single.
    const bool joins_digits = tokenizer->encode("1234").size() < 4;
    EXPECT_EQ(joins_digits, style != WordStyle::qwen2);
  }
}

TEST_F(TrainTokenizer, TheSameBytesOnAnyThreads) {
  std::vector<std::string> files;
  for (const int threads : {1, 2, 5}) {
    TrainTokenizerOptions o = options(fmt::format("{}.json", threads));
    o.corpus.threads = threads;
    train_tokenizer(o);
    files.push_back(read_text(o.out));
  }
  EXPECT_EQ(files[0], files[1]);
  EXPECT_EQ(files[0], files[2]);
}

// Threads share a large file; where it is cut does not show.
TEST_F(TrainTokenizer, SlicesGiveWhatTheWholeGives) {
  std::string text = read_text(folder_ / "a.txt");
  std::string lines;
  for (int i = 0; lines.size() < 3'500'000; ++i) lines += text.substr(static_cast<std::size_t>(i) % 1000, 997) + "\n";
  lines = repair_utf8(lines);
  write_text(folder_ / "large.txt", lines);
  write_text(folder_ / "large.jsonl", json{{"text", lines}}.dump() + "\n");
  for (const WordStyle style : {WordStyle::gpt2, WordStyle::llama3, WordStyle::qwen2}) {
    TrainTokenizerOptions o = options("x.json");
    o.style = style;
    o.corpus.threads = 2;
    std::vector<std::map<std::string, std::int64_t>> counts;
    for (const char* name : {"large.txt", "large.jsonl"}) {
      o.corpus.inputs = {folder_ / name};
      const WordCounts words = count_words(o, {});
      EXPECT_EQ(words.documents, 1);
      EXPECT_EQ(words.text_bytes, static_cast<std::int64_t>(lines.size()));
      std::map<std::string, std::int64_t>& found = counts.emplace_back();
      for (const WordTable::Entry& entry : words.words.entries()) found[std::string(entry.text())] = entry.count;
    }
    EXPECT_EQ(counts[0], counts[1]);
  }
}

TEST_F(TrainTokenizer, EndsWhereNothingIsFrequent) {
  TrainTokenizerOptions o = options("few.json");
  o.corpus.inputs = {folder_ / "b.jsonl"};
  const TrainTokenizerResult result = train_tokenizer(o);
  EXPECT_EQ(result.vocabulary, 257 + result.merges);
  // "the", " loom", " the" and the tokens on the way, each at least twice in "the loom the loom".
  EXPECT_LT(result.vocabulary, 270);
  EXPECT_NE(describe(result).find("2 documents"), 0u);
}

TEST_F(TrainTokenizer, LongWordsAreCut) {
  write_text(folder_ / "long.txt", std::string(100'000, 'a'));
  TrainTokenizerOptions o = options("x.json");
  o.corpus.inputs = {folder_ / "long.txt"};
  const WordCounts counts = count_words(o, {});
  EXPECT_EQ(counts.words.size(), 2);
  EXPECT_EQ(counts.total, 98);
}

TEST_F(TrainTokenizer, BadOptions) {
  EXPECT_EQ(error_of([](auto& o) { o.vocabulary = 256; }),
            "--vocab 256: expected 257 (the bytes and 1 special token) to 16777216");
  EXPECT_EQ(error_of([&](auto& o) { o.out = folder_ / "tokenizer.model"; }),
            fmt::format("--out {}: expected the path of a file named *.json, e.g. tokenizer.json",
                        folder_ / "tokenizer.model"));
  write_text(folder_ / "there.json", "x");
  EXPECT_EQ(error_of([&](auto& o) { o.out = folder_ / "there.json"; }),
            fmt::format("--out {}: it exists; remove it or choose another", folder_ / "there.json"));
  EXPECT_EQ(read_text(folder_ / "there.json"), "x");
  EXPECT_EQ(error_of([](auto& o) { o.special = {"a"}; }),
            "--special \"a\": the vocabulary has this for a byte; choose a longer one");
  EXPECT_EQ(error_of([](auto& o) { o.special = {"<a>", "<a>"}; }), "--special \"<a>\" is given twice");
  EXPECT_EQ(error_of([](auto& o) { o.special = {""}; }), "--special: the token is empty");
  EXPECT_EQ(error_of([](auto& o) { o.min_count = 0; }), "--min-count 0: expected 1 or more");
  EXPECT_EQ(error_of([](auto& o) { o.max_words = 5; }),
            "more than 5 distinct words; read less of the text with --limit, or allow more with --max-words");
  EXPECT_NE(error_of([&](auto& o) { o.corpus.inputs = {folder_ / "none"}; }).find(folder_ / "none"), std::string::npos);
  write_text(folder_ / "invalid.txt", "\xFF\xFE");
  EXPECT_EQ(error_of([&](auto& o) { o.corpus.inputs = {folder_ / "invalid.txt"}; }),
            "the input has no text: 1 documents, 1 of them cannot be used");
}

}  // namespace
}  // namespace weft
