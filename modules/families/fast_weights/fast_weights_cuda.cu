#include "autograd/cuda/map_cuda.cuh"
#include "modules/families/fast_weights/fast_weights_chunk.cuh"

namespace weft {

std::size_t fast_weight_forward_cuda_workspace(const FastWeightForward& a) {
  return MemoryWalkPlan<FastWeightChunkCuda<float>>(a, false).bytes();
}
std::size_t fast_weight_backward_cuda_workspace(const FastWeightBackward& a) {
  return MemoryWalkPlan<FastWeightChunkCuda<float>>(a, true).bytes();
}

void fast_weight_forward_cuda(const FastWeightForward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "fast_weight_memory",
                [&]<class T>() { memory_walk_forward_cuda<FastWeightChunkCuda<T>>(a, launch); });
}

void fast_weight_backward_cuda(const FastWeightBackward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "fast_weight_memory",
                [&]<class T>() { memory_walk_backward_cuda<FastWeightChunkCuda<T>>(a, launch); });
  const MemoryWalkPlan<FastWeightChunkCuda<float>> plan(a, true);
  const std::int64_t matrix = a.d_m * a.d_h;
  sum_memory_lines_cuda(launch, plan.lines, a.H, plan.L, 0, matrix, a.dw0, a.write_dw0);
  sum_memory_lines_cuda(launch, plan.lines, a.H, plan.L, matrix, matrix, a.dw2, a.write_dw2);
  sum_memory_lines_cuda(launch, plan.lines, a.H, plan.L, 2 * matrix, matrix, a.dw1, a.write_dw1);
}

}  // namespace weft
