// CUDA kernels of linear_cross_entropy.h.
//
// T tokens, n of them in a chunk, d width, V vocabulary. For each chunk: its rows of x with those of ignored tokens
// made zero, a product into fp32 logits [n, V], one kernel that turns them into losses and, in place, into their
// gradient in the type of x, and the two products of the gradients. All tokens of a chunk are computed, ignored or not:
// their number is known on the device only.
#include <algorithm>

#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/matmul.h"
#include "autograd/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "autograd/tile/reduce.cuh"

namespace weft {
namespace {

// Each chunk reads the weight twice and reads and writes the fp32 gradient of the weight, so that chunks of less than
// about 2000 tokens are bound by memory whatever V is.
constexpr std::int64_t kChunkBytes = std::int64_t{1} << 30;
constexpr std::int64_t kLeastChunk = 256;
constexpr std::int64_t kMostChunk = 4096;

constexpr int kThreads = 512;
constexpr int kPack = 4;   // logits in one access
constexpr int kPacks = 4;  // accesses of a thread in flight
constexpr int kTile = kThreads * kPack * kPacks;

// Rows of logits start on 16 bytes.
std::int64_t row_stride(std::int64_t V) {
  return (V + kPack - 1) / kPack * kPack;
}

struct Workspace {
  std::int64_t n;  // tokens in a chunk
  std::byte* products;
  float* logits;      // [n, row_stride(V)]
  std::byte* x;       // [n, d]
  float* token_loss;  // [T]
  float* log_z;       // [T]

  // With a null base, only `bytes` is meaningful.
  static Workspace carve(const LinearCrossEntropyForward& a, std::byte* base, std::size_t& bytes) {
    const std::int64_t stride = row_stride(a.V);
    const std::int64_t fitting = kChunkBytes / (stride * static_cast<std::int64_t>(sizeof(float))) / 128 * 128;
    Workspace w{};
    w.n = std::min(std::clamp(fitting, kLeastChunk, kMostChunk), a.T);
    bytes = 0;
    const auto take = [&]<class E>(E*& block, std::size_t size) {
      if (base != nullptr) block = reinterpret_cast<E*>(base + bytes);
      bytes += padded_block(size, Hygiene::trusting);
    };
    const auto count = static_cast<std::size_t>(w.n), T = static_cast<std::size_t>(a.T);
    take(w.products, kMatmulWorkspace);
    take(w.logits, count * static_cast<std::size_t>(stride) * sizeof(float));
    take(w.x, count * static_cast<std::size_t>(a.d) * size_of(a.dtype));
    take(w.token_loss, T * sizeof(float));
    take(w.log_z, T * sizeof(float));
    return w;
  }
};

// One block a row: a copy in which the rows of ignored tokens are zero, whatever they held.
template <class T, int kN>
__global__ void keep_labelled(std::int64_t d, const std::int32_t* __restrict__ labels, const T* __restrict__ x,
                              T* __restrict__ kept) {
  const std::int64_t row = blockIdx.x;
  const bool labelled = labels[row] != -1;
  for (std::int64_t c = static_cast<std::int64_t>(threadIdx.x) * kN; c < d; c += blockDim.x * kN) {
    float values[kN] = {};
    if (labelled) load_pack(x + row * d + c, values);
    store_pack(kept + row * d + c, values);
  }
}

// The elements of a thread in one tile of a row; those past the row are -infinity, which no sum notices.
__device__ void load_tile(const float* row, std::int64_t V, std::int64_t begin, float (&value)[kPacks][kPack]) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const std::int64_t at = begin + (p * kThreads + static_cast<int>(threadIdx.x)) * kPack;
    if (at + kPack <= V) {
      load_pack(row + at, value[p]);
    } else {
#pragma unroll
      for (int i = 0; i < kPack; ++i) value[p][i] = at + i < V ? row[at + i] : -INFINITY;
    }
  }
}

template <class T>
__device__ void store_tile(T* row, std::int64_t V, std::int64_t begin, const float (&value)[kPacks][kPack]) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const std::int64_t at = begin + (p * kThreads + static_cast<int>(threadIdx.x)) * kPack;
    if (at + kPack <= V) {
      store_pack(row + at, value[p]);
    } else {
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        if (at + i < V) row[at + i] = from_float<T>(value[p][i]);
      }
    }
  }
}

struct TokenLosses {
  std::int64_t V, stride;
  float inverse_denominator;
  const float* recorded_denominator;  // or null
  float z_loss;
  bool gradient;
  const std::int32_t* labels;  // of the chunk, as all that follow
  const float* weights;        // or null
  float* logits;               // [n, stride]; become their gradient, packed at the start of each row
  float* token_loss;
  float* log_z;
};

// e^(x - y) of logits.
__device__ float exp_difference(float x, float y) {
  return tile::exp2_fast((x - y) * tile::kLog2e);
}

// One block a row. The first pass finds the largest logit and the sum of exponentials, the second writes gradients over
// the logits: a gradient is never wider than a logit, so it overwrites only what the block has read.
template <class T>
__global__ void __launch_bounds__(kThreads) token_losses(const TokenLosses a) {
  __shared__ float scratch[kThreads / tile::kWarp];
  const std::int64_t token = blockIdx.x;
  float* const row = a.logits + token * a.stride;
  T* const gradient = reinterpret_cast<T*>(row);
  const std::int32_t label = a.labels[token];
  float value[kPacks][kPack];
  if (label == -1) {
    if (threadIdx.x == 0) a.token_loss[token] = a.log_z[token] = 0.0f;
    if (!a.gradient) return;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) value[p][i] = 0.0f;
    }
    for (std::int64_t begin = 0; begin < a.V; begin += kTile) store_tile(gradient, a.V, begin, value);
    return;
  }

  float most = -INFINITY, sum = 0.0f;  // of this thread
  for (std::int64_t begin = 0; begin < a.V; begin += kTile) {
    load_tile(row, a.V, begin, value);
    float largest = most;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) largest = fmaxf(largest, value[p][i]);
    }
    if (largest == -INFINITY) continue;
    sum *= exp_difference(most, largest);
    most = largest;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int i = 0; i < kPack; ++i) sum += exp_difference(value[p][i], most);
    }
  }
  const bool known = label >= 0 && label < a.V;
  const float label_logit = known ? row[label] : NAN;
  const float largest = tile::reduce_block<tile::Max, kThreads>(most, scratch);
  if (most != -INFINITY) sum *= exp_difference(most, largest);
  sum = tile::reduce_block<tile::Sum, kThreads>(sum, scratch);
  const float log_sum = logf(sum);
  if (threadIdx.x == 0) {
    a.token_loss[token] = log_sum + (largest - label_logit);
    a.log_z[token] = log_sum + largest;
  }
  if (!a.gradient) return;

  const float inverse = a.recorded_denominator != nullptr ? 1.0f / *a.recorded_denominator : a.inverse_denominator;
  const float scale = (a.weights != nullptr ? a.weights[token] : 1.0f) * inverse;
  const float k = scale * (1.0f + 2.0f * a.z_loss * (log_sum + largest)) / sum;
  for (std::int64_t begin = 0; begin < a.V; begin += kTile) {
    load_tile(row, a.V, begin, value);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const std::int64_t at = begin + (p * kThreads + static_cast<int>(threadIdx.x)) * kPack;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        value[p][i] = k * exp_difference(value[p][i], largest) - (at + i == label ? scale : 0.0f);
      }
    }
    if (sizeof(T) < sizeof(float)) __syncthreads();
    store_tile(gradient, a.V, begin, value);
  }
}

// One block: sums over all tokens in fp64, by a fixed tree.
constexpr int kSumThreads = 512;
__global__ void __launch_bounds__(kSumThreads)
    sum_losses(std::int64_t T, double denominator, const float* recorded_denominator, double z_loss,
               const std::int32_t* __restrict__ labels, const float* __restrict__ weights,
               const float* __restrict__ token_loss, const float* __restrict__ log_z, double* __restrict__ sums,
               float* __restrict__ loss) {
  __shared__ double partial[4][kSumThreads];
  double sum[4] = {};
  for (std::int64_t t = threadIdx.x; t < T; t += kSumThreads) {
    if (labels[t] == -1) continue;
    const double weight = weights != nullptr ? static_cast<double>(weights[t]) : 1.0;
    const double z = log_z[t];
    sum[0] += weight * static_cast<double>(token_loss[t]);
    sum[1] += weight * z * z;
    sum[2] += weight;
    sum[3] += 1.0;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) partial[i][threadIdx.x] = sum[i];
  for (int half = kSumThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) partial[i][threadIdx.x] += partial[i][threadIdx.x + half];
    }
  }
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] = partial[i][0];
  if (recorded_denominator != nullptr) denominator = *recorded_denominator;
  *loss = static_cast<float>((partial[0][0] + z_loss * partial[1][0]) / denominator);
}

struct ScaleBySeed {
  const float* seed;
  __device__ void operator()(float gradient, float& y) const { y = *seed * gradient; }
};

template <class T>
void forward(const LinearCrossEntropyForward& a, const Launch& launch) {
  const cudaStream_t stream = cuda_stream(launch.stream);
  std::size_t bytes = 0;
  const Workspace w = Workspace::carve(a, static_cast<std::byte*>(launch.workspace), bytes);
  const Launch products{.stream = launch.stream, .workspace = w.products, .workspace_bytes = kMatmulWorkspace};
  float* const token_loss = a.token_losses != nullptr ? static_cast<float*>(a.token_losses) : w.token_loss;
  const std::int64_t stride = row_stride(a.V);
  const std::int64_t gradient_stride = stride * static_cast<std::int64_t>(sizeof(float) / sizeof(T));
  T* const kept = reinterpret_cast<T*>(w.x);
  const bool packs = packs_fit<8>(static_cast<const T*>(a.x), a.d);
  for (std::int64_t begin = 0; begin < a.T; begin += w.n) {
    const std::int64_t n = std::min(w.n, a.T - begin);
    const T* const x = static_cast<const T*>(a.x) + begin * a.d;
    const std::int32_t* const labels = a.labels + begin;
    const auto blocks = static_cast<unsigned>(n);
    if (packs) {
      keep_labelled<T, 8><<<blocks, 128, 0, stream>>>(a.d, labels, x, kept);
    } else {
      keep_labelled<T, 1><<<blocks, 128, 0, stream>>>(a.d, labels, x, kept);
    }
    WEFT_CHECK_LAUNCH();
    matmul({.op_b = Op::transpose,
            .m = n,
            .n = a.V,
            .k = a.d,
            .operands = a.dtype,
            .output = DType::f32,
            .a = kept,
            .b = a.weight,
            .c = w.logits,
            .lda = a.d,
            .ldb = a.d,
            .ldc = stride},
           products);
    token_losses<T><<<blocks, kThreads, 0, stream>>>({.V = a.V,
                                                      .stride = stride,
                                                      .inverse_denominator = static_cast<float>(1.0 / a.denominator),
                                                      .recorded_denominator = a.recorded_denominator,
                                                      .z_loss = static_cast<float>(a.z_loss),
                                                      .gradient = a.dx != nullptr || a.dweight != nullptr,
                                                      .labels = labels,
                                                      .weights = a.weights == nullptr ? nullptr : a.weights + begin,
                                                      .logits = w.logits,
                                                      .token_loss = token_loss + begin,
                                                      .log_z = w.log_z + begin});
    WEFT_CHECK_LAUNCH();
    if (a.dx != nullptr) {
      matmul({.m = n,
              .n = a.d,
              .k = a.V,
              .operands = a.dtype,
              .output = a.dtype,
              .a = w.logits,
              .b = a.weight,
              .c = static_cast<T*>(a.dx) + begin * a.d,
              .lda = gradient_stride,
              .ldb = a.d,
              .ldc = a.d},
             products);
    }
    if (a.dweight != nullptr) {
      matmul({.op_a = Op::transpose,
              .m = a.V,
              .n = a.d,
              .k = n,
              .operands = a.dtype,
              .output = DType::f32,
              .a = w.logits,
              .b = kept,
              .c = a.dweight,
              .lda = gradient_stride,
              .ldb = a.d,
              .ldc = a.d,
              .beta = begin == 0 ? beta_of(a.write_dweight) : 1.0f},
             products);
    }
  }
  if (a.T == 0 && a.dweight != nullptr && a.write_dweight == Write::overwrite) {
    WEFT_CUDA_CALL(cudaMemsetAsync(a.dweight, 0, static_cast<std::size_t>(a.V * a.d) * sizeof(float), stream));
  }
  sum_losses<<<1, kSumThreads, 0, stream>>>(a.T, a.denominator, a.recorded_denominator, a.z_loss, a.labels, a.weights,
                                            token_loss, w.log_z, a.sums, static_cast<float*>(a.loss));
  WEFT_CHECK_LAUNCH();
}

}  // namespace

std::size_t linear_cross_entropy_forward_cuda_workspace(const LinearCrossEntropyForward& args) {
  std::size_t bytes = 0;
  Workspace::carve(args, nullptr, bytes);
  return bytes;
}

void linear_cross_entropy_forward_cuda(const LinearCrossEntropyForward& args, const Launch& launch) {
  dispatch_cuda(args.dtype, "linear_cross_entropy", [&]<class T>() { forward<T>(args, launch); });
}

void linear_cross_entropy_backward_cuda(const LinearCrossEntropyBackward& args, const Launch& launch) {
  dispatch_cuda(args.dtype, "linear_cross_entropy", [&]<class T>() {
    map_cuda(launch, args.n, map_inputs(static_cast<const T*>(args.gradient)),
             map_outputs(map_output(static_cast<T*>(args.target), args.write)),
             ScaleBySeed{static_cast<const float*>(args.seed)});
  });
}

}  // namespace weft
