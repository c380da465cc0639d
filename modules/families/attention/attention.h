// Softmax attention: causal, grouped-query, with optional window, sink tokens, learned sink logits, logit soft-capping,
// packed documents and an anchor token (FlashAttention, arXiv:2205.14135 and 2307.08691; sinks, arXiv:2309.17453).
//
// T query rows, S key rows, H_Q query heads, H_KV key/value heads, G = H_Q / H_KV heads of a group, D width of queries
// and keys, D_V width of values. Query i sees the keys
//   V(i) = { j : same document, pos(j) <= pos(i), pos(i) - pos(j) < window or pos(j) < sink_tokens }
// and, in an anchored row, key 0 of the row, which counts as a sink token of every document.
#pragma once

#include <array>
#include <vector>

#include "autograd/documents.h"
#include "autograd/tape.h"

namespace weft {

struct AttentionOptions {
  double scale = 0.0;            // of the logits; 0 = D^(-1/2)
  std::int32_t window = 0;       // keys a query sees, itself included; 0 = all
  std::int32_t sink_tokens = 0;  // first tokens of a document that never leave the window
  double soft_cap = 0.0;         // c: logits a become c tanh(a / c); 0 = off
};

// Tokens of a page of cached keys and of a tile of keys. Tiles start at positions that are multiples of it, wherever
// the keys lie, so that splitting a sequence into calls does not change a bit.
inline constexpr std::int32_t kKeyTile = 64;

enum class CachedValues : std::uint8_t { beside_keys, inside_keys };

// Keys kept from earlier calls, positions [0, length) less what a window has left behind. Page t holds positions
// [t kKeyTile, (t + 1) kKeyTile): first k [H_KV, kKeyTile, D], then v [H_KV, kKeyTile, D_V] unless a value is the first
// D_V numbers of its key. The first `pinned` pages stay; the others share `ring` slots after them in turn.
struct CachedKeys {
  const void* const* pages = nullptr;
  std::int32_t pinned = 0;
  std::int32_t ring = 0;
  std::int32_t length = 0;
  CachedValues values = CachedValues::beside_keys;

  const void* page(std::int32_t t) const { return pages[t < pinned ? t : pinned + (t - pinned) % ring]; }
};

// One document: where its queries and keys lie and which positions they have.
struct AttentionDocument {
  std::int32_t query_row = 0, query_count = 0, query_position = 0;  // rows of q, o, lse
  std::int32_t key_row = 0, key_count = 0, key_position = 0;        // rows of k, v
  std::int32_t anchor_row = -1;  // row of k, v of one more key at position 0, or -1; not with cached keys
  CachedKeys cached;             // positions before key_position; forward only
};

// Rows of the CUDA kernels' tiles: of queries in the forward and in the backward pass, and of keys.
inline constexpr std::int32_t kForwardRows = 128;
inline constexpr std::int32_t kBackwardRows = 64;
inline constexpr std::int32_t kKeyRows = 128;

// The same documents where CUDA kernels read them: query_row and key_row are cu_seqlens, both positions pos0, and every
// document after the first of an anchored row has its anchor in row 0.
struct AttentionRow {
  const std::int32_t* cu_seqlens = nullptr;  // [N + 1]
  const std::int32_t* pos0 = nullptr;        // [N]
  std::int64_t document_count = 0;
  bool anchored = false;
  ChunkView long_tiles;   // kForwardRows = kKeyRows
  ChunkView short_tiles;  // kBackwardRows
};

struct AttentionShape {
  std::int64_t T, S, H_Q, H_KV, D, D_V;
};

struct AttentionForward {
  DType dtype;
  AttentionShape shape;
  AttentionOptions options;
  const AttentionDocument* documents;
  std::int64_t document_count;
  const void* q;           // [T, H_Q, D], rotated
  const void* k;           // [S, H_KV, D], rotated
  const void* v;           // [S, H_KV, D_V]
  const void* sink_logit;  // [H_Q] or null: enlarges the denominator only
  void* o;                 // [T, H_Q, D_V]; 0 for a query that sees nothing
  void* lse;               // [T, H_Q] natural log of the denominator; -infinity for a query that sees nothing
  AttentionRow row{};      // on CUDA instead of `documents`
};
// On CUDA: q, k, v, o bf16 or f32, everything else f32. Without a row, `documents` continue cached keys, whose pages
// are a list in device memory.
void attention_forward_cuda(const AttentionForward& args, const Launch& launch);
std::size_t attention_forward_cuda_workspace(const AttentionForward& args);

struct AttentionBackward {
  DType dtype;
  AttentionShape shape;
  AttentionOptions options;
  const AttentionDocument* documents;
  std::int64_t document_count;
  const void *q, *k, *v, *sink_logit;  // as in the forward pass
  const void *o, *lse;                 // its results
  const void* d_o;                     // [T, H_Q, D_V]
  const void* dlse;                    // [T, H_Q] or null
  void* dq;                            // [T, H_Q, D] or null
  Write write_dq;
  void* dk;  // [S, H_KV, D] or null
  Write write_dk;
  void* dv;  // [S, H_KV, D_V] or null
  Write write_dv;
  void* dsink_logit;  // [H_Q] or null
  Write write_dsink_logit;
  AttentionRow row{};  // on CUDA instead of `documents`
};
void attention_backward_cuda(const AttentionBackward& args, const Launch& launch);
std::size_t attention_backward_cuda_workspace(const AttentionBackward& args);

// q [T, H_Q, D], k [T, H_KV, D], v [T, H_KV, D_V], optional sink_logit [H_Q] (an empty Var = none) -> o [T, H_Q, D_V].
Var attention(Tape& tape, const Var& q, const Var& k, const Var& v, const Var& sink_logit,
              const DocumentsPtr& documents, const AttentionOptions& options = {});

// The same with lse [T, H_Q] as a second differentiable output, for merging with attention over other keys.
std::array<Var, 2> attention_with_lse(Tape& tape, const Var& q, const Var& k, const Var& v, const Var& sink_logit,
                                      const DocumentsPtr& documents, const AttentionOptions& options = {});

class KeyValueCache;

// Inference: document n continues sequence n of the cache, which holds documents.pos0(n) tokens of it; the new keys and
// values are appended after they have been attended to. One new token for each sequence is a decode step.
Tensor attention_cached(Tape& tape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sink_logit,
                        const Documents& documents, const AttentionOptions& options, KeyValueCache& cache);

// Attention over disjoint sets of keys, merged: lse = log(e^lse_a + e^lse_b), o = e^(lse_a - lse) o_a + e^(lse_b - lse)
// o_b, into a (o [T, H_Q, D_V], lse [T, H_Q]). An empty set has o = 0, lse = -infinity.
struct MergeAttention {
  DType dtype;  // of o; lse is f32 beside bf16
  std::int64_t rows, D_V;
  void *o_a, *lse_a;
  const void *o_b, *lse_b;
};
void merge_attention_cuda(const MergeAttention& args, const Launch& launch);
void merge_attention(const Tensor& o_a, const Tensor& lse_a, const Tensor& o_b, const Tensor& lse_b,
                     const Stream& stream = {});

// Query-key pairs that a row of documents makes: the unit of attention's cost.
double attention_pairs(const Documents& documents, const AttentionOptions& options);

}  // namespace weft
