// The delta rule with decay: a matrix state whose entry for a key is replaced rather than added to. One head:
//
//   S~_t = diag(e^{g_t}) S_{t-1}                 decay
//   u_t  = beta_t (v_t - k_t S~_t)               what the state predicts wrongly, times the write strength
//   S_t  = S~_t + k_t^T u_t                      write
//   o_t  = scale * q_t S_t                       read
//
// DeltaNet (no decay, arXiv:2406.06484), the gated delta rule (one decay per head, 2412.06464) and Kimi Delta Attention
// (one per key channel, 2510.26692). Evaluated chunk by chunk in the residual form; README.md derives it.
//
// T tokens of the packed row, N documents, H value heads, H_K key heads (value head h uses key head h / (H / H_K)),
// d_k and d_v head widths, C chunk length. q, k [T,H_K,d_k]; v, o [T,H,d_v]; beta [T,H]; states [N,H,d_k,d_v], rows are
// key channels. Log decays g <= 0, natural logarithm. g, beta and states are f32 beside bf16, and so are their
// gradients.
#pragma once

#include "autograd/documents.h"
#include "autograd/tape.h"

namespace weft {

// What the log decay varies over; the shape of the decay tensor tells which.
enum class DeltaDecay : std::uint8_t {
  none,     // DeltaNet
  scalar,   // [T,H]
  channel,  // [T,H,d_k]
};

// How the chunks of a sequence are walked; the results are the same bits.
enum class DeltaSchedule : std::uint8_t {
  automatic,
  fused,      // one walk per document and key head: for many documents or heads
  two_level,  // everything that needs no state for a window of chunks in parallel, then the states in order
};

// What forward and backward share. The tables are in the memory of the device.
struct DeltaRuleProblem {
  DType dtype;
  DeltaDecay decay;
  DeltaSchedule schedule;
  std::int64_t T, N, H, H_K, d_k, d_v;
  std::int64_t C;
  double scale;
  const void* q;                        // [T, H_K, d_k]
  const void* k;                        // [T, H_K, d_k]
  const void* v;                        // [T, H, d_v]
  const void* g;                        // null | [T, H] | [T, H, d_k]
  const void* beta;                     // [T, H]
  const void* s0;                       // [N, H, d_k, d_v] or null: zero
  const std::int32_t* cu_seqlens;       // [N + 1]
  const Chunk* chunks;                  // [chunk_count], blocks of C tokens
  const std::int32_t* document_offset;  // [N + 1] first chunk of each document
  std::int64_t chunk_count;
};

struct DeltaRuleForward : DeltaRuleProblem {
  void* o = nullptr;   // [T, H, d_v]
  void* st = nullptr;  // [N, H, d_k, d_v] final states
};

// A null gradient is not wanted. Entry states of the chunks are computed again, nothing but the inputs is saved.
struct DeltaRuleBackward : DeltaRuleProblem {
  const void* d_o = nullptr;  // [T, H, d_v]
  const void* dst = nullptr;  // [N, H, d_k, d_v] or null: zero
  void* dq = nullptr;         // summed over the value heads of a key head, in their order
  Write write_dq = Write::overwrite;
  void* dk = nullptr;
  Write write_dk = Write::overwrite;
  void* dv = nullptr;
  Write write_dv = Write::overwrite;
  void* dg = nullptr;  // shape of g
  Write write_dg = Write::overwrite;
  void* dbeta = nullptr;
  Write write_dbeta = Write::overwrite;
  void* ds0 = nullptr;
  Write write_ds0 = Write::overwrite;
};

// One token of each of N sequences; the state is updated in place.
struct DeltaRuleDecode {
  DType dtype;
  DeltaDecay decay;
  std::int64_t N, H, H_K, d_k, d_v;
  double scale;
  const void* q;     // [N, H_K, d_k]
  const void* k;     // [N, H_K, d_k]
  const void* v;     // [N, H, d_v]
  const void* g;     // null | [N, H] | [N, H, d_k]
  const void* beta;  // [N, H]
  void* state;       // [N, H, d_k, d_v]
  void* o;           // [N, H, d_v]
};

void delta_rule_forward_cuda(const DeltaRuleForward& args, const Launch& launch);
std::size_t delta_rule_forward_cuda_workspace(const DeltaRuleForward& args);
void delta_rule_backward_cuda(const DeltaRuleBackward& args, const Launch& launch);
std::size_t delta_rule_backward_cuda_workspace(const DeltaRuleBackward& args);
void delta_rule_decode_cuda(const DeltaRuleDecode& args, const Launch& launch);

struct DeltaRuleOutput {
  Var o;            // [T, H, d_v]
  Var final_state;  // [N, H, d_k, d_v]
};

// What the caller may fix instead of the policy; for tests and benchmarks. chunk = 0: the policy's length.
struct DeltaRulePlan {
  std::int64_t chunk = 0;
  DeltaSchedule schedule = DeltaSchedule::automatic;
};

// Chunk length C of the policy.
std::int64_t delta_rule_chunk();

// `g` is {} (no decay), [T,H] or [T,H,d_k], <= 0; an `initial_state` without a value ({}) is zero. Keys are expected to
// have norms of at most 1 and beta to lie in [0, 2]: beyond, the recurrence itself grows without bound.
DeltaRuleOutput delta_rule(Tape& tape, const Var& q, const Var& k, const Var& v, const Var& g, const Var& beta,
                           const Var& initial_state, const DocumentsPtr& documents, double scale,
                           const DeltaRulePlan& plan = {});

// q, k [N,H_K,d_k], v [N,H,d_v], g {}, [N,H] or [N,H,d_k], beta [N,H]; advances `state` [N,H,d_k,d_v] by one token and
// returns o [N,H,d_v]. Nothing is recorded.
Tensor delta_rule_decode(Tape& tape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                         const Tensor& beta, const Tensor& state, double scale);

}  // namespace weft
