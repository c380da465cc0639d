// CUDA kernels of norm_rope.h. L lanes hold a head: each a pack of the first half and the pack of the second half that
// it turns with. They take a few heads of one token at a time, which share their angles.
#include <algorithm>

#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/row_reduce.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/ops/norm_rope/norm_rope.h"
#include "autograd/ops/rope/rope_angles.cuh"

namespace weft {
namespace {

constexpr int kThreads = 128;
constexpr int kForwardHeads = 4, kBackwardHeads = 2;  // of one group of lanes at once

template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

// Work items are parts of tokens: heads part, part + parts, ...
struct Items {
  Items(const NormRopeProblem& p, int heads) : parts((p.H + heads - 1) / heads), count(p.T * parts) {
    WEFT_CHECK(count < INT32_MAX, "norm_rope: {} tokens of {} heads in one launch", p.T, p.H);
  }
  __device__ std::int64_t token(std::int64_t item) const {
    return static_cast<std::uint32_t>(item) / static_cast<std::uint32_t>(parts);
  }
  std::int64_t parts, count;
};

template <int kLanes>
__device__ float sum_of_lanes(float x) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
  return x;
}

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads) norm_rope_forward_kernel(NormRopeForward a, Items items) {
  constexpr int kN = kPack<T>, kHalf = kLanes * kN, kD = 2 * kHalf;
  const std::int64_t item = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kLanes;
  const bool valid = item < items.count;
  const std::int64_t t = valid ? items.token(item) : 0, part = item - t * items.parts;
  const int lane = threadIdx.x % kLanes, channel = lane * kN;
  HeldPack<T, kN> left[kForwardHeads], right[kForwardHeads];
#pragma unroll
  for (int j = 0; j < kForwardHeads; ++j) {
    const std::int64_t h = part + j * items.parts;
    left[j] = right[j] = HeldPack<T, kN>::zero();
    if (!valid || h >= a.H) continue;
    const T* x = static_cast<const T*>(a.x) + (t * a.H + h) * kD + channel;
    left[j] = HeldPack<T, kN>::load(x);
    right[j] = HeldPack<T, kN>::load(x + kHalf);
  }
  float cos[kN], sin[kN], left_weight[kN], right_weight[kN];
  rope_angles(a.angles, kHalf, t, channel, cos, sin);
  load_pack(static_cast<const float*>(a.weight) + channel, left_weight);
  load_pack(static_cast<const float*>(a.weight) + kHalf + channel, right_weight);
#pragma unroll
  for (int j = 0; j < kForwardHeads; ++j) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kN; ++i) squares += left[j][i] * left[j][i] + right[j][i] * right[j][i];
    const float r = rsqrtf(sum_of_lanes<kLanes>(squares) * (1.0f / kD) + static_cast<float>(a.eps));
    const std::int64_t h = part + j * items.parts;
    if (!valid || h >= a.H) continue;
    const std::int64_t row = t * a.H + h;
    if (lane == 0) static_cast<float*>(a.rstd)[row] = r;
    T* y = static_cast<T*>(a.y) + row * kD + channel;
    float first[kN], second[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float u = left[j][i] * r * left_weight[i], v = right[j][i] * r * right_weight[i];
      first[i] = u * cos[i] - v * sin[i];
      second[i] = u * sin[i] + v * cos[i];
    }
    store_pack(y, first);
    store_pack(y + kHalf, second);
  }
}

// With dn = the turn back of dy: dx = r (dn w - x <x, dn w> r^2 / D), dw = sum of dn x r. lines [gridDim.x, D].
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, 4)
    norm_rope_backward_kernel(NormRopeBackward a, Items items, float* lines) {
  constexpr int kN = kPack<T>, kHalf = kLanes * kN, kD = 2 * kHalf, kGroups = kThreads / kLanes;
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes, channel = lane * kN;
  float left_weight[kN], right_weight[kN], left_sum[kN] = {}, right_sum[kN] = {};
  load_pack(static_cast<const float*>(a.weight) + channel, left_weight);
  load_pack(static_cast<const float*>(a.weight) + kHalf + channel, right_weight);
  // Every thread takes the same number of turns: sums over lanes are joint work.
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kGroups; first < items.count;
       first += static_cast<std::int64_t>(gridDim.x) * kGroups) {
    const std::int64_t item = first + group;
    const bool valid = item < items.count;
    const std::int64_t t = valid ? items.token(item) : 0, part = item - t * items.parts;
    HeldPack<T, kN> x[kBackwardHeads][2], dy[kBackwardHeads][2];
    float rstd[kBackwardHeads];
#pragma unroll
    for (int j = 0; j < kBackwardHeads; ++j) {
      const std::int64_t h = part + j * items.parts, row = t * a.H + h, at = row * kD + channel;
      const bool there = valid && h < a.H;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        x[j][half] = dy[j][half] = HeldPack<T, kN>::zero();
        if (!there) continue;
        x[j][half] = HeldPack<T, kN>::load(static_cast<const T*>(a.x) + at + half * kHalf);
        dy[j][half] = HeldPack<T, kN>::load(static_cast<const T*>(a.dy) + at + half * kHalf);
      }
      rstd[j] = there ? static_cast<const float*>(a.rstd)[row] : 0.0f;
    }
    float cos[kN], sin[kN];
    rope_angles(a.angles, kHalf, t, channel, cos, sin);
