// Distinct words and how often each occurs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

namespace weft {

// A hash table with the words' bytes in blocks; about 40 bytes a word and the word itself.
class WordTable {
 public:
  struct Entry {
    std::uint64_t hash = 0;
    const char* word = nullptr;
    std::uint32_t bytes = 0;
    std::int64_t count = 0;
    std::string_view text() const { return {word, bytes}; }
  };

  WordTable() : slots_(kLeastSlots, kEmpty) {}

  void add(std::string_view word, std::int64_t count) { add(word, std::hash<std::string_view>()(word), count); }
  void add(const WordTable& other) {
    for (const Entry& entry : other.entries_) add(entry.text(), entry.hash, entry.count);
  }

  const std::vector<Entry>& entries() const { return entries_; }
  std::int64_t size() const { return static_cast<std::int64_t>(entries_.size()); }
  void clear() { *this = WordTable(); }

 private:
  static constexpr std::size_t kLeastSlots = std::size_t{1} << 12;
  static constexpr std::size_t kBlockBytes = std::size_t{1} << 20;
  static constexpr std::uint32_t kEmpty = 0xFFFFFFFFu;

  void add(std::string_view word, std::uint64_t hash, std::int64_t count) {
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = hash & mask;
    for (; slots_[slot] != kEmpty; slot = (slot + 1) & mask) {
      Entry& entry = entries_[slots_[slot]];
      if (entry.hash == hash && entry.text() == word) {
        entry.count += count;
        return;
      }
    }
    slots_[slot] = static_cast<std::uint32_t>(entries_.size());
    entries_.push_back({hash, store(word), static_cast<std::uint32_t>(word.size()), count});
    if (2 * entries_.size() > slots_.size()) grow();
  }

  const char* store(std::string_view word) {
    if (word.size() > room_) {
      room_ = std::max(kBlockBytes, word.size());
      blocks_.push_back(std::make_unique<char[]>(room_));
      free_ = blocks_.back().get();
    }
    char* const place = free_;
    std::memcpy(place, word.data(), word.size());
    free_ += word.size();
    room_ -= word.size();
    return place;
  }

  void grow() {
    slots_.assign(2 * slots_.size(), kEmpty);
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      std::size_t slot = entries_[i].hash & mask;
      while (slots_[slot] != kEmpty) slot = (slot + 1) & mask;
      slots_[slot] = static_cast<std::uint32_t>(i);
    }
  }

  std::vector<Entry> entries_;
  std::vector<std::uint32_t> slots_;  // numbers of entries; a power of two of them, at most half full
  std::vector<std::unique_ptr<char[]>> blocks_;
  char* free_ = nullptr;
  std::size_t room_ = 0;
};

}  // namespace weft
