#include "data/train_tokenizer/train_tokenizer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <set>

#include "autograd/check.h"
#include "data/storage/file.h"
#include "data/storage/text.h"
#include "data/storage/utf8.h"
#include "data/tokenizers/byte_alphabet.h"
#include "data/tokenizers/tokenizer.h"
#include "data/train_tokenizer/count_words.h"
#include "data/train_tokenizer/merge_pairs.h"

namespace weft {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::int64_t kMaxVocabulary = std::int64_t{1} << 24;
constexpr std::size_t kMaxSpecialBytes = 1024;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check_special(const TrainTokenizerOptions& options) {
  std::set<std::string> seen;
  for (const std::string& token : options.special) {
    const std::string shown = printable(token);
    if (token.empty()) config_error("--special: the token is empty");
    if (token.size() > kMaxSpecialBytes || valid_utf8_prefix(token) != token.size()) {
      config_error("--special \"{}\": expected at most {} bytes of UTF-8", shown, kMaxSpecialBytes);
    }
    if (spelled_bytes(token).value_or("").size() == 1) {
      config_error("--special \"{}\": the vocabulary has this for a byte; choose a longer one", shown);
    }
    if (!seen.insert(token).second) config_error("--special \"{}\" is given twice", shown);
  }
}

void check_options(const TrainTokenizerOptions& options) {
  WEFT_CHECK(
      options.style == WordStyle::gpt2 || options.style == WordStyle::llama3 || options.style == WordStyle::qwen2,
      "words are not counted in the style {}", static_cast<int>(options.style));
  check_special(options);
  const auto least = static_cast<std::int64_t>(256 + options.special.size());
  if (options.vocabulary < least || options.vocabulary > kMaxVocabulary) {
    config_error("--vocab {}: expected {} (the bytes and {} special token{}) to {}", options.vocabulary, least,
                 options.special.size(), options.special.size() == 1 ? "" : "s", kMaxVocabulary);
  }
  if (options.min_count < 1) config_error("--min-count {}: expected 1 or more", options.min_count);
  if (options.limit_bytes < 0) config_error("--limit {}: expected 0 (no limit) or more", options.limit_bytes);
  if (fs::path(options.out).extension() != ".json") {
    config_error("--out {}: expected the path of a file named *.json, e.g. tokenizer.json", options.out);
  }
  std::error_code error;
  if (fs::exists(options.out, error)) config_error("--out {}: it exists; remove it or choose another", options.out);
}

// Bytes in the order of the characters that spell them, which is the order of their ids in vocabularies made elsewhere.
std::vector<unsigned char> bytes_as_spelled() {
  std::vector<std::pair<std::string, unsigned char>> spelled;
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    spelled.emplace_back(spell_bytes(std::string_view(&c, 1)), static_cast<unsigned char>(byte));
  }
  // UTF-8 sorts as the code points do.
  std::sort(spelled.begin(), spelled.end());
  std::vector<unsigned char> bytes;
  for (const auto& [spelling, byte] : spelled) bytes.push_back(byte);
  return bytes;
}

std::string to_tokenizer_json(const TrainTokenizerOptions& options, const LearnedMerges& learned) {
  ByteLevelVocabulary vocabulary{.style = options.style};
  for (std::size_t id = 0; id < learned.tokens.size(); ++id) {
    const bool is_special = id < options.special.size();
    const auto number = static_cast<std::int64_t>(id);
    vocabulary.tokens.push_back({number, is_special ? learned.tokens[id] : spell_bytes(learned.tokens[id])});
    if (is_special) vocabulary.added.push_back({.id = number, .content = learned.tokens[id]});
  }
  for (const auto& [first, second] : learned.pairs) {
    vocabulary.merges.push_back(vocabulary.tokens[first].content + " " + vocabulary.tokens[second].content);
  }
  return write_tokenizer_json(vocabulary);
}

}  // namespace

TrainTokenizerResult train_tokenizer(const TrainTokenizerOptions& options,
                                     const std::function<void(const TrainTokenizerProgress&)>& progress) {
  check_options(options);
  const auto report = [&](const char* phase, std::int64_t done, std::int64_t total) {
    if (progress) progress({phase, done, total});
  };
  Clock::time_point start = Clock::now();
  const WordCounts counts =
      count_words(options, [&](std::int64_t bytes) { report("reading", bytes, options.limit_bytes); });
  TrainTokenizerResult result{.file = options.out,
                              .documents = counts.documents,
                              .skipped = counts.skipped,
                              .text_bytes = counts.text_bytes,
                              .words = counts.total,
                              .distinct_words = counts.words.size(),
                              .reading_seconds = seconds_since(start)};
  start = Clock::now();
  const LearnedMerges learned =
      learn_merges(counts.words, options.special, bytes_as_spelled(), options.vocabulary, options.min_count,
                   [&](std::int64_t tokens) { report("merging", tokens, options.vocabulary); });
  result.merging_seconds = seconds_since(start);
  result.vocabulary = static_cast<std::int64_t>(learned.tokens.size());
  result.merges = static_cast<std::int64_t>(learned.pairs.size());
  std::string text = to_tokenizer_json(options, learned);
  parse_tokenizer_json(text, options.out);  // nothing is written that cannot be read
  const fs::path folder = fs::path(options.out).parent_path();
  std::error_code error;
  if (!folder.empty()) fs::create_directories(folder, error);
  write_file_atomically(options.out, text);
  return result;
}

std::string describe(const TrainTokenizerResult& result) {
  std::string text = fmt::format("{}: {} tokens, {} of them merges\n", result.file, result.vocabulary, result.merges);
  text += fmt::format("{} documents, {} bytes of text, {} words, {} distinct\n", result.documents, result.text_bytes,
                      result.words, result.distinct_words);
  if (result.skipped > 0) text += fmt::format("skipped: {} documents\n", result.skipped);
  text += fmt::format("reading {:.1f} s ({:.1f} MB/s), merging {:.1f} s", result.reading_seconds,
                      static_cast<double>(result.text_bytes) / 1e6 / std::max(result.reading_seconds, 1e-9),
                      result.merging_seconds);
  return text;
}

}  // namespace weft
