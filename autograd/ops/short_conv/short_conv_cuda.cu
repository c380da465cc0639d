// CUDA kernels of short_conv.h. A thread walks the tokens of a block of one document for a few neighbouring channels,
// with the last inputs in registers; x is read once. Kernels for kTaps taps serve any smaller number: the taps that are
// not there come first and are left out.
#include "autograd/cuda/functions.cuh"
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/row_reduce.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/ops/short_conv/short_conv.h"

namespace weft {
namespace {

constexpr int kThreads = 128;
constexpr int kChannels = 4;  // of a thread, if aligned: its inputs, taps and sums must stay in registers
constexpr int kAhead = 4;     // tokens asked for at once
constexpr int kBackwardAhead = 4;

// weight [C, w] -> taps of kN channels.
template <int kTaps, int kN, class T>
__device__ void load_taps(const T* weight, std::int64_t channel, int w, float (&taps)[kTaps][kN]) {
#pragma unroll
  for (int j = 0; j < kTaps; ++j) {
    const int tap = j - (kTaps - w);
#pragma unroll
    for (int c = 0; c < kN; ++c) taps[j][c] = tap >= 0 ? to_float(weight[(channel + c) * w + tap]) : 0.0f;
  }
}

// --- forward ---------------------------------------------------------------------------------------------------------

// kExact: w = kTaps.
template <class T, int kTaps, bool kExact, int kN>
__global__ void __launch_bounds__(kThreads) convolution_forward_kernel(ShortConvolutionForward a) {
  const std::int64_t channel = (static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kN;
  const Chunk chunk = a.chunks.chunks[blockIdx.x];
  if (channel >= a.C || chunk.begin >= chunk.end) return;
  const int w = kExact ? kTaps : static_cast<int>(a.w), first_tap = kTaps - w;
  const int tokens = chunk.end - chunk.begin;
  const T* x = static_cast<const T*>(a.x) + chunk.begin * a.C + channel;
  T* y = static_cast<T*>(a.y) + chunk.begin * a.C + channel;
  float taps[kTaps][kN], bias[kN] = {};
  load_taps<kTaps, kN>(static_cast<const T*>(a.weight), channel, w, taps);
  if (a.bias != nullptr) load_pack(static_cast<const float*>(a.bias) + channel, bias);
  const bool silu = a.activation == ConvolutionActivation::silu;

  // inputs[i + j] is what tap j of token i of a group of kAhead reads.
  constexpr int kPast = kTaps - 1;
  float inputs[kPast + kAhead][kN];
#pragma unroll
  for (int j = 0; j < kPast; ++j) {
#pragma unroll
    for (int c = 0; c < kN; ++c) inputs[j][c] = 0.0f;
    if (j < first_tap) continue;
    if (chunk.index > 0) {
      load_pack(x + (j - kPast) * a.C, inputs[j]);
    } else if (a.state != nullptr) {
      const T* state = static_cast<const T*>(a.state) + (chunk.document * a.C + channel) * (w - 1) + j - first_tap;
#pragma unroll
      for (int c = 0; c < kN; ++c) inputs[j][c] = to_float(state[c * (w - 1)]);
    }
  }
  HeldPack<T, kN> next[kAhead];
  const auto fetch = [&](int first) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      next[i] = first + i < tokens ? HeldPack<T, kN>::load(x + (first + i) * a.C) : HeldPack<T, kN>::zero();
    }
  };
  fetch(0);
  for (int first = 0; first < tokens; first += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
#pragma unroll
      for (int c = 0; c < kN; ++c) inputs[kPast + i][c] = next[i][c];
    }
    fetch(first + kAhead);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= tokens) break;
      float u[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) u[c] = bias[c];
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        if (!kExact && j < first_tap) continue;
#pragma unroll
        for (int c = 0; c < kN; ++c) u[c] += taps[j][c] * inputs[i + j][c];
      }
      if (silu) {
#pragma unroll
        for (int c = 0; c < kN; ++c) u[c] *= device_sigmoid(u[c]);
      }
      store_pack(y + (first + i) * a.C, u);
    }
