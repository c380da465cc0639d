// CUDA kernels of lrpe.h. C = H D channels of a token.
#include "autograd/cuda/map_rows.cuh"
#include "autograd/cuda/row_reduce.cuh"
#include "autograd/ops/lrpe/lrpe.h"

namespace weft {
namespace {

// Cos and sin of position theta: whole turns leave in fp64, the rest of the angle is fp32.
__device__ void turn(std::int32_t position, float theta, float& cos, float& sin) {
  constexpr double kPerPi = 0.31830988618379067154;
  const double half_turns = static_cast<double>(position) * static_cast<double>(theta) * kPerPi;
  sincospif(static_cast<float>(half_turns - 2.0 * rint(0.5 * half_turns)), &sin, &cos);
}

template <class T>
struct Encode {
  LrpeForward a;
  Divider width;  // D

  template <int kN>
  __device__ void at(std::int64_t t, std::int64_t c) const {
    float x[kN], theta[kN], with_sin[kN];
    load_pack(static_cast<const T*>(a.x) + t * a.H * a.D + c, x);
    load_pack(static_cast<const float*>(a.theta) + c, theta);
    const std::int32_t position = a.positions[t];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      float cos, sin;
      turn(position, theta[i], cos, sin);
      with_sin[i] = x[i] * sin;
      x[i] *= cos;
    }
    const std::int64_t h = width.quotient(static_cast<std::uint32_t>(c));
    T* y = static_cast<T*>(a.y) + (t * a.H + h) * 2 * a.D + c - h * a.D;
    store_pack(y, x);
    store_pack(y + a.D, with_sin);
  }
};

// Sums of dtheta; dx on the way.
template <class T>
struct EncodeGradients {
  LrpeBackward a;
  Divider width;

  template <int kN>
  __device__ ColumnPacks<kN> prepare(std::int64_t c) const {
    ColumnPacks<kN> theta;
    load_pack(static_cast<const float*>(a.theta) + c, theta.data[0]);
    return theta;
  }

  template <int kN>
  __device__ void add(const ColumnPacks<kN>& theta, std::int64_t t, std::int64_t c, float (&sums)[1][kN]) const {
    const std::int64_t h = width.quotient(static_cast<std::uint32_t>(c));
    const T* dy = static_cast<const T*>(a.dy) + (t * a.H + h) * 2 * a.D + c - h * a.D;
    float x[kN], dy_cos[kN], dy_sin[kN];
    load_pack(static_cast<const T*>(a.x) + t * a.H * a.D + c, x);
    load_pack(dy, dy_cos);
    load_pack(dy + a.D, dy_sin);
    const std::int32_t position = a.positions[t];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      float cos, sin;
      turn(position, theta.data[0][i], cos, sin);
      const float slope = fmaf(cos, dy_sin[i], -(sin * dy_cos[i]));
      sums[0][i] = fmaf(static_cast<float>(position) * x[i], slope, sums[0][i]);
      x[i] = cos * dy_cos[i] + sin * dy_sin[i];
    }
    if (a.dx != nullptr) store_pack(static_cast<T*>(a.dx) + t * a.H * a.D + c, x, a.write_dx);
  }
};

constexpr int kPack = 4;

// A pack lies in one head.
template <class T>
bool fits(const void* data, std::int64_t D) {
  return packs_fit<kPack>(static_cast<const T*>(data), D);
}

}  // namespace

void lrpe_forward_cuda(const LrpeForward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "lrpe", [&]<class T>() {
    map_rows<kPack>(launch, a.T, a.H * a.D, fits<T>(a.x, a.D) && fits<T>(a.y, a.D) && fits<float>(a.theta, a.D),
                    Encode<T>{a, Divider(static_cast<std::uint32_t>(a.D))});
  });
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
    if (fits<T>(a.x, a.D) && fits<T>(a.dy, a.D) && fits<T>(a.dx, a.D) && fits<float>(a.theta, a.D)) {
      column_sums<kPack, 1>(launch, a.T, C, lines, gradients);
    } else {
      column_sums<1, 1>(launch, a.T, C, lines, gradients);
    }
  });
  if (a.dtheta == nullptr) return;
  add_lines(launch, lines, column_blocks(a.T, C).count, C, PutTotal{static_cast<float*>(a.dtheta), a.write_dtheta});
}

}  // namespace weft
