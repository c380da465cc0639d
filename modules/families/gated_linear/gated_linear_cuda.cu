// Launchers of gated_linear.h on CUDA: the choice of kernels, and the decoding step.
#include <algorithm>

#include "autograd/cuda/cuda_check.cuh"
#include "modules/families/gated_linear/gated_linear_cuda.h"
#include "modules/families/gated_linear/gated_linear_device.cuh"

namespace weft {
namespace {

// S <- diag(e^g) S + k^T v, o = s q S for 32 value channels of one head: lanes over value channels, warps over key
// channels, whose parts of o are then added up.
constexpr int kWarps = 8;

struct DecodeProblem {
  DecayKind kind;
  std::int64_t H, d_k, d_v, heads_per_key;
  float scale;
  DeviceRows q, k, v, o;
  const float* g;
  float* state;
};

__global__ void __launch_bounds__(32 * kWarps) decode(DecodeProblem p) {
  __shared__ float parts[kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::int64_t n = blockIdx.x, h = blockIdx.y, y = blockIdx.z * 32 + lane;
  const std::int64_t hk = h / p.heads_per_key;
  const bool active = y < p.d_v;
  const float v = active ? p.v.at(n, h, y) : 0.0f;
  float sum = 0.0f;
  for (std::int64_t x = warp; x < p.d_k; x += kWarps) {
    const std::int64_t token = n * p.H + h;
    const float g = p.g[p.kind == DecayKind::constant ? h : p.kind == DecayKind::scalar ? token : token * p.d_k + x];
    if (!active) continue;
    float& at = p.state[(token * p.d_k + x) * p.d_v + y];
    const float S = DeviceStateDecay(g).advance(at, p.k.at(n, hk, x) * v);
    at = S;
    sum = fmaf(p.q.at(n, hk, x), S, sum);
  }
  parts[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || !active) return;
  for (int w = 1; w < kWarps; ++w) sum += parts[w][lane];
  p.o.put(n, h, y, p.scale * sum, Write::overwrite);
}

// One set of kernels.
struct Kernels {
  std::int64_t chunk;
  void (*forward)(const GatedLinearForward&, const Launch&);
  void (*backward)(const GatedLinearBackward&, const Launch&);
  std::size_t (*forward_workspace)(const GatedLinearForward&);
  std::size_t (*backward_workspace)(const GatedLinearBackward&);
};

const Kernels& kernels_for(const GatedLinearProblem& p) {
  static constexpr Kernels kGeneral{general::kChunk, general::forward, general::backward, general::forward_workspace,
                                    general::backward_workspace};
  static constexpr Kernels kChannels{general::kChunk, channels::forward, channels::backward,
                                     channels::forward_workspace, channels::backward_workspace};
  static constexpr Kernels kRow{row::kChunk, row::forward, row::backward, row::forward_workspace,
                                row::backward_workspace};
  static constexpr Kernels kWalk{walk::kSegment, walk::forward, walk::backward, walk::forward_workspace,
                                 walk::backward_workspace};
  if (!row::serves(p)) return kGeneral;
  if (p.kind == DecayKind::vector) return kChannels;
  // Pairs of blocks that walk whole rows keep most of the device busy.
  return p.H * std::min(p.d_k, p.d_v) / 64 >= 40 ? kRow : kWalk;
}

}  // namespace

std::int64_t gated_linear_chunk_cuda(const GatedLinearProblem& p) {
  return kernels_for(p).chunk;
}

std::size_t gated_linear_forward_cuda_workspace(const GatedLinearForward& args) {
  return kernels_for(args).forward_workspace(args);
}

std::size_t gated_linear_backward_cuda_workspace(const GatedLinearBackward& args) {
  return kernels_for(args).backward_workspace(args);
}

void gated_linear_forward_cuda(const GatedLinearForward& args, const Launch& launch) {
  kernels_for(args).forward(args, launch);
}

void gated_linear_backward_cuda(const GatedLinearBackward& args, const Launch& launch) {
  kernels_for(args).backward(args, launch);
}

void gated_linear_decode_cuda(const GatedLinearDecode& args, const Launch& launch) {
  if (args.N == 0 || args.H == 0) return;
  const DecodeProblem p{.kind = args.kind,
                        .H = args.H,
                        .d_k = args.d_k,
                        .d_v = args.d_v,
                        .heads_per_key = args.H / args.H_k,
                        .scale = static_cast<float>(args.scale),
                        .q = device_rows(args.q, args.dtype, args.H_k, args.d_k),
                        .k = device_rows(args.k, args.dtype, args.H_k, args.d_k),
                        .v = device_rows(args.v, args.dtype, args.H, args.d_v),
                        .o = device_rows(args.o, args.dtype, args.H, args.d_v),
                        .g = static_cast<const float*>(args.g),
                        .state = static_cast<float*>(args.state)};
  const dim3 grid(static_cast<unsigned>(args.N), static_cast<unsigned>(args.H),
                  static_cast<unsigned>((args.d_v + 31) / 32));
  decode<<<grid, 32 * kWarps, 0, cuda_stream(launch.stream)>>>(p);
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft
