// Which CUDA kernels serve a problem of the delta rule, and the workspace of those for tensor cores.
#include "autograd/cuda/cuda_target.h"
#include "autograd/tile/numeric.cuh"
#include "modules/families/delta_rule/delta_tensor.cuh"

namespace weft {
namespace {

using delta_tensor::bf16;
using delta_tensor::kD;

void check(const DeltaRuleProblem& p) {
  if (p.d_k <= kDeltaCudaKeyWidth && p.C <= kDeltaCudaChunk) return;
  fail(ExitCode::config,
       "delta_rule on a GPU: key heads of width {} in chunks of {}; it takes widths up to {} and chunks up to {}",
       p.d_k, p.C, kDeltaCudaKeyWidth, kDeltaCudaChunk);
}

// Whether the kernels for tensor cores take it, and the current device has the shared memory for them (Hopper; the
// general kernels run from 8.0 on). The size of the workspace must not depend on where tensors lie.
bool on_tensor_cores(const DeltaRuleProblem& p) {
  if (p.dtype != DType::bf16 || p.d_k != kD || p.d_v != kD || p.C != delta_tensor::kC) return false;
  return shared_bytes_of_block() >= delta_tensor::largest_shared_bytes();
}
void check_alignment(std::initializer_list<const void*> tensors) {
  for (const void* x : tensors) {
    WEFT_CHECK(reinterpret_cast<std::uintptr_t>(x) % 16 == 0, "delta_rule on a GPU: tensors must lie on 16 bytes");
  }
}

struct Records {
  delta_tensor::Operands* records;  // [chunk_count, H]
  bf16 *entries, *dexits;           // [chunk_count, H, D, D], backwards
  bf16 *W, *Y;                      // [T, H, D], backwards
  float *sum_dq, *sum_dk;           // [T, H_K, D], backwards with grouped heads
  std::size_t bytes = 0;

  Records(const DeltaRuleProblem& p, bool backward, void* workspace) {
    const auto take = [&](std::int64_t size) {
      std::byte* piece = workspace == nullptr ? nullptr : static_cast<std::byte*>(workspace) + bytes;
      bytes += static_cast<std::size_t>(size);
      return piece;
    };
    const auto take_bf16 = [&](std::int64_t elements) {
      return reinterpret_cast<bf16*>(take(backward ? elements * static_cast<std::int64_t>(sizeof(bf16)) : 0));
    };
    const std::int64_t chunks = p.chunk_count * p.H;
    records = reinterpret_cast<delta_tensor::Operands*>(
        take(chunks * static_cast<std::int64_t>(sizeof(delta_tensor::Operands))));
    entries = take_bf16(chunks * kD * kD);
    dexits = take_bf16(chunks * kD * kD);
    W = take_bf16(p.T * p.H * kD);
    Y = take_bf16(p.T * p.H * kD);
    const std::int64_t sums =
        backward && p.H != p.H_K ? p.T * p.H_K * kD * static_cast<std::int64_t>(sizeof(float)) : 0;
    sum_dq = reinterpret_cast<float*>(take(sums));
    sum_dk = reinterpret_cast<float*>(take(sums));
  }
};

}  // namespace

void delta_rule_forward_cuda(const DeltaRuleForward& args, const Launch& launch) {
  check(args);
  if (!on_tensor_cores(args)) return delta_general_forward(args, launch);
  check_alignment({args.q, args.k, args.v, args.g, args.s0, args.o, args.st});
  const Records at(args, false, launch.workspace);
  make_operands(args, at.records, launch);
  walk_states(args, at.records, args.o, args.st, nullptr, nullptr, launch);
}

std::size_t delta_rule_forward_cuda_workspace(const DeltaRuleForward& args) {
  return on_tensor_cores(args) ? Records(args, false, nullptr).bytes : delta_general_forward_workspace(args);
}

void delta_rule_backward_cuda(const DeltaRuleBackward& args, const Launch& launch) {
  check(args);
  if (!on_tensor_cores(args)) return delta_general_backward(args, launch);
  check_alignment(
      {args.q, args.k, args.v, args.g, args.s0, args.d_o, args.dst, args.dq, args.dk, args.dv, args.dg, args.ds0});
  const Records at(args, true, launch.workspace);
  make_operands(args, at.records, launch);
  walk_states(args, at.records, nullptr, nullptr, at.entries, at.W, launch);
  retreat_states(args, at.records, at.dexits, at.Y, launch);
  delta_tensor::chunk_gradients(args, {at.entries, at.dexits, at.W, at.Y, at.records, at.sum_dq, at.sum_dk}, launch);
}

std::size_t delta_rule_backward_cuda_workspace(const DeltaRuleBackward& args) {
  return on_tensor_cores(args) ? Records(args, true, nullptr).bytes : delta_general_backward_workspace(args);
}

}  // namespace weft
