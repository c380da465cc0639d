// CUDA kernels of short_conv.h. A thread walks the tokens of a block of one document for a few neighbouring channels,
// with the last inputs in registers; x is read once. Kernels for kTaps taps serve any smaller number: the taps that are
// not there come first and are left out.
#include "autograd/cuda/functions.h"
#include "autograd/cuda/map_cuda.h"
#include "autograd/cuda/row_reduce.h"
#include "autograd/cuda/row_tile.h"
#include "autograd/ops/short_conv/short_conv.h"

namespace weft {
namespace {

constexpr int kThreads = 128;
constexpr int kAhead = 4;  // tokens asked for at once
constexpr int kBackwardAhead = 2;

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

template <class T, int kTaps, int kN>
__global__ void __launch_bounds__(kThreads) convolution_forward_kernel(ShortConvolutionForward a) {
  const std::int64_t channel = (static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kN;
  const Chunk chunk = a.chunks.chunks[blockIdx.x];
  if (channel >= a.C || chunk.begin >= chunk.end) return;
  const int w = static_cast<int>(a.w), first_tap = kTaps - w;
  const T* x = static_cast<const T*>(a.x) + channel;
  T* y = static_cast<T*>(a.y) + channel;
  float taps[kTaps][kN], bias[kN] = {};
  load_taps<kTaps, kN>(static_cast<const T*>(a.weight), channel, w, taps);
  if (a.bias != nullptr) load_pack(static_cast<const float*>(a.bias) + channel, bias);

  // inputs[j] of the token at hand is the one kTaps - 1 - j tokens before it; kAhead more tokens follow.
  constexpr int kPast = kTaps - 1;
  HeldPack<T, kN> inputs[kPast + kAhead];
#pragma unroll
  for (int j = 0; j < kPast; ++j) {
    inputs[j] = HeldPack<T, kN>::zero();
    if (j < first_tap) continue;
    if (chunk.index > 0) {
      inputs[j] = HeldPack<T, kN>::load(x + (chunk.begin - kPast + j) * a.C);
    } else if (a.state != nullptr) {
      const T* state = static_cast<const T*>(a.state) + (chunk.document * a.C + channel) * (w - 1) + j - first_tap;
      float before[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) before[c] = to_float(state[c * (w - 1)]);
      inputs[j] = HeldPack<T, kN>::rounded(before);
    }
  }
  for (std::int64_t t = chunk.begin; t < chunk.end; t += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      inputs[kPast + i] = t + i < chunk.end ? HeldPack<T, kN>::load(x + (t + i) * a.C) : HeldPack<T, kN>::zero();
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (t + i >= chunk.end) break;
      float u[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) u[c] = bias[c];
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        if (j < first_tap) continue;
#pragma unroll
        for (int c = 0; c < kN; ++c) u[c] += taps[j][c] * inputs[i + j][c];
      }
      if (a.activation == ConvolutionActivation::silu) {
#pragma unroll
        for (int c = 0; c < kN; ++c) u[c] *= device_sigmoid(u[c]);
      }
      store_pack(y + (t + i) * a.C, u);
    }
#pragma unroll
    for (int j = 0; j < kPast; ++j) inputs[j] = inputs[j + kAhead];
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

// Blocks of threads that share out the chunks of one strip of channels; each makes a line of the sums.
std::int64_t walkers(const ShortConvolutionBackward& a, int kN) {
  constexpr std::int64_t kBlocks = 1056;
  const std::int64_t strips = (a.C + kThreads * kN - 1) / (kThreads * kN);
  return std::clamp<std::int64_t>(kBlocks / strips, 1, std::max<std::int64_t>(1, a.chunks.count));
}

// lines [gridDim.x, w + 1, C]: gradients of the taps, then of the bias.
template <class T, int kTaps, int kN>
__global__ void __launch_bounds__(kThreads) convolution_backward_kernel(ShortConvolutionBackward a, float* lines) {
  const std::int64_t channel = (static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kN;
  if (channel >= a.C) return;
  const int w = static_cast<int>(a.w), first_tap = kTaps - w;
  const T* x = static_cast<const T*>(a.x) + channel;
  const T* dy = static_cast<const T*>(a.dy) + channel;
  T* dx = a.dx == nullptr ? nullptr : static_cast<T*>(a.dx) + channel;
  float taps[kTaps][kN], bias[kN] = {};
  load_taps<kTaps, kN>(static_cast<const T*>(a.weight), channel, w, taps);
  if (a.bias != nullptr) load_pack(static_cast<const float*>(a.bias) + channel, bias);
  float dtaps[kTaps][kN] = {}, dbias[kN] = {};
  constexpr int kPast = kTaps - 1;

  for (std::int64_t e = blockIdx.x; e < a.chunks.count; e += gridDim.x) {
    const Chunk chunk = a.chunks.chunks[e];
    if (chunk.begin >= chunk.end) continue;
    const std::int64_t document_end = a.cu_seqlens[chunk.document + 1];
    // du of the w - 1 tokens after the chunk reaches its dx.
    const std::int64_t halo = dx == nullptr ? 0 : w - 1;
    const std::int64_t stop = chunk.end + halo < document_end ? chunk.end + halo : document_end;
    float inputs[kTaps][kN];  // those of tokens t - kPast .. t
    float du[kTaps][kN];      // likewise
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
#pragma unroll
      for (int c = 0; c < kN; ++c) inputs[j][c] = du[j][c] = 0.0f;
      if (j > 0 && j - 1 >= first_tap && chunk.index > 0) load_pack(x + (chunk.begin - kPast + j - 1) * a.C, inputs[j]);
    }
    // dx of token t - kPast is complete at t.
    const std::int64_t last = dx == nullptr ? chunk.end : chunk.end + kPast;
    for (std::int64_t first = chunk.begin; first < last; first += kBackwardAhead) {
      float next_x[kBackwardAhead][kN], next_dy[kBackwardAhead][kN];
#pragma unroll
      for (int i = 0; i < kBackwardAhead; ++i) {
#pragma unroll
        for (int c = 0; c < kN; ++c) next_x[i][c] = next_dy[i][c] = 0.0f;
        if (first + i >= stop) continue;
        load_pack(x + (first + i) * a.C, next_x[i]);
        load_pack(dy + (first + i) * a.C, next_dy[i]);
      }
#pragma unroll
      for (int i = 0; i < kBackwardAhead; ++i) {
        const std::int64_t t = first + i;
        if (t >= last) break;
#pragma unroll
        for (int j = 0; j < kPast; ++j) {
#pragma unroll
          for (int c = 0; c < kN; ++c) {
            inputs[j][c] = inputs[j + 1][c];
            du[j][c] = du[j + 1][c];
          }
        }
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          inputs[kPast][c] = next_x[i][c];
          du[kPast][c] = next_dy[i][c];  // 0 beyond the document
        }
        if (a.activation == ConvolutionActivation::silu && t < stop) {
          float u[kN];
#pragma unroll
          for (int c = 0; c < kN; ++c) u[c] = bias[c];
#pragma unroll
          for (int j = 0; j < kTaps; ++j) {
            if (j < first_tap) continue;
#pragma unroll
            for (int c = 0; c < kN; ++c) u[c] += taps[j][c] * inputs[j][c];
          }
#pragma unroll
          for (int c = 0; c < kN; ++c) du[kPast][c] *= DeviceSilu{}.slope(u[c]);
        }
        if (lines != nullptr && t < chunk.end) {
#pragma unroll
          for (int j = 0; j < kTaps; ++j) {
            if (j < first_tap) continue;
#pragma unroll
            for (int c = 0; c < kN; ++c) dtaps[j][c] += du[kPast][c] * inputs[j][c];
          }
#pragma unroll
          for (int c = 0; c < kN; ++c) dbias[c] += du[kPast][c];
        }
        const std::int64_t back = t - kPast;
        if (dx == nullptr || back < chunk.begin) continue;
        float sum[kN] = {};
#pragma unroll
        for (int k = 0; k < kTaps; ++k) {
          if (k >= w) continue;
#pragma unroll
          for (int c = 0; c < kN; ++c) sum[c] += taps[kPast - k][c] * du[k][c];
        }
        store_pack(dx + back * a.C, sum, a.write_dx);
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
  if (w <= 4) return f.template operator()<4>();
  static_assert(kMaxConvolutionTaps == 8);
  f.template operator()<8>();
}

// Channels of a thread in the backward, which keeps sums for each tap.
constexpr int kBackwardChannels = 4;

template <class T>
bool backward_aligned(const ShortConvolutionBackward& a) {
  constexpr int kN = kBackwardChannels;
  return packs_fit<kN>(static_cast<const T*>(a.x), a.C) && packs_fit<kN>(static_cast<const T*>(a.dy), a.C) &&
         packs_fit<kN>(static_cast<const T*>(a.dx), a.C) && packs_fit<kN>(static_cast<const float*>(a.bias), a.C);
}

std::int64_t line_count(const ShortConvolutionBackward& a) {
  bool aligned = false;
  dispatch_cuda(a.dtype, "short_convolution", [&]<class T>() { aligned = backward_aligned<T>(a); });
  return walkers(a, aligned ? kBackwardChannels : 1);
}

}  // namespace

void short_convolution_forward_cuda(const ShortConvolutionForward& a, const Launch& launch) {
  const cudaStream_t stream = cuda_stream(launch.stream);
  dispatch_cuda(a.dtype, "short_convolution", [&]<class T>() {
    constexpr int kPack = 16 / sizeof(T);
    const bool aligned = packs_fit<kPack>(static_cast<const T*>(a.x), a.C) &&
                         packs_fit<kPack>(static_cast<const T*>(a.y), a.C) &&
                         packs_fit<kPack>(static_cast<const float*>(a.bias), a.C);
    if (a.chunks.count * a.C > 0) {
      dispatch_taps(a.w, [&]<int kTaps>() {
        const auto grid = [&](int kN) {
          return dim3(static_cast<unsigned>(a.chunks.count),
                      static_cast<unsigned>((a.C + kThreads * kN - 1) / (kThreads * kN)));
        };
        if (aligned) {
          convolution_forward_kernel<T, kTaps, kPack><<<grid(kPack), kThreads, 0, stream>>>(a);
        } else {
          convolution_forward_kernel<T, kTaps, 1><<<grid(1), kThreads, 0, stream>>>(a);
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
    constexpr int kPack = kBackwardChannels;
    dispatch_taps(a.w, [&]<int kTaps>() {
      const auto run = [&]<int kN>() {
        const dim3 grid(static_cast<unsigned>(count),
                        static_cast<unsigned>((a.C + kThreads * kN - 1) / (kThreads * kN)));
        convolution_backward_kernel<T, kTaps, kN><<<grid, kThreads, 0, cuda_stream(launch.stream)>>>(a, lines);
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
