#include "data/train_tokenizer/merge_pairs.h"

#include <algorithm>
#include <array>
#include <queue>
#include <unordered_map>

#include "autograd/check.h"

namespace weft {

namespace {

using Pair = std::uint64_t;  // first id in the upper half: ordered as the tie rule says

Pair pair_of(std::uint32_t first, std::uint32_t second) {
  return (Pair{first} << 32) | second;
}

// All pairs that there ever were: how often each occurs now, and in which words it may.
class PairTable {
 public:
  struct Entry {
    Pair pair = 0;
    std::int64_t count = 0;
    bool touched = false;  // in this round of merging
    std::vector<std::uint32_t> words;
  };

  PairTable() : slots_(std::size_t{1} << 16, kEmpty) {}

  std::uint32_t index_of(Pair pair) {
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = hash(pair) & mask;
    for (; slots_[slot] != kEmpty; slot = (slot + 1) & mask) {
      if (entries_[slots_[slot]].pair == pair) return slots_[slot];
    }
    const auto index = static_cast<std::uint32_t>(entries_.size());
    slots_[slot] = index;
    entries_.push_back({.pair = pair, .count = 0, .touched = false, .words = {}});
    if (2 * entries_.size() > slots_.size()) grow();
    return index;
  }

  Entry& operator[](std::uint32_t index) { return entries_[index]; }
  std::size_t size() const { return entries_.size(); }

 private:
  static constexpr std::uint32_t kEmpty = 0xFFFFFFFFu;

  static std::uint64_t hash(Pair pair) {
    pair *= 0x9E3779B97F4A7C15u;
    return pair ^ (pair >> 29);
  }

  void grow() {
    slots_.assign(2 * slots_.size(), kEmpty);
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      std::size_t slot = hash(entries_[i].pair) & mask;
      while (slots_[slot] != kEmpty) slot = (slot + 1) & mask;
      slots_[slot] = static_cast<std::uint32_t>(i);
    }
  }

  std::vector<Entry> entries_;
  std::vector<std::uint32_t> slots_;
};

// A pair and how often it occurred when it was put into the queue; counts only fall after that.
struct Candidate {
  std::int64_t count = 0;
  Pair pair = 0;
  std::uint32_t index = 0;  // in the table
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

class MergeLearner {
 public:
  MergeLearner(const WordTable& words, const std::vector<std::string>& reserved,
               const std::vector<unsigned char>& first_tokens) {
    for (const std::string& text : reserved) add_token(text);
    reserved_ = static_cast<std::uint32_t>(reserved.size());
    std::array<std::uint32_t, 256> id_of_byte{};
    for (const unsigned char byte : first_tokens) id_of_byte[byte] = add_token(std::string(1, static_cast<char>(byte)));
    take_words(words, id_of_byte);
  }

  LearnedMerges run(std::int64_t vocabulary, std::int64_t min_count,
                    const std::function<void(std::int64_t)>& progress) {
    while (static_cast<std::int64_t>(result_.tokens.size()) < vocabulary && !queue_.empty()) {
      Candidate best = queue_.top();
      queue_.pop();
      const std::int64_t count = pairs_[best.index].count;
      if (count < std::max<std::int64_t>(min_count, 1)) {
        if (best.count == count) break;
        continue;
      }
      if (count != best.count) {
        best.count = count;
        queue_.push(best);
        continue;
      }
      merge(best);
      if (progress) progress(static_cast<std::int64_t>(result_.tokens.size()));
    }
    return std::move(result_);
  }

 private:
  struct Word {
    std::size_t begin = 0;  // in symbols_
    std::uint32_t length = 0;
    std::int64_t count = 0;
  };

  std::uint32_t add_token(const std::string& text) {
    const auto id = static_cast<std::uint32_t>(result_.tokens.size());
    ids_.emplace(text, id);
    result_.tokens.push_back(text);
    return id;
  }

