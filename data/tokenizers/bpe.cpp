#include "data/tokenizers/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "autograd/check.h"
#include "data/tokenizers/unicode_classes.h"

namespace weft {

namespace {

// Symbols up to which scanning for the lowest rank beats a heap.
constexpr std::size_t kShortSymbols = 48;

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

// Of a piece of 1 to 24 bytes, filled up with zeros.
struct Key {
  std::uint64_t words[3] = {};
};

Key key_of(std::string_view piece) {
  Key key;
  const char* const p = piece.data();
  const std::size_t n = piece.size();
  if (n >= 8) {
    std::memcpy(&key.words[0], p, 8);
    if (n > 16) {
      std::memcpy(&key.words[1], p + 8, 8);
      std::memcpy(&key.words[2], p + n - 8, 8);  // overlaps the second word: still one key for one piece
    } else {
      std::memcpy(&key.words[1], p + n - 8, 8);
    }
  } else if (n >= 4) {
    std::uint32_t low;
    std::uint32_t high;
    std::memcpy(&low, p, 4);
    std::memcpy(&high, p + n - 4, 4);
    key.words[0] = static_cast<std::uint64_t>(high) << 32 | low;
  } else {
    const auto byte = [p](std::size_t i) { return static_cast<std::uint64_t>(static_cast<unsigned char>(p[i])); };
    key.words[0] = byte(0) | byte(n / 2) << 8 | byte(n - 1) << 16;
  }
  return key;
}

}  // namespace

BpeScratch::BpeScratch() : entries_(new Entry[kEntries]()) {}

Bpe::~Bpe() = default;

Bpe::Bpe(std::vector<std::string> tokens, std::span<const Merge> merges, const BpeRules& rules)
    : tokens_(std::move(tokens)), rules_(rules) {
  ids_.reserve(tokens_.size());
  single_bytes_.fill(-1);
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    const std::string& token = tokens_[i];
    if (token.empty()) continue;
    const auto id = static_cast<std::int32_t>(i);
    ids_.emplace(token, id);
    const auto byte = static_cast<unsigned char>(token[0]);
    if (token.size() == 1 && (rules_.bytes || byte < 0x80)) single_bytes_[byte] = id;
  }
  const std::size_t slots = std::bit_ceil(std::max<std::size_t>(2 * merges.size(), 2));
  slots_.resize(slots);
  shift_ = 64 - std::countr_zero(slots);
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    slots_[slot_of(merge.left, merge.right)] = {merge.left, merge.right, static_cast<std::uint32_t>(rank),
                                                merge.joined};
  }
}

std::int32_t Bpe::find(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? -1 : found->second;
}

