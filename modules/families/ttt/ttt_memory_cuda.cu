#include "autograd/cuda/map_cuda.cuh"
#include "modules/families/memory_walk.cuh"
#include "modules/families/ttt/ttt_batch.cuh"

namespace weft {

std::size_t ttt_forward_cuda_workspace(const TttForward& a) {
  return MemoryWalkPlan<TttBatchCuda<float>>(a, false).bytes();
}
std::size_t ttt_backward_cuda_workspace(const TttBackward& a) {
  return MemoryWalkPlan<TttBatchCuda<float>>(a, true).bytes();
}

void ttt_forward_cuda(const TttForward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "ttt_memory", [&]<class T>() { memory_walk_forward_cuda<TttBatchCuda<T>>(a, launch); });
}

void ttt_backward_cuda(const TttBackward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "ttt_memory", [&]<class T>() { memory_walk_backward_cuda<TttBatchCuda<T>>(a, launch); });
  const MemoryWalkPlan<TttBatchCuda<float>> plan(a, true);
  std::int64_t at = 0;
  const auto sum = [&](std::int64_t width, void* target, Write write) {
    sum_memory_lines_cuda(launch, plan.lines, a.H, plan.L, at, width, target, write);
    at += width;
  };
  if (a.m > 0) {
    sum(a.d * a.m, a.dw1, a.write_dw1);
    sum(a.m, a.db1, a.write_db1);
  }
  sum((a.m > 0 ? a.m : a.d) * a.d, a.dw2, a.write_dw2);
  sum(a.d, a.db2, a.write_db2);
  sum(a.d, a.dgamma, a.write_dgamma);
  sum(a.d, a.dbeta, a.write_dbeta);
  sum_memory_lines_cuda(launch, plan.lines * a.H, 1, plan.L, at, a.C, a.doffset, a.write_doffset);
}

}  // namespace weft
