// Keys and values that inference keeps: pages of kKeyTile tokens, one set for each sequence. Full attention grows page
// by page; a window keeps a ring of pages, plus the pages of its sink tokens, so that memory stays constant.
#pragma once

#include <span>
#include <vector>

#include "autograd/place.h"
#include "modules/families/attention/attention.h"

namespace weft {

// The pages of N sequences in device memory.
struct CachedTable {
  const void* const* pages;  // [N, capacity]: of each sequence as CachedKeys has them
  std::int64_t capacity;
  std::int32_t pinned, ring;
  CachedValues values;
};

// New tokens of one sequence, for the pages of a cache in device memory.
struct CacheAppend {
  DType dtype;
  std::int64_t tokens, H_KV, D, D_V;
  CachedKeys cache;   // as before them, with room for them
  const void *k, *v;  // [tokens, H_KV, D], [tokens, H_KV, D_V]
};
void append_to_pages_cuda(const CacheAppend& args, const Launch& launch);

class KeyValueCache {
 public:
  // H_KV heads, keys of width D, values of width D_V. The options' window and sink tokens decide what is kept. Values
  // inside keys (D_V <= D) take no memory of their own.
  KeyValueCache(std::int64_t sequences, std::int64_t H_KV, std::int64_t D, std::int64_t D_V,
                const AttentionOptions& options, const Place& place, CachedValues values = CachedValues::beside_keys);
  KeyValueCache(const KeyValueCache& other);  // deep
  KeyValueCache& operator=(const KeyValueCache&) = delete;

  std::int64_t sequences() const { return static_cast<std::int64_t>(sequences_.size()); }
  // Tokens of a sequence seen so far.
  std::int32_t length(std::int64_t n) const { return sequences_[static_cast<std::size_t>(n)].length; }
  std::size_t bytes() const;
  // Bytes that one sequence of `length` tokens takes.
  static double bytes_for(std::int64_t length, std::int64_t H_KV, std::int64_t D, std::int64_t D_V,
                          const AttentionOptions& options, DType dtype,
                          CachedValues values = CachedValues::beside_keys);

  // Tokens that a sequence of `length` tokens may have room for after steps with make_room().
  static std::int64_t room_for(std::int64_t length);

  // k [L, H_KV, D] (rotated) and v [L, H_KV, D_V] of the next L tokens of a sequence. Values inside keys are not read.
  void append(std::int64_t n, const Tensor& k, const Tensor& v);
  // The same for all sequences: rows [rows[n], rows[n + 1]) are those of sequence n.
  void append(std::span<const std::int32_t> rows, const Tensor& k, const Tensor& v);
  // Room for one more token of each sequence. False if table() is another than before. On a device memory is taken
  // ahead, so that the driver is seldom asked.
  bool make_room();
  // One token has been appended to each sequence by a kernel that knows its position.
  void count_token();
  // Forgets sequence n, whose next token is its first; the pages stay for it.
  void restart(std::int64_t n) { sequences_[static_cast<std::size_t>(n)].length = 0; }
  // What kernels read; valid until the next append.
  CachedKeys keys(std::int64_t n) const;
  // On a device; stays where it is until more pages are needed.
  CachedTable table() const;
  // A query sees keys in this many positions at most.
  std::int64_t visible_positions() const;
  // A defect (Error, internal) if attention of this shape and options cannot use the cache.
  void check_fits(DType dtype, const AttentionShape& shape, const AttentionOptions& options) const;

 private:
  struct Sequence {
    std::vector<Tensor> pages;
    std::vector<const void*> addresses;
    std::int32_t length = 0;
  };
  // For what add_pages() has made room for.
  void put(std::int64_t n, const Tensor& k, const Tensor& v);
  // Whether pages were added; `spare` of them at most beyond those that the tokens need.
  bool add_pages(Sequence& sequence, std::int64_t tokens, std::int64_t spare);
  void upload_table();
  std::int64_t most_pages() const { return pinned_ + ring_; }
  std::size_t slot(std::int64_t page) const;
  static std::int64_t page_elements(std::int64_t H_KV, std::int64_t D, std::int64_t D_V, CachedValues values) {
    return H_KV * kKeyTile * (values == CachedValues::inside_keys ? D : D + D_V);
  }

  std::int64_t H_KV_, D_, D_V_;
  AttentionOptions options_;
  Place place_;  // of the pages
  CachedValues values_;
  std::int64_t pinned_;  // pages that stay
  std::int64_t ring_;    // pages that take turns
  std::vector<Sequence> sequences_;
  Tensor table_;               // i64 [N, capacity], on a device
  std::int64_t capacity_ = 0;  // pages that the table has room for
};

}  // namespace weft
