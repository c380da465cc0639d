// How CUDA walks documents whose memory is rewritten chunk by chunk: the schedule of memory_walk_cpu.h with a thread
// block in place of a thread. A block takes one head of one document (backward: of every kLines-th document) from end
// to end; blocks are few enough that their scratch memory stays small, and take one such task after the other.
//
// A memory is S floats. Between two chunks the first `kept` of them determine the others. Backward
// stores the memory at every K-th chunk, K the root of the number of chunks that a document could have at most, at a
// place that follows from where the document begins: all documents together need about T/(C K) places, whatever their
// number. Each stretch of K chunks is then run again, into K places of the block.
//
// A Kernel has
//   Element, Problem, Forward, Backward     of the tensors; argument structs
//   Arrays                                  what a chunk is worked on with
//   kStateFirst                             whether the memory, or the arrays, are to be in shared memory
//   state_floats(problem), kept_floats(problem), line_floats(problem), arrays(problem, backward, layout)
//   Kernel(args, arrays, memory)
//   begin(n, h, state)                      the memory at the start of document n
//   between_chunks(state)                   fills in what is not kept
//   forward(span, state, out)               advances the state; reads into out [T, ...] unless it is null
//   finish(args, n, h, state)               after the last chunk
//   begin_gradient(args, n, h, dstate)      the gradient of the memory after the last chunk
//   backward(args, span, state, dstate, line)
//                                           dstate: from after the chunk to before it; line: sums for the parameters
//   finish_gradient(args, n, h, dstate, line)
//   output(args), chunk(problem), phases(problem)
#pragma once

#include <algorithm>
#include <cmath>

#include "modules/families/block_products.cuh"
#include "modules/families/memory_span.h"

namespace weft {

// For kernels whose memories come and go as [N, H, S] f32 tensors `state`, `final_state`, or start from parameters:
// Derived has problem(), size() = S, start(h, state) and its adjoint start_gradient(dstate, line).
template <class Derived>
class MemoryFromTensor {
 public:
  static constexpr bool kStateFirst = true;

  template <class Problem>
  static __host__ __device__ std::int64_t chunk(const Problem& p) {
    return p.C;
  }
  template <class Problem>
  static __host__ __device__ const std::int32_t* phases(const Problem& p) {
    return p.phase;
  }
  template <class Forward>
  static __device__ auto* output(const Forward& a) {
    return static_cast<typename Derived::Element*>(a.o);
  }

  __device__ void begin(std::int64_t n, std::int64_t h, float* state) const {
    const auto& p = self().problem();
    if (p.state == nullptr) return self().start(h, state);
    const float* from = static_cast<const float*>(p.state) + (n * p.H + h) * self().size();
    block_for(self().size(), [&](int i) { state[i] = from[i]; });
  }
  template <class Forward>
  __device__ void finish(const Forward& a, std::int64_t n, std::int64_t h, const float* state) const {
    if (a.final_state == nullptr) return;
    float* to = static_cast<float*>(a.final_state) + (n * a.H + h) * self().size();
    block_for(self().size(), [&](int i) { to[i] = state[i]; });
  }
  template <class Backward>
  __device__ void begin_gradient(const Backward& a, std::int64_t n, std::int64_t h, float* dstate) const {
    const float* from = static_cast<const float*>(a.dfinal_state);
    if (from != nullptr) from += (n * a.H + h) * self().size();
    block_for(self().size(), [&](int i) { dstate[i] = from == nullptr ? 0.0F : from[i]; });
  }
  template <class Backward>
  __device__ void finish_gradient(const Backward& a, std::int64_t n, std::int64_t h, const float* dstate,
                                  float* line) const {
    if (a.state == nullptr) return self().start_gradient(dstate, line);
    if (a.dstate == nullptr) return;
    float* to = static_cast<float*>(a.dstate) + (n * a.H + h) * self().size();
    block_for(self().size(), [&](int i) { store_value(to[i], dstate[i], a.write_dstate); });
  }

 private:
  __device__ const Derived& self() const { return static_cast<const Derived&>(*this); }
};

template <class Kernel>
struct MemoryWalkPlan {
  static constexpr std::int64_t kLines = 16;                   // of sums for the parameters, for each head
  static constexpr std::int64_t kMaxBlocks = 264;              // at once
  static constexpr std::int64_t kScratchFloats = 256LL << 18;  // of all blocks, if that leaves kMinBlocks
  static constexpr std::int64_t kMinBlocks = 32;

  typename Kernel::Arrays arrays;
  BlockArray state, dstate;
  std::int64_t S, kept, L, C;
  std::int64_t stretch;              // K
  std::int64_t lines, slots, tasks;  // of documents; of checkpoints; of blocks
  std::int64_t scratch, entries_at;  // floats of a block; where those of a stretch are
  unsigned blocks;
  std::size_t shared_bytes;
  // The workspace, in floats: lines [lines, H, L], checkpoints [slots, H, kept], then each block's scratch.
  std::int64_t checkpoints_at, scratch_at, total;

