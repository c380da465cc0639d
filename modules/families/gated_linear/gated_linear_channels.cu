// Launchers for decays per key channel on tensor cores: the order of the stages, and their workspace.
#include "autograd/cuda/pieces.h"
#include "modules/families/gated_linear/gated_linear_channels.cuh"

namespace weft::channels {
namespace {

struct Plan {
  Plan(const GatedLinearProblem& a, bool backward, void* workspace) : pieces(workspace) {
    const std::int64_t chunks = a.chunk_count * a.H;
    records.q_entry = pieces.take<bf16>(chunks * kC * a.d_k);
    records.k_exit = pieces.take<bf16>(chunks * kC * a.d_k);
    records.P = pieces.take<bf16>(chunks * kC * kC);
    records.totals = pieces.take<float>(chunks * a.d_k);
    if (!backward) return;
    entries = pieces.take<bf16>(chunks * a.d_k * a.d_v);
    dexits = pieces.take<bf16>(chunks * a.d_k * a.d_v);
  }

  Pieces pieces;
  Records records{};
  bf16 *entries = nullptr, *dexits = nullptr;
};

}  // namespace

std::size_t forward_workspace(const GatedLinearForward& args) {
  return Plan(args, false, nullptr).pieces.bytes();
}

std::size_t backward_workspace(const GatedLinearBackward& args) {
  return Plan(args, true, nullptr).pieces.bytes();
}

void forward(const GatedLinearForward& args, const Launch& launch) {
  const Plan plan(args, false, launch.workspace);
  make_operands(args, false, plan.records, launch);
  walk_states(args, plan.records, {.z = args.v, .before = args.s0, .after = args.st, .out = args.o}, launch);
}

void backward(const GatedLinearBackward& args, const Launch& launch) {
  const Plan plan(args, true, launch.workspace);
  const bool keys = args.dq != nullptr || args.dk != nullptr || args.dg != nullptr;
  make_operands(args, true, plan.records, launch);
  if (keys) walk_states(args, plan.records, {.z = args.v, .before = args.s0, .kept = plan.entries}, launch);
  walk_states(args, plan.records,
              {.backwards = true,
               .z = args.d_o,
               .before = args.dst,
               .after = args.ds0,
               .write_after = args.write_ds0,
               .out = args.dv,
               .write = args.write_dv,
               .kept = keys ? plan.dexits : nullptr},
              launch);
  if (keys) chunk_gradients(args, plan.entries, plan.dexits, launch);
}

}  // namespace weft::channels