#pragma unroll
    for (int j = 0; j < kPast; ++j) {
#pragma unroll
      for (int c = 0; c < kN; ++c) inputs[j][c] = inputs[j + kAhead][c];
    }
  }
}

// state [N, C, w-1] <- the last w-1 inputs of every document, counting those that the state held before.
template <class T>
__global__ void __launch_bounds__(kThreads) advance_state_kernel(ShortConvolutionForward a) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= a.N * a.C) return;
  const std::int64_t n = at / a.C, c = at % a.C, S = a.w - 1;
  const std::int64_t begin = a.cu_seqlens[n], end = a.cu_seqlens[n + 1];
  const std::int64_t kept = S - (end - begin) > 0 ? S - (end - begin) : 0;
  T* tail = static_cast<T*>(a.state) + at * S;
  for (std::int64_t i = 0; i < kept; ++i) tail[i] = tail[S - kept + i];
  for (std::int64_t i = kept; i < S; ++i) tail[i] = static_cast<const T*>(a.x)[(end - S + i) * a.C + c];
}

// --- backward --------------------------------------------------------------------------------------------------------

// Blocks of threads that share out the chunks of one strip of channels; each makes a line of the sums. As many as an
// H100 holds at once.
constexpr int kResidentBlocks = 4;

std::int64_t walkers(const ShortConvolutionBackward& a, int kN) {
  constexpr std::int64_t kBlocks = 132 * kResidentBlocks;
  const std::int64_t strips = (a.C + kThreads * kN - 1) / (kThreads * kN);
  return std::clamp<std::int64_t>(kBlocks / strips, 1, std::max<std::int64_t>(1, a.chunks.count));
}