// The slot of the pair, or the free one where it would be: at most half of the table is used.
std::size_t Bpe::slot_of(std::int32_t left, std::int32_t right) const {
  const std::uint64_t pair = static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
  std::size_t slot = pair * 0x9E3779B97F4A7C15ull >> shift_;
  while (slots_[slot].left >= 0 && (slots_[slot].left != left || slots_[slot].right != right)) {
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return slot;
}

const Bpe::Slot* Bpe::merge_of(std::int32_t left, std::int32_t right) const {
  const Slot& slot = slots_[slot_of(left, right)];
  return slot.left < 0 ? nullptr : &slot;
}

std::uint32_t Bpe::rank_of(std::int32_t left, std::int32_t right) const {
  const Slot* const merge = merge_of(left, right);
  return merge == nullptr ? kNoMerge : merge->rank;
}

void Bpe::encode(std::string_view piece, BpeScratch& scratch, std::vector<std::int32_t>& ids) const {
  if (piece.empty()) return;
  if (piece.size() > sizeof(BpeScratch::Entry::key)) return encode_uncached(piece, scratch, ids);
  const Key key = key_of(piece);
  const std::uint64_t hash =
      mix(key.words[0] ^ 0x9E3779B97F4A7C15ull,
          key.words[1] ^ (key.words[2] * 0xC2B2AE3D27D4EB4Full) ^ (piece.size() << 56) ^ 0xA0761D6478BD642Full);
  BpeScratch::Entry& entry = scratch.entries_[hash % BpeScratch::kEntries];
  if (entry.bytes == piece.size() && std::memcmp(entry.key, key.words, sizeof key.words) == 0) {
    ids.insert(ids.end(), entry.ids, entry.ids + entry.count);
    return;
  }
  const std::size_t before = ids.size();
  encode_uncached(piece, scratch, ids);
  const std::size_t count = ids.size() - before;
  if (count > BpeScratch::kIds) return;
  std::memcpy(entry.key, key.words, sizeof key.words);
  std::copy(ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end(), entry.ids);
  entry.bytes = static_cast<std::uint8_t>(piece.size());
  entry.count = static_cast<std::uint8_t>(count);
}

void Bpe::encode_uncached(std::string_view piece, BpeScratch& scratch, std::vector<std::int32_t>& ids) const {
  if (rules_.ignore_merges) {
    if (const std::int32_t id = find(piece); id >= 0) {
      ids.push_back(id);
      return;
    }
  }
  WEFT_CHECK(piece.size() < std::numeric_limits<std::int32_t>::max(), "a piece of {} bytes", piece.size());
  std::vector<std::int32_t>& symbols = scratch.symbols_;
  symbols.clear();
  split_characters(piece, symbols);
  if (symbols.size() <= kShortSymbols) {
    join_short(symbols, scratch.ranks_);
  } else {
    join_long(symbols, scratch);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void Bpe::split_characters(std::string_view piece, std::vector<std::int32_t>& symbols) const {
  const char* const end = piece.data() + piece.size();
  bool unknown = false;  // an unknown token waits: the characters after it may join it
  for (const char* p = piece.data(); p != end;) {
    const auto byte = static_cast<unsigned char>(*p);
    const std::size_t bytes = rules_.bytes ? 1 : utf8_char_at(p).bytes;
    const std::string_view character(p, bytes);
    p += bytes;
    const std::int32_t id = bytes == 1 ? single_bytes_[byte] : find(character);
    if (id >= 0) {
      if (unknown) symbols.push_back(rules_.unknown_id);
      unknown = false;
      symbols.push_back(id);
      continue;
    }
    // As `tokenizers` does, a waiting unknown token stays behind bytes that come after it.
    const auto id_of_byte = [this](char c) { return rules_.byte_ids[static_cast<unsigned char>(c)]; };
    if (rules_.byte_fallback &&
        std::all_of(character.begin(), character.end(), [&](char c) { return id_of_byte(c) >= 0; })) {
      for (const char c : character) symbols.push_back(id_of_byte(c));
    } else if (rules_.unknown_id >= 0) {
      if (unknown && !rules_.fuse_unknown) symbols.push_back(rules_.unknown_id);
      unknown = true;
    }
  }
  if (unknown) symbols.push_back(rules_.unknown_id);
}

// ranks[i] is the rank of the pair of symbols i and i + 1.
void Bpe::join_short(std::vector<std::int32_t>& symbols, std::vector<std::uint32_t>& ranks) const {
  std::size_t n = symbols.size();
  if (n < 2) return;
  ranks.resize(n);
  for (std::size_t i = 0; i + 1 < n; ++i) ranks[i] = rank_of(symbols[i], symbols[i + 1]);
  for (;;) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < n; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == kNoMerge) break;
    symbols[best] = merge_of(symbols[best], symbols[best + 1])->joined;
    std::copy(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 2, symbols.begin() + static_cast<std::ptrdiff_t>(n),
              symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    std::copy(ranks.begin() + static_cast<std::ptrdiff_t>(best) + 1, ranks.begin() + static_cast<std::ptrdiff_t>(n) - 1,
              ranks.begin() + static_cast<std::ptrdiff_t>(best));
    --n;
    if (n < 2) break;
    if (best > 0) ranks[best - 1] = rank_of(symbols[best - 1], symbols[best]);
    if (best + 1 < n) ranks[best] = rank_of(symbols[best], symbols[best + 1]);
  }
  symbols.resize(n);
}

// A heap of (rank, position), lowest first. Entries are not removed when their symbols change: an entry is used only if
// the pair at its position still has its rank.
void Bpe::join_long(std::vector<std::int32_t>& symbols, BpeScratch& scratch) const {
  const std::size_t n = symbols.size();
  std::vector<BpeScratch::Link>& links = scratch.links_;
  std::vector<std::uint64_t>& heap = scratch.heap_;
  links.resize(n);
  heap.clear();
  const auto symbol = [&](std::int32_t i) -> std::int32_t& { return symbols[static_cast<std::size_t>(i)]; };
  const auto link = [&](std::int32_t i) -> BpeScratch::Link& { return links[static_cast<std::size_t>(i)]; };
  const auto entry = [](std::uint32_t rank, std::int32_t position) {
    return static_cast<std::uint64_t>(rank) << 32 | static_cast<std::uint32_t>(position);
  };
  const auto last = static_cast<std::int32_t>(n) - 1;
  for (std::int32_t i = 0; i <= last; ++i) {
    link(i) = {i - 1, i == last ? -1 : i + 1};
    if (i == last) break;
    const std::uint32_t rank = rank_of(symbol(i), symbol(i + 1));
    if (rank != kNoMerge) heap.push_back(entry(rank, i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  constexpr std::int32_t kGone = -1;
  const auto push = [&](std::int32_t left, std::int32_t right) {
    const std::uint32_t rank = rank_of(symbol(left), symbol(right));
    if (rank == kNoMerge) return;
    heap.push_back(entry(rank, left));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto rank = static_cast<std::uint32_t>(heap.back() >> 32);
    const auto at = static_cast<std::int32_t>(heap.back() & 0xFFFFFFFFu);
    heap.pop_back();
    if (symbol(at) == kGone || link(at).next < 0) continue;
    const std::int32_t right = link(at).next;
    const Slot* const merge = merge_of(symbol(at), symbol(right));
    if (merge == nullptr || merge->rank != rank) continue;
    symbol(at) = merge->joined;
    symbol(right) = kGone;
    const std::int32_t next = link(right).next;
    link(at).next = next;
    if (next >= 0) {
      link(next).previous = at;
      push(at, next);
    }
    if (link(at).previous >= 0) push(link(at).previous, at);
  }
  symbols.erase(std::remove(symbols.begin(), symbols.end(), kGone), symbols.end());
}

}  // namespace weft
