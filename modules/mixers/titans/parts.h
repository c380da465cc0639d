// What the three wirings of Titans are made of: the long-term memory with its projections, and attention over a short
// range with learned persistent tokens.
//
// T tokens, N sequences, d model width, H heads of width D for memory and attention alike, n_p persistent tokens, P
// numbers of a head's memory.
#pragma once

#include "autograd/ops/rope/rope.h"
#include "autograd/ops/rows/rows.h"
#include "modules/families/attention/attention.h"
#include "modules/families/attention/key_value_cache.h"
#include "modules/families/titans_memory/titans_memory.h"
#include "modules/mixer.h"

namespace weft::titans {

enum class Variant : std::uint8_t { gate, context, layer };  // "mag", "mac", "mal"

struct Config {
  MixerSite site;
  Variant variant;
  std::int64_t heads, head_dim;
  std::int64_t window;      // of the attention; of a segment for "mac"
  std::int64_t persistent;  // n_p
  std::int64_t chunk;       // C of the memory
  std::int64_t hidden;      // m of the memory; 0: linear
  double rate_max;
  RopeConfig rope;

  std::int64_t inner() const { return heads * head_dim; }
  std::int64_t memory_size() const { return titans_memory_size(head_dim, hidden, head_dim); }  // P
};

// Memory of N sequences: states of titans_memory and how far each is in its chunk.
struct MemoryState {
  Tensor states;                    // [N, H, 3, P]
  std::vector<std::int32_t> phase;  // [N]
  Place place;                      // of the states

  MemoryState clone() const;
  std::size_t bytes() const { return states.nbytes() + phase.size() * sizeof(phase[0]); }
};

// q, k = L2(silu(x wq_m^T)), L2(silu(x wk_m^T)),  v = x wv_m^T
// keep = sigma(x w_keep^T + b_keep),  momentum = sigma(x w_mu^T + b_mu),  rate = rate_max sigma(x w_rate^T + b_rate)
class Memory {
 public:
  // For rows of `width` channels.
  Memory(const ParameterScope& scope, const Config& config, std::int64_t width);

  TitansInputs features(Tape& tape, const Var& x) const;
  // L2(silu(x w^T)) as [T, H, D].
  Var keys(Tape& tape, const Var& x, Parameter& w) const;
  TitansWeights weights(Tape& tape) const;
  // [T, H, D]; with a state, documents continue from it and it is advanced.
  Var forward(Tape& tape, const Var& x, const DocumentsPtr& documents, MemoryState* state) const;
  MemoryState initial_state(std::int64_t sequences, const Place& place) const;
  // The W of every state: [N, H, P].
  static Tensor read_part(const MemoryState& state);

  // For each token: multiply-adds of the projections; FLOPs of the memory; numbers kept by the tape without x.
  double products() const;
  double forward_flops() const;
  double backward_flops() const;
  double saved() const;
  double state_bytes() const;

 private:
  Config c_;
  std::int64_t width_;
  Parameter *wq_, *wk_, *wv_, *w_keep_, *b_keep_, *w_mu_, *b_mu_, *w_rate_, *b_rate_;
  Parameter *w1_ = nullptr, *w2_;
};

// Causal softmax attention of rows; where persistent tokens stand among the rows is up to the caller.
class ShortAttention {
 public:
  // For rows of `width` channels.
  ShortAttention(const ParameterScope& scope, const Config& config, std::int64_t width);

  const AttentionOptions& options() const { return options_; }
  const std::shared_ptr<const RopeTable>& angles() const { return rope_; }
  // rows [R, width] -> [R, H, D]; with a cache, documents continue from it.
  Var forward(Tape& tape, const Var& rows, const DocumentsPtr& documents, KeyValueCache* cache) const;
  // The same for the tokens x of documents with the persistent tokens before each of them -> [T, H, D].
  Var with_persistent(Tape& tape, const Var& x, const DocumentsPtr& documents, KeyValueCache* cache) const;
  // [n_p, width] in the type of activations.
  Var persistent(Tape& tape, DType activations) const;
  KeyValueCache cache(std::int64_t sequences, const Place& place) const;

  // For each row: multiply-adds of the projections; numbers kept by the tape without the rows.
  double products() const;
  double saved() const;

 private:
  Config c_;
  std::int64_t width_;
  AttentionOptions options_;
  Parameter *wq_, *wk_, *wv_, *q_norm_w_, *k_norm_w_;
  Parameter* persistent_ = nullptr;  // null without
  std::shared_ptr<const RopeTable> rope_;
};

}  // namespace weft::titans
