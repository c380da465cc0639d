#include "autograd/cuda/map_cuda.cuh"
#include "modules/families/titans_memory/titans_chunk.cuh"

namespace weft {

std::size_t titans_forward_cuda_workspace(const TitansForward& a) {
  return MemoryWalkPlan<TitansChunkCuda<float>>(a, false).bytes();
}
std::size_t titans_backward_cuda_workspace(const TitansBackward& a) {
  return MemoryWalkPlan<TitansChunkCuda<float>>(a, true).bytes();
}

void titans_forward_cuda(const TitansForward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "titans_memory", [&]<class T>() { memory_walk_forward_cuda<TitansChunkCuda<T>>(a, launch); });
}

void titans_backward_cuda(const TitansBackward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "titans_memory", [&]<class T>() { memory_walk_backward_cuda<TitansChunkCuda<T>>(a, launch); });
  const MemoryWalkPlan<TitansChunkCuda<float>> plan(a, true);
  const std::int64_t first = a.d_k * a.m;
  sum_memory_lines_cuda(launch, plan.lines, a.H, plan.L, 0, first, a.dw1, a.write_dw1);
  sum_memory_lines_cuda(launch, plan.lines, a.H, plan.L, first, plan.L - first, a.dw2, a.write_dw2);
}

}  // namespace weft