// lines [gridDim.x, w + 1, C]: gradients of the taps, then of the bias.
template <class T, int kTaps, bool kExact, int kN>
__global__ void __launch_bounds__(kThreads, kTaps == 8       ? 2
                                            : sizeof(T) == 2 ? kResidentBlocks
                                                             : 3)
    convolution_backward_kernel(ShortConvolutionBackward a, float* lines) {
  const std::int64_t channel = (static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kN;
  if (channel >= a.C) return;
  const int w = kExact ? kTaps : static_cast<int>(a.w), first_tap = kTaps - w;
  const bool silu = a.activation == ConvolutionActivation::silu;
  float taps[kTaps][kN], bias[kN] = {};
  load_taps<kTaps, kN>(static_cast<const T*>(a.weight), channel, w, taps);
  if (a.bias != nullptr) load_pack(static_cast<const float*>(a.bias) + channel, bias);
  float dtaps[kTaps][kN] = {}, dbias[kN] = {};
  constexpr int kPast = kTaps - 1;

  for (std::int64_t e = blockIdx.x; e < a.chunks.count; e += gridDim.x) {
    const Chunk chunk = a.chunks.chunks[e];
    if (chunk.begin >= chunk.end) continue;
    // Tokens count from the chunk's first. du of the w - 1 after it reaches its dx.
    const int tokens = chunk.end - chunk.begin;
    const int in_document = a.cu_seqlens[chunk.document + 1] - chunk.begin;
    const int halo = tokens + (a.dx == nullptr ? 0 : w - 1);
    const int stop = halo < in_document ? halo : in_document;
    // dx of token t - kPast is complete at t.
    const int last = a.dx == nullptr ? tokens : tokens + kPast;
    const std::int64_t start = chunk.begin * a.C + channel;
    const T* x = static_cast<const T*>(a.x) + start;
    const T* dy = static_cast<const T*>(a.dy) + start;
    T* dx = static_cast<T*>(a.dx) + start;

    // Token i of a group of kBackwardAhead reads inputs[i .. i + kPast]; du[i + k] reaches dx of the token kPast
    // before.
    float inputs[kPast + kBackwardAhead][kN], du[kPast + kBackwardAhead][kN];
#pragma unroll
    for (int j = 0; j < kPast; ++j) {
#pragma unroll
      for (int c = 0; c < kN; ++c) inputs[j][c] = du[j][c] = 0.0f;
      if (j >= first_tap && chunk.index > 0) load_pack(x + (j - kPast) * a.C, inputs[j]);
    }
    HeldPack<T, kN> next_x[kBackwardAhead], next_dy[kBackwardAhead];
    const auto fetch = [&](int first) {
#pragma unroll
      for (int i = 0; i < kBackwardAhead; ++i) {
        const bool there = first + i < stop;
        next_x[i] = there ? HeldPack<T, kN>::load(x + (first + i) * a.C) : HeldPack<T, kN>::zero();
        next_dy[i] = there ? HeldPack<T, kN>::load(dy + (first + i) * a.C) : HeldPack<T, kN>::zero();
      }
    };
    fetch(0);
    for (int first = 0; first < last; first += kBackwardAhead) {
#pragma unroll
      for (int i = 0; i < kBackwardAhead; ++i) {
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          inputs[kPast + i][c] = next_x[i][c];
          du[kPast + i][c] = next_dy[i][c];  // 0 beyond the document
        }
      }
      fetch(first + kBackwardAhead);
#pragma unroll
      for (int i = 0; i < kBackwardAhead; ++i) {
        const int t = first + i;
        if (t >= last) break;
        if (silu) {
          float u[kN];
#pragma unroll
          for (int c = 0; c < kN; ++c) u[c] = bias[c];
#pragma unroll
          for (int j = 0; j < kTaps; ++j) {
            if (!kExact && j < first_tap) continue;
#pragma unroll
            for (int c = 0; c < kN; ++c) u[c] += taps[j][c] * inputs[i + j][c];
          }
#pragma unroll
          for (int c = 0; c < kN; ++c) du[kPast + i][c] = t < stop ? du[kPast + i][c] * DeviceSilu{}.slope(u[c]) : 0.0f;
        }
        if (t < tokens) {
#pragma unroll
          for (int j = 0; j < kTaps; ++j) {
            if (!kExact && j < first_tap) continue;
#pragma unroll
            for (int c = 0; c < kN; ++c) dtaps[j][c] = fmaf(du[kPast + i][c], inputs[i + j][c], dtaps[j][c]);
          }
#pragma unroll
          for (int c = 0; c < kN; ++c) dbias[c] = __fadd_rn(dbias[c], du[kPast + i][c]);
        }
        if (a.dx == nullptr || t < kPast) continue;
        float sum[kN] = {};
#pragma unroll
        for (int k = 0; k < kTaps; ++k) {
          if (!kExact && k >= w) continue;
#pragma unroll
          for (int c = 0; c < kN; ++c) sum[c] += taps[kPast - k][c] * du[i + k][c];
        }
        store_pack(dx + (t - kPast) * a.C, sum, a.write_dx);
      }
#pragma unroll
      for (int j = 0; j < kPast; ++j) {
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          inputs[j][c] = inputs[j + kBackwardAhead][c];
          du[j][c] = du[j + kBackwardAhead][c];
        }
      }
    }
  }
  if (lines == nullptr) return;
  float* line = lines + blockIdx.x * (a.w + 1) * a.C + channel;
#pragma unroll
  for (int j = 0; j < kTaps; ++j) {
    if (j >= first_tap) store_pack(line + (j - first_tap) * a.C, dtaps[j]);
  }
  store_pack(line + a.w * a.C, dbias);
}

// Totals of the lines go to dweight [C, w] and dbias [C].
struct PutFilter {
  PutTotal dweight, dbias;
  std::int64_t C, w;
  __device__ void operator()(std::int64_t at, float total) const {
    const std::int64_t j = at / C, c = at % C;
    if (j < w) {
      if (dweight.target != nullptr) dweight(c * w + j, total);
    } else if (dbias.target != nullptr) {
      dbias(c, total);
    }
  }
};

template <class F>
void dispatch_taps(std::int64_t w, F&& f) {
  static_assert(kMaxConvolutionTaps == 8);
  if (w == 4) return f.template operator()<4, true>();
  if (w < 4) return f.template operator()<4, false>();
  f.template operator()<8, false>();
}