  MemoryWalkPlan(const typename Kernel::Problem& p, bool backward)
      : S(Kernel::state_floats(p)), kept(Kernel::kept_floats(p)), L(backward ? Kernel::line_floats(p) : 0) {
    BlockLayout layout;
    if (!Kernel::kStateFirst) arrays = Kernel::arrays(p, backward, layout);
    state = layout.take(S);
    if (backward) dstate = layout.take(S);
    if (Kernel::kStateFirst) arrays = Kernel::arrays(p, backward, layout);
    shared_bytes = layout.shared_bytes();
    C = Kernel::chunk(p);
    const bool phases = Kernel::phases(p) != nullptr;
    const std::int64_t most = blocks_of(p.T + (phases ? C - 1 : 0), C);
    stretch = std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(std::sqrt(static_cast<double>(most)))));
    lines = backward ? std::min(p.N, kLines) : 0;
    slots = backward ? (p.T / C + (phases ? p.N : 0)) / stretch + 1 : 0;
    tasks = (backward ? lines : p.N) * p.H;
    entries_at = layout.global_floats();
    scratch = entries_at + (backward ? stretch * kept : 0);
    const std::int64_t room = std::max(kMinBlocks, kScratchFloats / std::max<std::int64_t>(1, scratch));
    blocks = static_cast<unsigned>(std::min({tasks, kMaxBlocks, room}));
    const auto padded = [](std::int64_t floats) { return (floats + 3) / 4 * 4; };
    checkpoints_at = padded(lines * p.H * L);
    scratch_at = checkpoints_at + padded(slots * p.H * kept);
    scratch = padded(scratch);
    total = scratch_at + scratch * blocks;
  }
  std::size_t bytes() const { return static_cast<std::size_t>(total) * sizeof(float); }
};

namespace detail {

template <class Kernel, class Args>
class MemoryWalkCuda {
 public:
  using Plan = MemoryWalkPlan<Kernel>;

  __device__ MemoryWalkCuda(const Args& p, const Plan& plan, float* workspace, float* shared)
      : p_(p),
        plan_(plan),
        workspace_(workspace),
        memory_{shared, workspace + plan.scratch_at + blockIdx.x * plan.scratch},
        kernel_(p, plan.arrays, memory_) {}

  __device__ void forward() {
    for (std::int64_t task = blockIdx.x; task < plan_.tasks; task += gridDim.x) {
      n_ = task / p_.H;
      h_ = task % p_.H;
      kernel_.begin(n_, h_, state());
      for (int i = 0; i < chunk_count(); ++i) kernel_.forward(span(i), state(), Kernel::output(p_));
      kernel_.finish(p_, n_, h_, state());
    }
  }

  __device__ void backward() {
    for (std::int64_t task = blockIdx.x; task < plan_.tasks; task += gridDim.x) {
      h_ = task % p_.H;
      line_ = workspace_ + task * plan_.L;
      block_for(static_cast<int>(plan_.L), [&](int i) { line_[i] = 0.0F; });
      for (n_ = task / p_.H; n_ < p_.N; n_ += plan_.lines) {
        kernel_.begin_gradient(p_, n_, h_, dstate());
        backward_document();
        kernel_.finish_gradient(p_, n_, h_, dstate(), line_);
      }
    }
  }

 private:
  __device__ float* state() const { return memory_[plan_.state]; }
  __device__ float* dstate() const { return memory_[plan_.dstate]; }

  // Of the block's document.
  __device__ std::int64_t length() const { return p_.cu_seqlens[n_ + 1] - p_.cu_seqlens[n_]; }
  __device__ std::int64_t phase() const {
    const std::int32_t* phases = Kernel::phases(p_);
    return phases == nullptr ? 0 : phases[n_];
  }
  __device__ int chunk_count() const {
    return length() == 0 ? 0 : static_cast<int>((phase() + length() + plan_.C - 1) / plan_.C);
  }
  __device__ MemorySpan span(int chunk) const {
    const std::int64_t offset = chunk * plan_.C - phase();  // of the chunk's first token in the document, may be < 0
    const std::int64_t begin = offset > 0 ? offset : 0, full = offset + plan_.C;
    const std::int64_t end = full < length() ? full : length();
    return {h_, p_.cu_seqlens[n_] + begin, end - begin, begin - offset, end == full, end == length()};
  }

