// CUDA kernels of branch_gate.h: a warp for each row, in packs of 4 where rows allow it.
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/tile/reduce.cuh"
#include "modules/mixers/nsa/branch_gate.h"

namespace weft {
namespace {

constexpr int kWarps = 8, kWarp = 32, kPack = 4;

__device__ inline float gate_of(float g) {
  return 1.0f / (1.0f + tile::exp2_fast(-g * tile::kLog2e));
}

template <class T>
struct Branches {
  const T* o[kBranches];
};

template <class T, int kN>
__global__ void __launch_bounds__(kWarps* kWarp)
    forward_kernel(std::int64_t R, int D, Branches<T> in, const T* g, T* y) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= R) return;
  float gate[kBranches];
#pragma unroll
  for (int b = 0; b < kBranches; ++b) gate[b] = gate_of(to_float(g[row * kBranches + b]));
  for (int c = static_cast<int>(threadIdx.x % kWarp) * kN; c < D; c += kWarp * kN) {
    float sum[kN] = {};
#pragma unroll
    for (int b = 0; b < kBranches; ++b) {
      float x[kN];
      load_pack(in.o[b] + row * D + c, x);
#pragma unroll
      for (int i = 0; i < kN; ++i) sum[i] += gate[b] * x[i];
    }
    store_pack(y + row * D + c, sum);
  }
}

template <class T>
struct BranchGradients {
  T* d_o[kBranches];
  Write write[kBranches];
};

template <class T, int kN>
__global__ void __launch_bounds__(kWarps* kWarp)
    backward_kernel(std::int64_t R, int D, Branches<T> in, const T* g, const T* dy, BranchGradients<T> out, T* dg,
                    Write write_dg) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= R) return;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  float gate[kBranches], dot[kBranches] = {};
#pragma unroll
  for (int b = 0; b < kBranches; ++b) gate[b] = gate_of(to_float(g[row * kBranches + b]));
  for (int c = lane * kN; c < D; c += kWarp * kN) {
    float slope[kN];
    load_pack(dy + row * D + c, slope);
#pragma unroll
    for (int b = 0; b < kBranches; ++b) {
      float x[kN];
      if (dg != nullptr) {
        load_pack(in.o[b] + row * D + c, x);
#pragma unroll
        for (int i = 0; i < kN; ++i) dot[b] += slope[i] * x[i];
      }
      if (out.d_o[b] == nullptr) continue;
#pragma unroll
      for (int i = 0; i < kN; ++i) x[i] = gate[b] * slope[i];
      store_pack(out.d_o[b] + row * D + c, x, out.write[b]);
    }
  }
  if (dg == nullptr) return;
#pragma unroll
  for (int b = 0; b < kBranches; ++b) {
    const float total[1] = {tile::reduce_lanes<tile::Sum>(dot[b]) * gate[b] * (1.0f - gate[b])};
    if (lane == 0) store_pack(dg + row * kBranches + b, total, write_dg);
  }
}

unsigned grid_of(std::int64_t R) {
  return static_cast<unsigned>((R + kWarps - 1) / kWarps);
}

template <class T>
Branches<T> branches(const std::array<const void*, kBranches>& o) {
  return {{static_cast<const T*>(o[0]), static_cast<const T*>(o[1]), static_cast<const T*>(o[2])}};
}

}  // namespace

void branch_gate_forward_cuda(const BranchGateForward& args, const Launch& launch) {
  if (args.R == 0) return;
  dispatch_cuda(args.dtype, "branch gate", [&]<class T>() {
    const auto in = branches<T>(args.o);
    auto* const y = static_cast<T*>(args.y);
    const auto run = [&]<int kN>() {
      forward_kernel<T, kN><<<grid_of(args.R), kWarps * kWarp, 0, cuda_stream(launch.stream)>>>(
          args.R, static_cast<int>(args.D), in, static_cast<const T*>(args.g), y);
    };
    const bool packs = packs_fit<kPack>(in.o[0], args.D) && packs_fit<kPack>(in.o[1], args.D) &&
                       packs_fit<kPack>(in.o[2], args.D) && packs_fit<kPack>(y, args.D);
    packs ? run.template operator()<kPack>() : run.template operator()<1>();
    WEFT_CHECK_LAUNCH();
  });
}

void branch_gate_backward_cuda(const BranchGateBackward& args, const Launch& launch) {
  if (args.R == 0) return;
  dispatch_cuda(args.dtype, "branch gate", [&]<class T>() {
    const auto in = branches<T>(args.o);
    const auto* const dy = static_cast<const T*>(args.dy);
    BranchGradients<T> out{};
    bool packs = packs_fit<kPack>(dy, args.D);
    for (std::size_t b = 0; b < kBranches; ++b) {
      out.d_o[b] = static_cast<T*>(args.d_o[b]);
      out.write[b] = args.write_d_o[b];
      packs = packs && packs_fit<kPack>(in.o[b], args.D) && packs_fit<kPack>(out.d_o[b], args.D);
    }
    const auto run = [&]<int kN>() {
      backward_kernel<T, kN><<<grid_of(args.R), kWarps * kWarp, 0, cuda_stream(launch.stream)>>>(
          args.R, static_cast<int>(args.D), in, static_cast<const T*>(args.g), dy, out, static_cast<T*>(args.dg),
          args.write_dg);
    };
    packs ? run.template operator()<kPack>() : run.template operator()<1>();
    WEFT_CHECK_LAUNCH();
  });
}

}  // namespace weft
