// CPU kernels of short_conv.h, templated on float/double and on the number of taps.
//
// The row is cut into tiles of kTokens tokens by kChannels channels, which threads share out; every tile's arithmetic
// is the same whatever the number of threads. A tap that falls before its document reads a row of zeros (or the state).
#pragma once

#include <algorithm>
#include <array>

#include "autograd/ops/short_conv/short_conv.h"
#include "autograd/parallel_for.h"
#include "autograd/vec_math.h"

namespace weft {

inline constexpr std::int64_t kConvolutionTokens = 128;
inline constexpr std::int64_t kConvolutionChannels = 256;

namespace short_conv {

constexpr std::int64_t kTokens = kConvolutionTokens;
constexpr std::int64_t kChannels = kConvolutionChannels;

template <class T>
using TileRow = std::array<T, static_cast<std::size_t>(kChannels)>;

// Walks the documents along increasing tokens.
class DocumentCursor {
 public:
  DocumentCursor(const std::int32_t* cu_seqlens, std::int64_t N, std::int64_t token)
      : cu_(cu_seqlens), n_(std::upper_bound(cu_seqlens, cu_seqlens + N + 1, token) - cu_seqlens - 1) {}
  // The token's document; tokens must not decrease from call to call.
  void advance(std::int64_t token) {
    while (cu_[n_ + 1] <= token) ++n_;
  }
  std::int64_t index() const { return n_; }
  std::int64_t begin() const { return cu_[n_]; }
  std::int64_t end() const { return cu_[n_ + 1]; }