  void take_words(const WordTable& words, const std::array<std::uint32_t, 256>& id_of_byte) {
    std::size_t symbols = 0;
    for (const WordTable::Entry& entry : words.entries()) symbols += entry.bytes;
    symbols_.reserve(symbols);
    words_.reserve(words.entries().size());
    for (const WordTable::Entry& entry : words.entries()) {
      if (entry.bytes < 2) continue;
      const auto word = static_cast<std::uint32_t>(words_.size());
      words_.push_back({symbols_.size(), entry.bytes, entry.count});
      for (const char c : entry.text()) symbols_.push_back(id_of_byte[static_cast<unsigned char>(c)]);
      const std::uint32_t* const s = &symbols_[words_.back().begin];
      for (std::uint32_t i = 0; i + 1 < entry.bytes; ++i) change(s[i], s[i + 1], word, entry.count);
    }
    push_touched();
  }

  // `count` more (or less) occurrences of a pair in a word.
  void change(std::uint32_t first, std::uint32_t second, std::uint32_t word, std::int64_t count) {
    const std::uint32_t index = pairs_.index_of(pair_of(first, second));
    PairTable::Entry& entry = pairs_[index];
    entry.count += count;
    if (count < 0) return;
    if (entry.words.empty() || entry.words.back() != word) entry.words.push_back(word);
    if (entry.touched) return;
    entry.touched = true;
    touched_.push_back(index);
  }

  void push_touched() {
    for (const std::uint32_t index : touched_) {
      PairTable::Entry& entry = pairs_[index];
      entry.touched = false;
      if (entry.count > 0) queue_.push({entry.count, entry.pair, index});
    }
    touched_.clear();
  }

  void merge(const Candidate& best) {
    const auto first = static_cast<std::uint32_t>(best.pair >> 32);
    const auto second = static_cast<std::uint32_t>(best.pair);
    const std::string text = result_.tokens[first] + result_.tokens[second];
    const auto known = ids_.find(text);
    if (known != ids_.end() && known->second < reserved_) return;
    const std::uint32_t token = known != ids_.end() ? known->second : add_token(text);
    result_.pairs.emplace_back(first, second);
    // The list goes: what is left of the pair (none but in words that get it anew) is counted from here on.
    const std::vector<std::uint32_t> words = std::move(pairs_[best.index].words);
    pairs_[best.index].words = {};
    for (const std::uint32_t word : words) merge_in(word, first, second, token);
    push_touched();
  }

  // Replaces the pair in a word, from left to right, and counts the pairs that go and come.
  void merge_in(std::uint32_t index, std::uint32_t first, std::uint32_t second, std::uint32_t token) {
    Word& word = words_[index];
    std::uint32_t* const s = &symbols_[word.begin];
    std::uint32_t out = 0;
    for (std::uint32_t i = 0; i < word.length; ++i) {
      if (i + 1 == word.length || s[i] != first || s[i + 1] != second) {
        s[out++] = s[i];
        continue;
      }
      change(first, second, index, -word.count);
      if (out > 0) {
        change(s[out - 1], first, index, -word.count);
        change(s[out - 1], token, index, word.count);
      }
      if (i + 2 < word.length) {
        change(second, s[i + 2], index, -word.count);
        change(token, s[i + 2], index, word.count);
      }
      s[out++] = token;
      ++i;
    }
    word.length = out;
  }

  LearnedMerges result_;
  std::uint32_t reserved_ = 0;
  std::unordered_map<std::string, std::uint32_t> ids_;
  std::vector<std::uint32_t> symbols_;  // of all words, each in its place
  std::vector<Word> words_;
  PairTable pairs_;
  std::priority_queue<Candidate> queue_;
  std::vector<std::uint32_t> touched_;  // pairs that occur more often than before this round
};

}  // namespace

LearnedMerges learn_merges(const WordTable& words, const std::vector<std::string>& reserved,
                           const std::vector<unsigned char>& first_tokens, std::int64_t vocabulary,
                           std::int64_t min_count, const std::function<void(std::int64_t)>& progress) {
  return MergeLearner(words, reserved, first_tokens).run(vocabulary, min_count, progress);
}

}  // namespace weft
