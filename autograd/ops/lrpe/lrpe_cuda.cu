// CUDA kernels of lrpe.h. C = H D channels of a token.
//
// Angles are counted in turns, as fixed-point fractions of 2^-64: a product with the position drops whole turns by
// itself and is exact, so that no fp64 is left in the loops over tokens.
#include <algorithm>
#include <bit>

#include "autograd/cuda/map_rows.cuh"
#include "autograd/cuda/row_reduce.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/ops/lrpe/lrpe.h"

namespace weft {
namespace {

// The angle of one position, modulo a turn, in 2^-64 turns.
__device__ std::uint64_t fixed_turns(float theta) {
  constexpr double kPerTurn = 0.15915494309189533577;
  const double turns = static_cast<double>(theta) * kPerTurn;
  return static_cast<std::uint64_t>(__double2ll_rn((turns - rint(turns)) * 0x1p64));
}

// Cos and sin at a position. In f32 to the last bits; where results are rounded to bf16, to the 2^-21 of the
// special-function unit.
template <class T>
__device__ void turn(std::uint32_t position, std::uint64_t fixed, float& cos, float& sin) {
  const auto angle = static_cast<std::int32_t>((position * fixed) >> 32);  // in 2^-32 turns, within half a turn
  if constexpr (sizeof(T) == sizeof(float)) {
    sincospif(static_cast<float>(angle) * 0x1p-31f, &sin, &cos);
  } else {
    __sincosf(static_cast<float>(angle) * (6.28318530717958647693f * 0x1p-32f), &sin, &cos);
  }
}

template <int kN>
__device__ void load_fixed_turns(const void* theta, std::int64_t c, std::uint64_t (&fixed)[kN]) {
  float values[kN];
  load_pack(static_cast<const float*>(theta) + c, values);
#pragma unroll
  for (int i = 0; i < kN; ++i) fixed[i] = fixed_turns(values[i]);
}

constexpr int kThreads = 256;
constexpr std::int64_t kRows = 64;  // of a block in forward: what fixed angles cost is spread over them

// A block encodes kRows tokens, kThreads / lanes of them at once, each in `lanes` packs of channels: as many as a token
// has, so that what is read and written lies together.
template <class T, int kN>
__global__ void __launch_bounds__(kThreads) encode_kernel(LrpeForward a, Divider width, int lanes) {
  const std::int64_t C = a.H * a.D;
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.x) * lanes + threadIdx.x % lanes) * kN;
  if (c >= C) return;
  std::uint64_t fixed[kN];
  load_fixed_turns(a.theta, c, fixed);
  const std::int64_t h = width.quotient(static_cast<std::uint32_t>(c));
  const T* x = static_cast<const T*>(a.x) + c;
  T* y = static_cast<T*>(a.y) + h * a.D + c;  // c = h D + the channel
  const std::int64_t end = min((blockIdx.y + 1) * kRows, a.T);
  std::int64_t t = blockIdx.y * kRows + threadIdx.x / lanes;
  if (t >= end) return;
  const int rows_at_once = kThreads / lanes;
  auto next = HeldPack<T, kN>::load(x + t * C);
  std::int32_t next_position = a.positions[t];
  while (t < end) {
    const auto values = next;
    const auto position = static_cast<std::uint32_t>(next_position);
    T* const to = y + t * 2 * C;
    t += rows_at_once;
    if (t < end) {
      next = HeldPack<T, kN>::load(x + t * C);
      next_position = a.positions[t];
    }
    float with_cos[kN], with_sin[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      float cos, sin;
      turn<T>(position, fixed[i], cos, sin);
      with_cos[i] = values[i] * cos;
      with_sin[i] = values[i] * sin;
    }
    store_pack(to, with_cos);
    store_pack(to + a.D, with_sin);
  }
}

template <int kN>
struct FixedTurns {
  std::uint64_t data[kN];
};

// Sums of dtheta; dx on the way.
template <class T>
struct EncodeGradients {
  LrpeBackward a;
  Divider width;

  template <int kN>
  __device__ FixedTurns<kN> prepare(std::int64_t c) const {
    FixedTurns<kN> fixed;
    load_fixed_turns(a.theta, c, fixed.data);
    return fixed;
  }

