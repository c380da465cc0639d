// Log decays g <= 0 of decayed recurrences from gate inputs f, with z = f + dt_bias and a rate a = e^{a_log} per head:
//   softplus  g = -a softplus(z)         unbounded below (Mamba, arXiv:2312.00752; gated delta nets, 2412.06464)
//   bounded   g = bound sigma(a z)       one step keeps at least e^bound (Kimi Delta Attention, 2510.26692)
//
// T tokens, H heads, W channels of a head (1 for one decay per head). All but f is of accumulator type: gate inputs in
// bf16, straight from a projection, give f32 decays.
#pragma once

#include "autograd/tape.h"

namespace weft {

enum class DecayGateFunction : std::uint8_t { softplus, bounded };

// What forward and backward share.
struct DecayGateProblem {
  DType dtype;  // of f
  DecayGateFunction function;
  std::int64_t T, H, W;
  double bound;         // lower bound of g, bounded only
  const void* f;        // [T, H, W]
  const void* a_log;    // [H]
  const void* dt_bias;  // [H, W]
};

struct DecayGateForward : DecayGateProblem {
  void* g = nullptr;  // [T, H, W]
};

// softplus: dz = -a sigma(z) dg, da_log = sum g dg. bounded, with p = sigma(a z) and e = bound p (1 - p) dg:
// dz = a e, da_log = sum a z e. Both: df = dz, ddt_bias = sum over tokens of dz. A null gradient is not wanted.
struct DecayGateBackward : DecayGateProblem {
  const void* dg = nullptr;  // [T, H, W]
  void* df = nullptr;        // type of f
  Write write_df = Write::overwrite;
  void* da_log = nullptr;
  Write write_da_log = Write::overwrite;
  void* ddt_bias = nullptr;
  Write write_ddt_bias = Write::overwrite;
};

void decay_gate_forward_cuda(const DecayGateForward& args, const Launch& launch);
void decay_gate_backward_cuda(const DecayGateBackward& args, const Launch& launch);
std::size_t decay_gate_backward_cuda_workspace(const DecayGateBackward& args);

// f [T,H,W] or [T,H] (W = 1), a_log [H], dt_bias [H W]. Returns g, shaped as f.
Var softplus_decay(Tape& tape, const Var& f, const Var& a_log, const Var& dt_bias);
// lower_bound < 0.
Var bounded_decay(Tape& tape, const Var& f, const Var& a_log, const Var& dt_bias, double lower_bound);

}  // namespace weft