#pragma unroll
    for (int j = 0; j < kBackwardHeads; ++j) {
      const float r = rstd[j];
      float left[kN], right[kN], dot = 0.0f;
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        left[i] = dy[j][0][i] * cos[i] + dy[j][1][i] * sin[i];
        right[i] = dy[j][1][i] * cos[i] - dy[j][0][i] * sin[i];
        left_sum[i] = fmaf(left[i] * x[j][0][i], r, left_sum[i]);
        right_sum[i] = fmaf(right[i] * x[j][1][i], r, right_sum[i]);
        left[i] *= left_weight[i];
        right[i] *= right_weight[i];
        dot += left[i] * x[j][0][i] + right[i] * x[j][1][i];
      }
      const float k = sum_of_lanes<kLanes>(dot) * r * r * (1.0f / kD);
      const std::int64_t h = part + j * items.parts;
      if (!valid || h >= a.H || a.dx == nullptr) continue;
      T* dx = static_cast<T*>(a.dx) + (t * a.H + h) * kD + channel;
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        left[i] = r * (left[i] - x[j][0][i] * k);
        right[i] = r * (right[i] - x[j][1][i] * k);
      }
      store_pack(dx, left, a.write_dx);
      store_pack(dx + kHalf, right, a.write_dx);
    }
  }
  if (lines == nullptr) return;
  // The groups of the block in their order.
  __shared__ float sums[kD];
  for (int turn = 0; turn < kGroups; ++turn) {
    if (turn == group) {
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        sums[channel + i] = (turn == 0 ? 0.0f : sums[channel + i]) + left_sum[i];
        sums[kHalf + channel + i] = (turn == 0 ? 0.0f : sums[kHalf + channel + i]) + right_sum[i];
      }
    }
    __syncthreads();
  }
  for (int c = threadIdx.x; c < kD; c += kThreads) lines[blockIdx.x * kD + c] = sums[c];
}

// f.template operator()<T, kLanes>()
template <class F>
void dispatch_norm_rope(const NormRopeProblem& p, F&& f) {
  dispatch_cuda(p.dtype, "norm_rope", [&]<class T>() {
    constexpr int kN = kPack<T>;
    if (p.D == 64) return f.template operator()<T, 32 / kN>();
    if (p.D == 128) return f.template operator()<T, 64 / kN>();
    WEFT_CHECK(p.D == 256, "norm_rope: heads of {}", p.D);
    f.template operator()<T, 128 / kN>();
  });
}

// What an H100 holds at once, or less.
template <int kLanes>
std::int64_t backward_blocks(const Items& items) {
  constexpr std::int64_t kGroups = kThreads / kLanes;
  return std::clamp<std::int64_t>((items.count + kGroups - 1) / kGroups, 1, 132 * 4);
}

}  // namespace

void norm_rope_forward_cuda(const NormRopeForward& a, const Launch& launch) {
  const Items items(a, kForwardHeads);
  if (items.count == 0) return;
  dispatch_norm_rope(a, [&]<class T, int kLanes>() {
    const auto blocks = static_cast<unsigned>((items.count * kLanes + kThreads - 1) / kThreads);
    norm_rope_forward_kernel<T, kLanes><<<blocks, kThreads, 0, cuda_stream(launch.stream)>>>(a, items);
  });
  WEFT_CHECK_LAUNCH();
}

std::size_t norm_rope_backward_cuda_workspace(const NormRopeBackward& a) {
  if (a.dweight == nullptr) return 0;
  std::int64_t lines = 0;
  dispatch_norm_rope(a, [&]<class T, int kLanes>() { lines = backward_blocks<kLanes>(Items(a, kBackwardHeads)); });
  return static_cast<std::size_t>(lines * a.D) * sizeof(float);
}

void norm_rope_backward_cuda(const NormRopeBackward& a, const Launch& launch) {
  const Items items(a, kBackwardHeads);
  auto* lines = a.dweight == nullptr ? nullptr : static_cast<float*>(launch.workspace);
  std::int64_t count = 0;
  dispatch_norm_rope(a, [&]<class T, int kLanes>() {
    count = backward_blocks<kLanes>(items);
    norm_rope_backward_kernel<T, kLanes>
        <<<static_cast<unsigned>(count), kThreads, 0, cuda_stream(launch.stream)>>>(a, items, lines);
  });
  WEFT_CHECK_LAUNCH();
  if (lines == nullptr) return;
  add_lines(launch, lines, count, a.D, PutTotal{static_cast<float*>(a.dweight), a.write_dweight});
}

}  // namespace weft