 private:
  const std::int32_t* cu_;
  std::int64_t n_;
};

// weight [C, W] of the tile's channels, tap by tap, so that loops over channels are contiguous.
template <class T, int W>
void load_taps(const T* weight, std::int64_t c0, std::int64_t n, std::array<TileRow<T>, W>& taps) {
  for (std::int64_t c = 0; c < n; ++c) {
    for (int j = 0; j < W; ++j) taps[j][c] = weight[(c0 + c) * W + j];
  }
}

// Pointers to the W inputs that token t sees, offset to channel c0; `before` [W-1] stands for what precedes the
// document.
template <class T, int W>
std::array<const T*, W> tap_inputs(const T* x, std::int64_t C, std::int64_t c0, std::int64_t t,
                                   std::int64_t document_begin, const std::array<const T*, W>& before) {
  std::array<const T*, W> inputs;
  for (int j = 0; j < W; ++j) {
    const std::int64_t source = t - (W - 1) + j;
    // Position p < 0 relative to the document is entry W-1+p of what precedes it.
    inputs[j] = source >= document_begin ? x + source * C + c0 : before[W - 1 + source - document_begin];
  }
  return inputs;
}

template <class T, int W>
T tap_sum(const std::array<TileRow<T>, W>& taps, const std::array<const T*, W>& inputs, T bias, std::int64_t c) {
  T u = bias;
  for (int j = 0; j < W; ++j) u += taps[j][c] * inputs[j][c];
  return u;
}

// state [N, C, W-1] <- the last W-1 inputs of every document, counting those the state held before.
template <class T>
void advance_state(const ShortConvolutionForward& a) {
  const auto* x = static_cast<const T*>(a.x);
  auto* state = static_cast<T*>(a.state);
  const std::int64_t S = a.w - 1;
  parallel_for(a.N, Schedule::fixed, [&](std::int64_t n) {
    const std::int64_t end = a.cu_seqlens[n + 1];
    const std::int64_t kept = std::max<std::int64_t>(0, S - (end - a.cu_seqlens[n]));
    for (std::int64_t c = 0; c < a.C; ++c) {
      T* tail = state + (n * a.C + c) * S;
      for (std::int64_t i = 0; i < kept; ++i) tail[i] = tail[S - kept + i];
      for (std::int64_t i = kept; i < S; ++i) tail[i] = x[(end - S + i) * a.C + c];
    }
  });
}

template <class T, int W>
void forward(const ShortConvolutionForward& a) {
  const auto* x = static_cast<const T*>(a.x);
  const auto* bias = static_cast<const T*>(a.bias);
  const auto* state = static_cast<const T*>(a.state);
  auto* y = static_cast<T*>(a.y);
  const std::int64_t channel_tiles = block_count(a.C, kChannels);
  parallel_for(block_count(a.T, kTokens) * channel_tiles, Schedule::fixed, [&](std::int64_t tile) {
    const std::int64_t t0 = tile / channel_tiles * kTokens;
    const std::int64_t c0 = tile % channel_tiles * kChannels;
    const std::int64_t n = std::min(kChannels, a.C - c0);
    std::array<TileRow<T>, W> taps;
    load_taps<T, W>(static_cast<const T*>(a.weight), c0, n, taps);
    TileRow<T> offset{};
    if (bias != nullptr) std::copy_n(bias + c0, n, offset.begin());
    std::array<TileRow<T>, W> past{};  // zeros, or the document's state; entry W-1 is unused
    std::array<const T*, W> before;
    for (int j = 0; j < W; ++j) before[j] = past[j].data();

    DocumentCursor document(a.cu_seqlens, a.N, t0);
    std::int64_t loaded = -1;
    for (std::int64_t t = t0; t < std::min(t0 + kTokens, a.T); ++t) {
      document.advance(t);
      if (state != nullptr && loaded != document.index()) {
        loaded = document.index();
        for (std::int64_t c = 0; c < n; ++c) {
          for (int j = 0; j + 1 < W; ++j) past[j][c] = state[(loaded * a.C + c0 + c) * (W - 1) + j];
        }
      }
      const auto inputs = tap_inputs<T, W>(x, a.C, c0, t, document.begin(), before);
      T* row = y + t * a.C + c0;
      if (a.activation == ConvolutionActivation::silu) {
#pragma omp simd
        for (std::int64_t c = 0; c < n; ++c) {
          const T u = tap_sum<T, W>(taps, inputs, offset[c], c);
          row[c] = u * sigmoid(u);
        }
      } else {
#pragma omp simd
        for (std::int64_t c = 0; c < n; ++c) row[c] = tap_sum<T, W>(taps, inputs, offset[c], c);
      }
    }
  });
  if (a.state != nullptr) advance_state<T>(a);
}

// du_t = dy_t (silu'(u_t) or 1), u recomputed;  dx_t = sum_k weight_{W-1-k} du_{t+k} over the k that stay in the
// document; dweight_j = sum_t du_t x_{t-W+1+j};  dbias = sum_t du_t. Each tile also computes the du of the W-1 tokens
// after it, which its dx needs. Weight and bias gradients are summed per token tile into `partial` [token tiles, W + 1,
// C], then in order.
template <class T, int W>
void backward(const ShortConvolutionBackward& a, T* partial) {
  const auto* x = static_cast<const T*>(a.x);
  const auto* dy = static_cast<const T*>(a.dy);
  const auto* bias = static_cast<const T*>(a.bias);
  auto* dx = static_cast<T*>(a.dx);
  const bool sums = a.dweight != nullptr || a.dbias != nullptr;
  const std::int64_t token_tiles = block_count(a.T, kTokens);
  const std::int64_t channel_tiles = block_count(a.C, kChannels);
  parallel_for(token_tiles * channel_tiles, Schedule::fixed, [&](std::int64_t tile) {
    const std::int64_t t0 = tile / channel_tiles * kTokens;
    const std::int64_t t1 = std::min(t0 + kTokens, a.T);
    const std::int64_t c0 = tile % channel_tiles * kChannels;
    const std::int64_t n = std::min(kChannels, a.C - c0);
    std::array<TileRow<T>, W> taps;
    load_taps<T, W>(static_cast<const T*>(a.weight), c0, n, taps);
    TileRow<T> offset{};
    if (bias != nullptr) std::copy_n(bias + c0, n, offset.begin());
    const TileRow<T> zeros{};
    std::array<const T*, W> before;
    before.fill(zeros.data());
    std::array<TileRow<T>, W> recent;           // du of the last W tokens, token t in row t mod W
    std::array<TileRow<T>, W + 1> gradients{};  // of the taps, then of the bias

    DocumentCursor reader(a.cu_seqlens, a.N, t0);
    DocumentCursor owner(a.cu_seqlens, a.N, t0);
    const std::int64_t last_end = DocumentCursor(a.cu_seqlens, a.N, t1 - 1).end();
    const std::int64_t stop = dx == nullptr ? t1 : std::min(t1 + W - 1, last_end);
    for (std::int64_t t = t0; t < t1 + W - 1; ++t) {
      if (t < stop) {
        reader.advance(t);
        const auto inputs = tap_inputs<T, W>(x, a.C, c0, t, reader.begin(), before);
        const T* dy_row = dy + t * a.C + c0;
        T* du = recent[static_cast<std::size_t>(t % W)].data();
        if (a.activation == ConvolutionActivation::silu) {
#pragma omp simd
          for (std::int64_t c = 0; c < n; ++c) {
            const T u = tap_sum<T, W>(taps, inputs, offset[c], c);
            const T s = sigmoid(u);
            du[c] = dy_row[c] * s * (T(1) + u * (T(1) - s));
          }
        } else {
          std::copy_n(dy_row, n, du);
        }
        if (sums && t < t1) {
#pragma omp simd
          for (std::int64_t c = 0; c < n; ++c) {
            for (int j = 0; j < W; ++j) gradients[j][c] += du[c] * inputs[j][c];
            gradients[W][c] += du[c];
          }
        }
      }
      const std::int64_t back = t - (W - 1);  // every token that reads it is known now
      if (dx == nullptr || back < t0) continue;
      owner.advance(back);
      std::array<const T*, W> later;  // tap j of token back + W-1-j reads token `back`
      for (int j = 0; j < W; ++j) {
        const std::int64_t at = back + W - 1 - j;
        later[j] = at < owner.end() ? recent[static_cast<std::size_t>(at % W)].data() : zeros.data();
      }
      T* row = dx + back * a.C + c0;
      if (a.write_dx == Write::overwrite) {
#pragma omp simd
        for (std::int64_t c = 0; c < n; ++c) row[c] = tap_sum<T, W>(taps, later, T(0), c);
      } else {
#pragma omp simd
        for (std::int64_t c = 0; c < n; ++c) row[c] += tap_sum<T, W>(taps, later, T(0), c);
      }
    }
    if (!sums) return;
    T* to = partial + tile / channel_tiles * (W + 1) * a.C + c0;
    for (int j = 0; j <= W; ++j) std::copy_n(gradients[j].begin(), n, to + j * a.C);
  });
  if (!sums) return;
  auto* dweight = static_cast<T*>(a.dweight);
  auto* dbias = static_cast<T*>(a.dbias);
  parallel_blocks(a.C, kChannels, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (int j = 0; j <= W; ++j) {
      TileRow<T> total{};
      for (std::int64_t tile = 0; tile < token_tiles; ++tile) {
        const T* from = partial + (tile * (W + 1) + j) * a.C;
        for (std::int64_t c = begin; c < end; ++c) total[c - begin] += from[c];
      }
      for (std::int64_t c = begin; c < end; ++c) {
        if (j < W && dweight != nullptr) store(dweight[c * W + j], total[c - begin], a.write_dweight);
        if (j == W && dbias != nullptr) store(dbias[c], total[c - begin], a.write_dbias);
      }
    }
  });
}

// Calls f.template operator()<W>() for W = w.
template <class F>
void dispatch_taps(std::int64_t w, F&& f) {
  switch (w) {
    case 2:
      return f.template operator()<2>();
    case 3:
      return f.template operator()<3>();
    case 4:
      return f.template operator()<4>();
    case 5:
      return f.template operator()<5>();
    case 6:
      return f.template operator()<6>();
    case 7:
      return f.template operator()<7>();
    case 8:
      return f.template operator()<8>();
    default:
      fail(ExitCode::internal, "short_convolution: {} taps", w);
  }
}

}  // namespace short_conv

template <class T>
void short_convolution_forward_cpu(const ShortConvolutionForward& a) {
  short_conv::dispatch_taps(a.w, [&]<int W>() { short_conv::forward<T, W>(a); });
}

template <class T>
void short_convolution_backward_cpu(const ShortConvolutionBackward& a, T* partial) {
  short_conv::dispatch_taps(a.w, [&]<int W>() { short_conv::backward<T, W>(a, partial); });
}

}  // namespace weft