  // Where the memory before the first chunk of stretch > 0 is kept, and that before the i-th chunk of a stretch.
  __device__ float* checkpoint(int stretch) const {
    const std::int64_t before = p_.cu_seqlens[n_] / plan_.C + (Kernel::phases(p_) == nullptr ? 0 : n_);
    return workspace_ + plan_.checkpoints_at + ((before / plan_.stretch + stretch - 1) * p_.H + h_) * plan_.kept;
  }
  __device__ float* entry(int i) const { return memory_.global + plan_.entries_at + i * plan_.kept; }
  __device__ __noinline__ void keep(float* to) const {
    const float* from = state();
    block_for(static_cast<int>(plan_.kept), [&](int i) { to[i] = from[i]; });
  }
  __device__ __noinline__ void restore(const float* from) const {
    float* to = state();
    block_for(static_cast<int>(plan_.kept), [&](int i) { to[i] = from[i]; });
    kernel_.between_chunks(to);
  }
  __device__ void begin() const { kernel_.begin(n_, h_, state()); }
  __device__ void advance(int i) const { kernel_.forward(span(i), state(), nullptr); }

  __device__ void backward_document() const {
    const int chunks = chunk_count(), K = static_cast<int>(plan_.stretch), last_stretch = (chunks - 1) / K;
    if (chunks == 0) return;
    begin();
    for (int i = 0; i < last_stretch * K; ++i) {
      advance(i);
      if ((i + 1) % K == 0) keep(checkpoint((i + 1) / K));
    }
    for (int stretch = last_stretch; stretch >= 0; --stretch) {
      const int first = stretch * K, last = (first + K < chunks ? first + K : chunks) - 1;
      if (stretch < last_stretch) stretch == 0 ? begin() : restore(checkpoint(stretch));
      for (int i = first; i < last; ++i) {
        if (i > 0) keep(entry(i - first));
        advance(i);
      }
      for (int i = last; i >= first; --i) {
        if (i < last) i == 0 ? begin() : restore(entry(i - first));
        kernel_.backward(p_, span(i), state(), dstate(), line_);
      }
    }
  }

  const Args& p_;
  const Plan& plan_;
  float* workspace_;
  BlockMemory memory_;
  Kernel kernel_;
  // What the block is at.
  std::int64_t n_ = 0, h_ = 0;
  float* line_ = nullptr;
};

template <class Kernel>
__global__ void __launch_bounds__(kBlockThreads)
    memory_forward_kernel(const __grid_constant__ typename Kernel::Forward a,
                          const __grid_constant__ MemoryWalkPlan<Kernel> plan, float* workspace) {
  extern __shared__ float4 shared[];
  MemoryWalkCuda<Kernel, typename Kernel::Forward>(a, plan, workspace, reinterpret_cast<float*>(shared)).forward();
}

template <class Kernel>
__global__ void __launch_bounds__(kBlockThreads)
    memory_backward_kernel(const __grid_constant__ typename Kernel::Backward a,
                           const __grid_constant__ MemoryWalkPlan<Kernel> plan, float* workspace) {
  extern __shared__ float4 shared[];
  MemoryWalkCuda<Kernel, typename Kernel::Backward>(a, plan, workspace, reinterpret_cast<float*>(shared)).backward();
}

// target [heads, width] = or += elements [at, at + width) of the lines [lines, heads, L], each head's own, summed.
static __global__ void __launch_bounds__(kBlockThreads)
    sum_lines_kernel(const float* lines, std::int64_t count, std::int64_t heads, std::int64_t L, std::int64_t at,
                     std::int64_t width, float* target, Write write) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (i >= heads * width) return;
  float sum = 0.0F;
  for (std::int64_t line = 0; line < count; ++line) sum += lines[(line * heads + i / width) * L + at + i % width];
  store_value(target[i], sum, write);
}

}  // namespace detail

template <class Kernel>
void memory_walk_forward_cuda(const typename Kernel::Forward& a, const Launch& launch) {
  const MemoryWalkPlan<Kernel> plan(a, false);
  if (plan.tasks == 0) return;
  launch_blocks(detail::memory_forward_kernel<Kernel>, dim3(plan.blocks), plan.shared_bytes, launch.stream, a, plan,
                static_cast<float*>(launch.workspace));
}

// Sums for the parameters are then in the lines, for sum_memory_lines_cuda().
template <class Kernel>
void memory_walk_backward_cuda(const typename Kernel::Backward& a, const Launch& launch) {
  const MemoryWalkPlan<Kernel> plan(a, true);
  if (plan.tasks == 0) return;
  launch_blocks(detail::memory_backward_kernel<Kernel>, dim3(plan.blocks), plan.shared_bytes, launch.stream, a, plan,
                static_cast<float*>(launch.workspace));
}

// target [H, width] (null: not wanted), or what the heads share with `heads` = 1: target [width].
inline void sum_memory_lines_cuda(const Launch& launch, std::int64_t lines, std::int64_t heads, std::int64_t L,
                                  std::int64_t at, std::int64_t width, void* target, Write write) {
  if (target == nullptr || heads * width == 0) return;
  launch_blocks(detail::sum_lines_kernel, dim3(static_cast<unsigned>(blocks_of(heads * width, kBlockThreads))), 0,
                launch.stream, static_cast<const float*>(launch.workspace), lines, heads, L, at, width,
                static_cast<float*>(target), write);
}

}  // namespace weft
