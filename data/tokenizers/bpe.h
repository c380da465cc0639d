// Byte-pair encoding of one piece of text.
//
// Of all adjacent pairs that have a merge, the one of lowest rank is joined, the leftmost of equals, until none is
// left.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace weft {

struct Merge {
  std::int32_t left = 0;
  std::int32_t right = 0;
  std::int32_t joined = 0;
};

// What a vocabulary does with characters that it lacks, and with pieces that it holds as a whole.
struct BpeRules {
  bool bytes = false;            // tokens are strings of bytes, not of characters
  bool byte_fallback = false;    // a missing character becomes the tokens of its bytes, if all of them exist
  bool fuse_unknown = false;     // a run of missing characters is one unknown token
  bool ignore_merges = false;    // a piece that is a token is that token
  std::int32_t unknown_id = -1;  // -1: missing characters give nothing
  std::array<std::int32_t, 256> byte_ids{};  // of <0x00> .. <0xFF> for byte_fallback, -1 where there is none
};

// Buffers of one thread, with what it has encoded lately. Results do not depend on its contents.
class BpeScratch;

class Bpe {
 public:
  // `tokens[id]` is the token's text; ids without one are empty. `merges` are in the order of their ranks; of equal
  // pairs the last counts.
  Bpe(std::vector<std::string> tokens, std::span<const Merge> merges, const BpeRules& rules);
  ~Bpe();

  const BpeRules& rules() const { return rules_; }
  const std::string& token(std::int32_t id) const { return tokens_[static_cast<std::size_t>(id)]; }
  std::int64_t vocab_size() const { return static_cast<std::int64_t>(tokens_.size()); }
  // -1 if there is none.
  std::int32_t find(std::string_view token) const;

  // Appends the ids of a piece of less than 2 GiB.
  void encode(std::string_view piece, BpeScratch& scratch, std::vector<std::int32_t>& ids) const;

 private:
  // Open addressing; `left` < 0 marks a free slot.
  struct Slot {
    std::int32_t left = -1;
    std::int32_t right = -1;
    std::uint32_t rank = 0;
    std::int32_t joined = -1;
  };
  static constexpr std::uint32_t kNoMerge = std::numeric_limits<std::uint32_t>::max();

  std::size_t slot_of(std::int32_t left, std::int32_t right) const;
  const Slot* merge_of(std::int32_t left, std::int32_t right) const;
  std::uint32_t rank_of(std::int32_t left, std::int32_t right) const;
  void encode_uncached(std::string_view piece, BpeScratch& scratch, std::vector<std::int32_t>& ids) const;
  void split_characters(std::string_view piece, std::vector<std::int32_t>& symbols) const;
  void join_short(std::vector<std::int32_t>& symbols, std::vector<std::uint32_t>& ranks) const;
  void join_long(std::vector<std::int32_t>& symbols, BpeScratch& scratch) const;

  std::vector<std::string> tokens_;
  std::unordered_map<std::string_view, std::int32_t> ids_;
  BpeRules rules_;
  std::array<std::int32_t, 256> single_bytes_;  // ids of tokens of one byte (of one ASCII character), -1: none
  std::vector<Slot> slots_;
  int shift_ = 0;
};

class BpeScratch {
 public:
  BpeScratch();

 private:
  friend class Bpe;
  static constexpr std::size_t kWords = 3;
  static constexpr std::size_t kIds = 8;
  static constexpr std::size_t kEntries = std::size_t{1} << 15;
  // The last piece of its hash, up to 24 bytes and 8 ids: one cache line.
  struct alignas(64) Entry {
    std::uint64_t key[kWords];
    std::int32_t ids[kIds];
    std::uint8_t bytes;  // 0: free
    std::uint8_t count;
  };
  // The linked list of symbols that long pieces are joined in.
  struct Link {
    std::int32_t previous;
    std::int32_t next;
  };

  std::unique_ptr<Entry[]> entries_;
  std::vector<std::int32_t> symbols_;
  std::vector<std::uint32_t> ranks_;
  std::vector<Link> links_;
  std::vector<std::uint64_t> heap_;
};

}  // namespace weft
