// Keys and values that inference keeps: pages of kKeyTile tokens, one set for each sequence. Full attention grows page
// by page; a window keeps a ring of pages, plus the pages of its sink tokens, so that memory stays constant.
#pragma once

#include <vector>

#include "modules/families/attention/attention.h"

namespace weft {

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
                const AttentionOptions& options, DType dtype, CachedValues values = CachedValues::beside_keys);
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

  // k [L, H_KV, D] (rotated) and v [L, H_KV, D_V] of the next L tokens of a sequence. Values inside keys are not read.
  // The pages lie where the first tokens did: `stream` is theirs.
  void append(std::int64_t n, const Tensor& k, const Tensor& v, const Stream& stream = {});
  // Forgets sequence n, whose next token is its first; the pages stay for it.
  void restart(std::int64_t n) { sequences_[static_cast<std::size_t>(n)].length = 0; }
  // What kernels read; valid until the next append.
  CachedKeys keys(std::int64_t n) const;
  // A defect (Error, internal) if attention of this shape and options cannot use the cache.
  void check_fits(DType dtype, const AttentionShape& shape, const AttentionOptions& options) const;

 private:
  struct Sequence {
    std::vector<Tensor> pages;
    std::vector<const void*> addresses;
    Tensor device_addresses;  // the same for kernels on CUDA
    std::int32_t length = 0;
  };
  void make_room(Sequence& sequence, std::int64_t tokens);
  void upload_addresses(Sequence& sequence);
  std::size_t slot(std::int64_t page) const;
  static std::int64_t page_elements(std::int64_t H_KV, std::int64_t D, std::int64_t D_V, CachedValues values) {
    return H_KV * kKeyTile * (values == CachedValues::inside_keys ? D : D + D_V);
  }

  std::int64_t H_KV_, D_, D_V_;
  AttentionOptions options_;
  DType dtype_;
  CachedValues values_;
  Stream stream_;                      // where the pages are
  std::shared_ptr<Allocator> memory_;  // of the pages
  std::int64_t pinned_;                // pages that stay
  std::int64_t ring_;                  // pages that take turns
  std::vector<Sequence> sequences_;
};

}  // namespace weft