template <class T>
bool backward_aligned(const ShortConvolutionBackward& a) {
  constexpr int kN = kChannels;
  return packs_fit<kN>(static_cast<const T*>(a.x), a.C) && packs_fit<kN>(static_cast<const T*>(a.dy), a.C) &&
         packs_fit<kN>(static_cast<const T*>(a.dx), a.C) && packs_fit<kN>(static_cast<const float*>(a.bias), a.C);
}

std::int64_t line_count(const ShortConvolutionBackward& a) {
  bool aligned = false;
  dispatch_cuda(a.dtype, "short_convolution", [&]<class T>() { aligned = backward_aligned<T>(a); });
  return walkers(a, aligned ? kChannels : 1);
}

}  // namespace

void short_convolution_forward_cuda(const ShortConvolutionForward& a, const Launch& launch) {
  const cudaStream_t stream = cuda_stream(launch.stream);
  dispatch_cuda(a.dtype, "short_convolution", [&]<class T>() {
    constexpr int kPack = kChannels;
    const bool aligned = packs_fit<kPack>(static_cast<const T*>(a.x), a.C) &&
                         packs_fit<kPack>(static_cast<const T*>(a.y), a.C) &&
                         packs_fit<kPack>(static_cast<const float*>(a.bias), a.C);
    if (a.chunks.count * a.C > 0) {
      dispatch_taps(a.w, [&]<int kTaps, bool kExact>() {
        const auto grid = [&](int kN) {
          return dim3(static_cast<unsigned>(a.chunks.count),
                      static_cast<unsigned>((a.C + kThreads * kN - 1) / (kThreads * kN)));
        };
        if (aligned) {
          convolution_forward_kernel<T, kTaps, kExact, kPack><<<grid(kPack), kThreads, 0, stream>>>(a);
        } else {
          convolution_forward_kernel<T, kTaps, kExact, 1><<<grid(1), kThreads, 0, stream>>>(a);
        }
      });
      WEFT_CHECK_LAUNCH();
    }
    if (a.state == nullptr || a.N * a.C == 0) return;
    advance_state_kernel<T><<<static_cast<unsigned>((a.N * a.C + kThreads - 1) / kThreads), kThreads, 0, stream>>>(a);
    WEFT_CHECK_LAUNCH();
  });
}

std::size_t short_convolution_backward_cuda_workspace(const ShortConvolutionBackward& a) {
  if (a.dweight == nullptr && a.dbias == nullptr) return 0;
  return static_cast<std::size_t>(line_count(a) * (a.w + 1) * a.C) * sizeof(float);
}

void short_convolution_backward_cuda(const ShortConvolutionBackward& a, const Launch& launch) {
  if (a.C == 0) return;
  const bool sums = a.dweight != nullptr || a.dbias != nullptr;
  auto* lines = sums ? static_cast<float*>(launch.workspace) : nullptr;
  const std::int64_t count = line_count(a);
  dispatch_cuda(a.dtype, "short_convolution", [&]<class T>() {
    constexpr int kPack = kChannels;
    dispatch_taps(a.w, [&]<int kTaps, bool kExact>() {
      const auto run = [&]<int kN>() {
        const dim3 grid(static_cast<unsigned>(count),
                        static_cast<unsigned>((a.C + kThreads * kN - 1) / (kThreads * kN)));
        convolution_backward_kernel<T, kTaps, kExact, kN><<<grid, kThreads, 0, cuda_stream(launch.stream)>>>(a, lines);
      };
      if (backward_aligned<T>(a)) {
        run.template operator()<kPack>();
      } else {
        run.template operator()<1>();
      }
    });
  });
  WEFT_CHECK_LAUNCH();
  if (!sums) return;
  add_lines(launch, lines, count, (a.w + 1) * a.C,
            PutFilter{.dweight = {static_cast<float*>(a.dweight), a.write_dweight},
                      .dbias = {static_cast<float*>(a.dbias), a.write_dbias},
                      .C = a.C,
                      .w = a.w});
}

}  // namespace weft
