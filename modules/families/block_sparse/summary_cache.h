// Summaries of blocks of tokens (compressed keys and values, block means) as inference makes them: a cache of those
// that are whole, and the tokens that the next ones are made of.
#pragma once

#include <vector>

#include "autograd/tape.h"
#include "modules/families/attention/key_value_cache.h"
#include "modules/families/block_sparse/block_sparse_attention.h"

namespace weft {

class SummaryCache {
 public:
  // Tokens have k [H, D] and v [H, D_V], and so have summaries; D_V may be 0.
  SummaryCache(std::int64_t sequences, std::int64_t H, std::int64_t D, std::int64_t D_V, KeySpan span,
               const Place& place);
  SummaryCache(const SummaryCache& other);  // deep
  SummaryCache& operator=(const SummaryCache&) = delete;

  // For sequences in which blocks become whole, the tokens from the first of those on: kept ones, then new ones.
  struct Pending {
    Tensor k, v;
    DocumentsPtr documents;
    std::vector<std::int32_t> positions;  // of the first token of every block that has become whole
  };
  // Takes the next tokens, k [L, H, D] and v [L, H, D_V]. The caller makes summaries of the pending tokens, one for
  // each whole block as compress() does, and hands them to append().
  Pending extend(Tape& tape, const Tensor& k, const Tensor& v, const Documents& documents);
  void append(const Pending& pending, const Tensor& k, const Tensor& v);

  const KeyValueCache& summaries() const { return summaries_; }
  std::size_t bytes() const;
  // Bytes that one sequence of `length` tokens takes.
  static double bytes_for(std::int64_t length, std::int64_t H, std::int64_t D, std::int64_t D_V, KeySpan span,
                          DType dtype);

 private:
  std::int64_t H_, D_, D_V_;
  KeySpan span_;
  Place place_;
  KeyValueCache summaries_;
  Tensor k_tail_, v_tail_;             // [N, l - 1, H, D], [N, l - 1, H, D_V]: tokens of blocks that are not whole
  std::vector<std::int32_t> lengths_;  // [N] tokens so far
};

}  // namespace weft
