// Reading of titans_memory.h without writing. A thread block takes tiles of 64 rows of one head: with weights, every
// kLines-th tile of the row; with a state, the tiles of one document.
//
// P numbers of a memory; T: element type of the tokens' tensors.
#include "autograd/cuda/map_cuda.cuh"
#include "modules/families/gelu.cuh"
#include "modules/families/memory_walk.cuh"
#include "modules/families/titans_memory/titans_memory.h"

namespace weft {
namespace {

constexpr std::int64_t kRows = 64;
constexpr std::int64_t kLines = 64;
constexpr std::int64_t kMaxBlocks = 1056;

struct ReadPlan {
  BlockArray q, a, h, y, da, W, sum;
  std::int64_t P, first;  // numbers of a memory, of its hidden layer
  std::int64_t lines, tasks, scratch, scratch_at, total;
  unsigned blocks;
  std::size_t shared_bytes;

  ReadPlan(const TitansReadProblem& p, bool backward) : P(titans_memory_size(p.d_k, p.m, p.d_v)), first(p.d_k * p.m) {
    BlockLayout layout;
    q = layout.take(kRows * p.d_k);
    y = layout.take(kRows * p.d_v);
    for (BlockArray* x : {&a, &h}) *x = layout.take(kRows * p.m);
    if (backward) da = layout.take(kRows * p.m);
    W = layout.take(P);
    if (backward) sum = layout.take(P);
    shared_bytes = layout.shared_bytes();
    scratch = layout.global_floats();
    lines = p.state != nullptr ? p.N : std::min(kLines, blocks_of(p.T, kRows));
    tasks = lines * p.H;
    blocks = static_cast<unsigned>(std::min(tasks, kMaxBlocks));
    scratch_at = backward && p.state == nullptr ? (tasks * P + 3) / 4 * 4 : 0;  // lines [lines, H, P] before it
    total = scratch_at + scratch * blocks;
  }
};

// f(first row, rows) for the tiles of a task.
template <class F>
__device__ void for_each_tile(const TitansReadProblem& p, const ReadPlan& plan, std::int64_t line, F&& f) {
  const bool documents = p.state != nullptr;
  const std::int64_t begin = documents ? p.cu_seqlens[line] : line * kRows,
                     end = documents ? p.cu_seqlens[line + 1] : p.T;
  for (std::int64_t t = begin; t < end; t += documents ? kRows : plan.lines * kRows) {
    f(t, static_cast<int>(end - t < kRows ? end - t : kRows));
  }
}

template <class T>
__device__ __noinline__ void load_weights(const TitansReadProblem& p, const ReadPlan& plan, std::int64_t line,
                                          std::int64_t h, float* W) {
  const int P = static_cast<int>(plan.P), first = static_cast<int>(plan.first);
  if (p.state != nullptr) {
    const float* from = static_cast<const float*>(p.state) + line * p.document_stride + h * p.head_stride;
    block_for(P, [&](int i) { W[i] = from[i]; });
  } else {
    const T *w1 = static_cast<const T*>(p.w1) + h * first, *w2 = static_cast<const T*>(p.w2) + h * (P - first);
    block_for(P, [&](int i) { W[i] = to_float(i < first ? w1[i] : w2[i - first]); });
  }
}

// Rows t .. t + n of q to the block's q, and what enters the last layer.
template <class T>
__device__ __noinline__ const float* hidden_rows(const TitansReadProblem& p, const ReadPlan& plan,
                                                 const BlockMemory& memory, std::int64_t t, int n, std::int64_t h,
                                                 const float* W) {
  const int d_k = static_cast<int>(p.d_k), m = static_cast<int>(p.m);
  const T* from = static_cast<const T*>(p.q);
  float *q = memory[plan.q], *a = memory[plan.a], *x = memory[plan.h];
  block_elements(n, d_k, [&](int i, int c) { q[i * d_k + c] = to_float(from[((t + i) * p.H + h) * d_k + c]); });
  if (m == 0) return q;
  block_product(n, m, d_k, 1.0F, view<float>(q, d_k), view(W, m), 0.0F, a, m);
  block_for(n * m, [&](int i) { x[i] = GeluCuda(a[i]).value(); });
  return x;
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    read_kernel(const __grid_constant__ TitansReadForward a, const __grid_constant__ ReadPlan plan, float* workspace) {
  extern __shared__ float4 shared[];
  const BlockMemory memory{reinterpret_cast<float*>(shared), workspace + plan.scratch_at + blockIdx.x * plan.scratch};
  const int d_v = static_cast<int>(a.d_v), in = static_cast<int>(a.m > 0 ? a.m : a.d_k);
  float *W = memory[plan.W], *y = memory[plan.y];
  T* o = static_cast<T*>(a.o);
  for (std::int64_t task = blockIdx.x; task < plan.tasks; task += gridDim.x) {
    const std::int64_t line = task / a.H, h = task % a.H;
    load_weights<T>(a, plan, line, h, W);
    for_each_tile(a, plan, line, [&](std::int64_t t, int n) {
      const float* x = hidden_rows<T>(a, plan, memory, t, n, h, W);
      block_product(n, d_v, in, 1.0F, view(x, in), view<float>(W + plan.first, d_v), 0.0F, y, d_v);
      block_elements(n, d_v, [&](int i, int c) { o[((t + i) * a.H + h) * d_v + c] = from_float<T>(y[i * d_v + c]); });
    });
  }
}

template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    read_gradient_kernel(const __grid_constant__ TitansReadBackward a, const __grid_constant__ ReadPlan plan,
                         float* workspace) {
  extern __shared__ float4 shared[];
  const BlockMemory memory{reinterpret_cast<float*>(shared), workspace + plan.scratch_at + blockIdx.x * plan.scratch};
  const int d_k = static_cast<int>(a.d_k), d_v = static_cast<int>(a.d_v), m = static_cast<int>(a.m);
  const int in = m > 0 ? m : d_k, first = static_cast<int>(plan.first), P = static_cast<int>(plan.P);
  float *W = memory[plan.W], *dy = memory[plan.y], *sum = memory[plan.sum], *da = memory[plan.da], *q = memory[plan.q];
  const T* d_o = static_cast<const T*>(a.d_o);
  T* dq = static_cast<T*>(a.dq);
  for (std::int64_t task = blockIdx.x; task < plan.tasks; task += gridDim.x) {
    const std::int64_t line = task / a.H, h = task % a.H;
    load_weights<T>(a, plan, line, h, W);
    block_for(P, [&](int i) { sum[i] = 0.0F; });
    for_each_tile(a, plan, line, [&](std::int64_t t, int n) {
      const float* x = hidden_rows<T>(a, plan, memory, t, n, h, W);
      block_elements(n, d_v, [&](int i, int c) { dy[i * d_v + c] = to_float(d_o[((t + i) * a.H + h) * d_v + c]); });
      block_product(in, d_v, n, 1.0F, transposed(x, in), view<float>(dy, d_v), 1.0F, sum + first, d_v);
      if (m > 0) {
        const float* pre = memory[plan.a];
        block_product(n, m, d_v, 1.0F, view<float>(dy, d_v), transposed<float>(W + first, d_v), 0.0F, da, m);
        block_for(n * m, [&](int i) { da[i] *= GeluCuda(pre[i]).slope(); });
        block_product(d_k, m, n, 1.0F, transposed<float>(q, d_k), view<float>(da, m), 1.0F, sum, m);
        block_product(n, d_k, m, 1.0F, view<float>(da, m), transposed<float>(W, m), 0.0F, q, d_k);
      } else {
        block_product(n, d_k, d_v, 1.0F, view<float>(dy, d_v), transposed<float>(W, d_v), 0.0F, q, d_k);
      }
      if (dq == nullptr) return;
      block_elements(n, d_k, [&](int i, int c) {  // q has become its gradient
        store_value(dq[((t + i) * a.H + h) * d_k + c], q[i * d_k + c], a.write_dq);
      });
    });
    if (a.state == nullptr) {
      block_for(P, [&](int i) { workspace[task * P + i] = sum[i]; });
    } else if (a.dstate != nullptr) {
      // What is not W of this head gets nothing.
      float* to = static_cast<float*>(a.dstate) + line * a.document_stride + h * a.head_stride;
      block_for(static_cast<int>(a.head_stride), [&](int i) {
        if (i < P || a.write_dstate == Write::overwrite) store_value(to[i], i < P ? sum[i] : 0.0F, a.write_dstate);
      });
    }
  }
}

__global__ void __launch_bounds__(kBlockThreads) no_gradient_kernel(std::int64_t n, float* to) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (i < n) to[i] = 0.0F;
}

}  // namespace

std::size_t titans_read_forward_cuda_workspace(const TitansReadForward& a) {
  return static_cast<std::size_t>(ReadPlan(a, false).total) * sizeof(float);
}
std::size_t titans_read_backward_cuda_workspace(const TitansReadBackward& a) {
  return static_cast<std::size_t>(ReadPlan(a, true).total) * sizeof(float);
}

void titans_read_forward_cuda(const TitansReadForward& a, const Launch& launch) {
  const ReadPlan plan(a, false);
  if (plan.tasks == 0) return;
  dispatch_cuda(a.dtype, "titans_read", [&]<class T>() {
    launch_blocks(read_kernel<T>, dim3(plan.blocks), plan.shared_bytes, launch.stream, a, plan,
                  static_cast<float*>(launch.workspace));
  });
}

void titans_read_backward_cuda(const TitansReadBackward& a, const Launch& launch) {
  const ReadPlan plan(a, true);
  if (plan.tasks > 0) {
    dispatch_cuda(a.dtype, "titans_read", [&]<class T>() {
      launch_blocks(read_gradient_kernel<T>, dim3(plan.blocks), plan.shared_bytes, launch.stream, a, plan,
                    static_cast<float*>(launch.workspace));
    });
  }
  if (a.state == nullptr) {
    sum_memory_lines_cuda(launch, plan.lines, a.H, plan.P, 0, plan.first, a.dw1, a.write_dw1);
    sum_memory_lines_cuda(launch, plan.lines, a.H, plan.P, plan.first, plan.P - plan.first, a.dw2, a.write_dw2);
    return;
  }
  // With a state the weights give shapes only.
  const auto none = [&](void* to, Write write, std::int64_t elements) {
    if (to == nullptr || write == Write::accumulate || elements == 0) return;
    launch_blocks(no_gradient_kernel, dim3(static_cast<unsigned>(blocks_of(elements, kBlockThreads))), 0, launch.stream,
                  elements, static_cast<float*>(to));
  };
  none(a.dw1, a.write_dw1, a.H * plan.first);
  none(a.dw2, a.write_dw2, a.H * (plan.P - plan.first));
}

}  // namespace weft
