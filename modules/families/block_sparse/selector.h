// What chooses the blocks of block_sparse_attention(): the part in which the sparse layers differ.
//
// T tokens, N sequences, H_Q query and H_KV key/value heads.
#pragma once

#include <memory>

#include "autograd/tape.h"
#include "modules/families/block_sparse/block_choice.h"

namespace weft {

// What a selector remembers of N sequences between calls.
class SelectorState {
 public:
  virtual ~SelectorState() = default;
  virtual std::unique_ptr<SelectorState> clone() const = 0;
  virtual std::size_t bytes() const = 0;
};

// What a layer shows its selector: rows of the new tokens.
struct SelectorInputs {
  Tensor x;        // [T, d] the layer's input
  Tensor q, k, v;  // [T, H_Q, D], [T, H_KV, D] as attention reads them, [T, H_KV, D_V]
  DocumentsPtr documents;
};

class Selector {
 public:
  virtual ~Selector() = default;

  virtual std::int64_t block() const = 0;                     // tokens of a block
  virtual std::int64_t heads() const = 0;                     // H_sel: 1, H_KV or H_Q
  virtual std::int64_t slots(std::int64_t length) const = 0;  // n, where the longest document has `length` tokens

  // Indices [T, H_sel, n] for block_sparse_attention(). A query's choice depends on the tokens up to it and on nothing
  // else. With a state, documents continue from it and it moves on.
  virtual Tensor select(Tape& tape, const SelectorInputs& in, SelectorState* state) const = 0;

  virtual std::unique_ptr<SelectorState> initial_state(std::int64_t sequences, const Place& place) const = 0;
  virtual double state_bytes(std::int64_t length) const = 0;  // of one sequence, fp32
  // Query-key pairs of attention, and floating-point operations of choosing, for one document.
  virtual double pairs(std::int64_t length) const = 0;
  virtual double flops(std::int64_t length) const = 0;
};

// Chooses by means of keys over spans of tokens: InfLLM-v2 and MoBA.
struct MeanSelectorConfig {
  std::int64_t heads, kv_heads, head_dim;
  BlockRule rule;
  KeySpan span;
  BlockScore score;
};
std::unique_ptr<Selector> mean_selector(const MeanSelectorConfig& config);

// Pairs that a rule lets the queries of one document make, and pairs of its queries and spans.
double chosen_pairs(const BlockRule& rule, std::int64_t length);
double span_pairs(KeySpan span, std::int64_t length);

}  // namespace weft