  static constexpr int kAhead = 1, kResidentBlocks = 4;
  template <int kN>
  struct Held {
    HeldPack<T, kN> x, dy_cos, dy_sin;
    std::uint32_t position;
  };
  template <int kN>
  __device__ Held<kN> load(std::int64_t t, std::int64_t c) const {
    const std::int64_t h = width.quotient(static_cast<std::uint32_t>(c));
    const T* dy = static_cast<const T*>(a.dy) + (t * a.H + h) * 2 * a.D + c - h * a.D;
    return {HeldPack<T, kN>::load(static_cast<const T*>(a.x) + t * a.H * a.D + c), HeldPack<T, kN>::load(dy),
            HeldPack<T, kN>::load(dy + a.D), static_cast<std::uint32_t>(a.positions[t])};
  }
  template <int kN>
  __device__ void add(const FixedTurns<kN>& fixed, const Held<kN>& held, std::int64_t t, std::int64_t c,
                      float (&sums)[1][kN]) const {
    float dx[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      float cos, sin;
      turn<T>(held.position, fixed.data[i], cos, sin);
      const float slope = fmaf(cos, held.dy_sin[i], -(sin * held.dy_cos[i]));
      sums[0][i] = fmaf(static_cast<float>(held.position) * held.x[i], slope, sums[0][i]);
      dx[i] = cos * held.dy_cos[i] + sin * held.dy_sin[i];
    }
    if (a.dx != nullptr) store_pack(static_cast<T*>(a.dx) + t * a.H * a.D + c, dx, a.write_dx);
  }
};

// Whether packs lie in one head.
template <class T>
bool fits(const void* data, std::int64_t D) {
  return packs_fit<16 / sizeof(T)>(static_cast<const T*>(data), D);
}
template <class T>
bool theta_fits(const void* theta) {
  return packs_fit<16 / sizeof(T)>(static_cast<const float*>(theta), 0);
}

}  // namespace

void lrpe_forward_cuda(const LrpeForward& a, const Launch& launch) {
  const std::int64_t C = a.H * a.D;
  if (a.T * C == 0) return;
  dispatch_cuda(a.dtype, "lrpe", [&]<class T>() {
    const auto run = [&]<int kN>() {
      const auto packs = static_cast<unsigned>((C + kN - 1) / kN);
      const unsigned lanes = std::min<unsigned>(kThreads, std::bit_ceil(packs));
      const dim3 grid((packs + lanes - 1) / lanes, static_cast<unsigned>((a.T + kRows - 1) / kRows));
      WEFT_CHECK(grid.y <= 65535, "lrpe: {} tokens in one launch", a.T);
      encode_kernel<T, kN><<<grid, kThreads, 0, cuda_stream(launch.stream)>>>(
          a, Divider(static_cast<std::uint32_t>(a.D)), static_cast<int>(lanes));
    };
    if (fits<T>(a.x, a.D) && fits<T>(a.y, a.D) && theta_fits<T>(a.theta)) {
      run.template operator()<16 / sizeof(T)>();
    } else {
      run.template operator()<1>();
    }
  });
  WEFT_CHECK_LAUNCH();
}

std::size_t lrpe_backward_cuda_workspace(const LrpeBackward& a) {
  return column_sums_workspace(a.T, a.H * a.D, 1);
}

void lrpe_backward_cuda(const LrpeBackward& a, const Launch& launch) {
  const std::int64_t C = a.H * a.D;
  if (C == 0) return;
  auto* lines = static_cast<float*>(launch.workspace);
  dispatch_cuda(a.dtype, "lrpe", [&]<class T>() {
    const EncodeGradients<T> gradients{a, Divider(static_cast<std::uint32_t>(a.D))};
    if (fits<T>(a.x, a.D) && fits<T>(a.dy, a.D) && fits<T>(a.dx, a.D) && theta_fits<T>(a.theta)) {
      column_sums<16 / sizeof(T), 1>(launch, a.T, C, lines, gradients);
    } else {
      column_sums<1, 1>(launch, a.T, C, lines, gradients);
    }
  });
  if (a.dtheta == nullptr) return;
  add_lines(launch, lines, column_blocks(a.T, C).count, C, PutTotal{static_cast<float*>(a.dtheta), a.write_dtheta});
}

}  // namespace weft
