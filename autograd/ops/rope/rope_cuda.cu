// CUDA kernel of rope.h. A thread turns one pack of channel pairs of several heads by the same angles, which it makes
// from the two levels of the table: no angle is read from device memory.
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/map_rows.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/ops/rope/rope_angles.cuh"

namespace weft {
namespace {

constexpr int kThreads = 256;
constexpr int kHeads = 4;  // of one thread at once

// Lanes of a token: `parts` groups of heads, each of `packs` packs.
struct Lanes {
  Divider token, packs;
  int packs_count, parts;
};

template <class T, int kN>
__global__ void __launch_bounds__(kThreads) rotate_kernel(Rotation a, Lanes lanes, std::uint32_t count) {
  const std::uint32_t at = blockIdx.x * kThreads + threadIdx.x;
  if (at >= count) return;
  const std::int64_t t = lanes.token.quotient(at);
  const std::uint32_t lane = lanes.token.remainder(at);
  const int part = static_cast<int>(lanes.packs.quotient(lane));
  const int pack = static_cast<int>(lanes.packs.remainder(lane));
  const int half = static_cast<int>(a.D_r / 2), channel = pack * kN;
  const T* x = static_cast<const T*>(a.x) + t * a.H * a.D;
  T* y = static_cast<T*>(a.y) + t * a.H * a.D;
  float cos[kN], sin[kN];
  rope_angles(a.angles, half, t, channel, cos, sin);
  const auto direction = static_cast<float>(a.direction);
#pragma unroll
  for (int i = 0; i < kN; ++i) sin[i] *= direction;
  for (std::int64_t first = part; first < a.H; first += kHeads * lanes.parts) {
    HeldPack<T, kN> left[kHeads], right[kHeads];
#pragma unroll
    for (int j = 0; j < kHeads; ++j) {
      const std::int64_t h = first + j * lanes.parts;
      left[j] = right[j] = HeldPack<T, kN>::zero();
      if (h >= a.H) continue;
      left[j] = HeldPack<T, kN>::load(x + h * a.D + channel);
      right[j] = HeldPack<T, kN>::load(x + h * a.D + half + channel);
    }
#pragma unroll
    for (int j = 0; j < kHeads; ++j) {
      const std::int64_t h = first + j * lanes.parts;
      if (h >= a.H) continue;
      float turned[kN];
#pragma unroll
      for (int i = 0; i < kN; ++i) turned[i] = left[j][i] * cos[i] - right[j][i] * sin[i];
      store_pack(y + h * a.D + channel, turned, a.write_y);
#pragma unroll
      for (int i = 0; i < kN; ++i) turned[i] = left[j][i] * sin[i] + right[j][i] * cos[i];
      store_pack(y + h * a.D + half + channel, turned, a.write_y);
    }
  }
  // Channels beyond the rotary width.
  for (std::int64_t c = a.D_r + channel; c < a.D; c += lanes.packs_count * kN) {
    for (std::int64_t first = part; first < a.H; first += kHeads * lanes.parts) {
      HeldPack<T, kN> held[kHeads];
#pragma unroll
      for (int j = 0; j < kHeads; ++j) {
        const std::int64_t h = first + j * lanes.parts;
        held[j] = h < a.H ? HeldPack<T, kN>::load(x + h * a.D + c) : HeldPack<T, kN>::zero();
      }
#pragma unroll
      for (int j = 0; j < kHeads; ++j) {
        const std::int64_t h = first + j * lanes.parts;
        if (h >= a.H) continue;
        float values[kN];
#pragma unroll
        for (int i = 0; i < kN; ++i) values[i] = held[j][i];
        store_pack(y + h * a.D + c, values, a.write_y);
      }
    }
  }
}

template <class T, int kN>
void rotate(const Rotation& a, const Launch& launch) {
  const std::int64_t packs = a.D_r / 2 / kN, parts = (a.H + kHeads - 1) / kHeads;
  const std::int64_t count = a.T * packs * parts;
  WEFT_CHECK(count < INT32_MAX, "rope: {} tokens of {} heads in one launch", a.T, a.H);
  const Lanes lanes{.token = Divider(static_cast<std::uint32_t>(packs * parts)),
                    .packs = Divider(static_cast<std::uint32_t>(packs)),
                    .packs_count = static_cast<int>(packs),
                    .parts = static_cast<int>(parts)};
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  rotate_kernel<T, kN>
      <<<blocks, kThreads, 0, cuda_stream(launch.stream)>>>(a, lanes, static_cast<std::uint32_t>(count));
  WEFT_CHECK_LAUNCH();
}

}  // namespace

void rotate_cuda(const Rotation& a, const Launch& launch) {
  if (a.T * a.H == 0) return;
  dispatch_cuda(a.dtype, "rope", [&]<class T>() {
    constexpr int kN = 16 / sizeof(T);
    const bool aligned = a.D_r % (2 * kN) == 0 && packs_fit<kN>(static_cast<const T*>(a.x), a.D) &&
                         packs_fit<kN>(static_cast<const T*>(a.y), a.D);
    if (aligned) {
      rotate<T, kN>(a, launch);
    } else {
      rotate<T, 1>(a, launch);
    }
  });
}

}  // namespace weft
