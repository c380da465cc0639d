// One token of each sequence on CUDA: the state is read and written once, in place.
//
// A block has the value columns of one head, one for each thread and quarter of the key channels; fp32.
#include "autograd/cuda/map_cuda.cuh"
#include "modules/families/delta_rule/delta_rule_cuda.h"

namespace weft {
namespace {

constexpr int kColumns = 32;  // of a block: one for each lane
constexpr int kParts = 8;     // warps, each with every kParts-th key channel
constexpr int kThreads = kColumns * kParts;

template <class T>
__global__ void __launch_bounds__(kThreads) decode_kernel(DeltaRuleDecode a) {
  extern __shared__ float shared[];
  const int D = static_cast<int>(a.d_k), thread = static_cast<int>(threadIdx.x);
  float *q = shared, *k = q + D, *decay = k + D, *sums = decay + D;  // sums [2][kParts][kColumns], then q k^T
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x);      // sequence and head
  const std::int64_t key = (i / a.H * a.H_K + i % a.H / (a.H / a.H_K)) * a.d_k;
  const auto* g = static_cast<const float*>(a.g);
  for (int x = thread; x < D; x += kThreads) {
    q[x] = to_float(static_cast<const T*>(a.q)[key + x]);
    k[x] = to_float(static_cast<const T*>(a.k)[key + x]);
    decay[x] = a.decay == DeltaDecay::none ? 1.0f : expf(a.decay == DeltaDecay::scalar ? g[i] : g[i * a.d_k + x]);
  }
  __syncthreads();
  const int column = thread % kColumns, part = thread / kColumns;
  const std::int64_t y = static_cast<std::int64_t>(blockIdx.y) * kColumns + column;
  const bool is_there = y < a.d_v;
  float* S = static_cast<float*>(a.state) + i * a.d_k * a.d_v + y;
  float prediction = 0.0f, output = 0.0f, both = 0.0f;
  for (int x = part; x < D; x += kParts) {
    const float s = is_there ? decay[x] * S[x * a.d_v] : 0.0f;
    prediction += k[x] * s;
    output += q[x] * s;
    both += q[x] * k[x];
  }
  sums[part * kColumns + column] = prediction;
  sums[(kParts + part) * kColumns + column] = output;
  if (column == 0) sums[2 * kParts * kColumns + part] = both;
  __syncthreads();
  prediction = output = both = 0.0f;
  for (int w = 0; w < kParts; ++w) {
    prediction += sums[w * kColumns + column];
    output += sums[(kParts + w) * kColumns + column];
    both += sums[2 * kParts * kColumns + w];
  }
  if (!is_there) return;
  const float beta = static_cast<const float*>(a.beta)[i];
  const float u = beta * (to_float(static_cast<const T*>(a.v)[i * a.d_v + y]) - prediction);
  if (part == 0) {
    static_cast<T*>(a.o)[i * a.d_v + y] = from_float<T>(static_cast<float>(a.scale) * (output + both * u));
  }
  for (int x = part; x < D; x += kParts) S[x * a.d_v] = decay[x] * S[x * a.d_v] + k[x] * u;
}

}  // namespace

void delta_rule_decode_cuda(const DeltaRuleDecode& args, const Launch& launch) {
  if (args.N == 0) return;
  const dim3 grid(static_cast<unsigned>(args.N * args.H), static_cast<unsigned>((args.d_v + kColumns - 1) / kColumns));
  const std::size_t floats = static_cast<std::size_t>(3 * args.d_k) + 2 * kThreads + kParts;
  dispatch_cuda(args.dtype, "delta_rule decode", [&]<class T>() {
    decode_kernel<T><<<grid, kThreads, floats * sizeof(float), cuda_stream(launch.stream)>>>(args);
  });
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft
