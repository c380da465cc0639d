// CUDA kernels of the Taylor features of feature_map.h.
//
// Rows of features have an odd width, so that 16 bytes at a time only fit groups of kN rows, in which W packs of kN
// elements lie. R rows, D width of a row, W of its features.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/map_rows.cuh"
#include "autograd/ops/feature_map/feature_map.h"
#include "autograd/tile/async_copy.cuh"

namespace weft::taylor {

constexpr std::int64_t kWidest = 256;

struct Scales {
  explicit Scales(std::int64_t D)
      : linear(static_cast<float>(std::pow(static_cast<double>(D), -0.25))),
        square(static_cast<float>(std::sqrt(0.5 / static_cast<double>(D)))),
        pair(static_cast<float>(std::sqrt(1.0 / static_cast<double>(D)))) {}
  float linear, square, pair;
};

// Products of channels i < j, in the order of i, then j: where that of i with i + 1 stands.
__device__ inline int first_pair(int i, int D) {
  return i * (2 * D - i - 1) / 2;
}

// --- forward, any width ----------------------------------------------------------------------------------------------

// Feature `at` is scale x_i x_j, where x_D = 1.
class Feature {
 public:
  __device__ Feature(int at, int D) : D_(D), at_(at) {
    place();
    if (at <= 2 * D) return;
    const int k = at - 1 - 2 * D;
    const auto b = static_cast<float>(2 * D - 1);
    i_ = static_cast<int>(0.5f * (b - sqrtf(b * b - 8.0f * static_cast<float>(k))));
    while (i_ > 0 && first_pair(i_, D) > k) --i_;
    while (first_pair(i_ + 1, D) <= k) ++i_;
    j_ = k - first_pair(i_, D) + i_ + 1;
  }
  __device__ int i() const { return i_; }
  __device__ int j() const { return j_; }
  __device__ float scale(const Scales& s) const {
    return at_ == 0 ? 1.0f : at_ <= D_ ? s.linear : at_ <= 2 * D_ ? s.square : s.pair;
  }
  // The next feature of the row; false at its end, where the first one follows.
  __device__ bool step(int W) {
    const bool more = ++at_ < W;
    if (!more) at_ = 0;
    if (at_ <= 2 * D_ + 1) {
      place();
    } else if (++j_ == D_) {
      j_ = ++i_ + 1;
    }
    return more;
  }

 private:
  // i and j of all features up to the first product of two channels.
  __device__ void place() {
    i_ = at_ == 0 ? D_ : at_ <= D_ ? at_ - 1 : at_ - 1 - D_;
    j_ = at_ <= D_ ? D_ : i_;
    if (at_ == 2 * D_ + 1) i_ = 0, j_ = 1;
  }
  int D_, at_, i_, j_;
};

// What a pack of features is made of: products of elements of shared memory.
template <int kN>
struct Products {
  int left[kN], right[kN];
  float scale[kN];

  // The pack-th of a group of rows.
  __device__ void find(int pack, int W, int D, const Scales& scales) {
    int row = pack * kN / W;
    Feature feature(pack * kN - row * W, D);
#pragma unroll
    for (int e = 0; e < kN; ++e) {
      left[e] = row * (D + 1) + feature.i();
      right[e] = row * (D + 1) + feature.j();
      scale[e] = feature.scale(scales);
      if (!feature.step(W)) ++row;
    }
  }
  __device__ void compute(const float* group, float (&values)[kN]) const {
#pragma unroll
    for (int e = 0; e < kN; ++e) values[e] = scale[e] * group[left[e]] * group[right[e]];
  }
};

constexpr int kForwardThreads = 256;

// A block takes `groups` groups of kN rows into shared memory, each row with its 1 behind it. A thread makes the same
// pack of every group, so that it finds out only once what that is made of.
template <class T, int kN>
__global__ void __launch_bounds__(kForwardThreads)
    wide_forward_kernel(FeatureMapForward a, Scales scales, int W, int groups, Divider width) {
  extern __shared__ float rows[];
  const int D = static_cast<int>(a.D), group_stride = kN * (D + 1);
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * groups * kN;
  const int count = static_cast<int>(min(a.R - first_row, static_cast<std::int64_t>(groups) * kN));
  const T* x = static_cast<const T*>(a.x) + first_row * D;
#pragma unroll 4
  for (int at = threadIdx.x; at < count * D; at += blockDim.x) {
    const auto row = static_cast<int>(width.quotient(static_cast<std::uint32_t>(at)));
    rows[at + row] = to_float(x[at]);
  }
  for (int row = threadIdx.x; row < count; row += blockDim.x) rows[row * (D + 1) + D] = 1.0f;
  __syncthreads();

  for (int pack = threadIdx.x; pack < W; pack += blockDim.x) {
    Products<kN> products;
    products.find(pack, W, D, scales);
    T* y = static_cast<T*>(a.y) + first_row * W + pack * kN;
    for (int g = 0; g * kN < count; ++g, y += kN * W) {
      float values[kN];
      products.compute(rows + g * group_stride, values);
      const int rest = (count - g * kN) * W - pack * kN;  // elements from here to the end of the block's rows
      if (rest >= kN) {
        store_pack(y, values);
        continue;
      }
      // A last group that is not whole; what lies beyond its rows is not stored.
#pragma unroll
      for (int e = 0; e < kN; ++e) {
        if (e < rest) y[e] = from_float<T>(values[e]);
      }
    }
  }
}

template <class T, int kN>
void launch_wide_forward(const FeatureMapForward& a, const Launch& launch) {
  constexpr std::int64_t kRows = 128, kBytes = 40 << 10;
  const std::int64_t W = feature_width(FeatureMap::taylor, a.D);
  const std::int64_t group_bytes = kN * (a.D + 1) * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t groups = std::clamp<std::int64_t>(kBytes / group_bytes, 1, kRows / kN);
  const auto threads = static_cast<unsigned>(std::min<std::int64_t>(kForwardThreads, (W + 31) / 32 * 32));
  const auto blocks = static_cast<unsigned>((a.R + groups * kN - 1) / (groups * kN));
  wide_forward_kernel<T, kN>
      <<<blocks, threads, static_cast<std::size_t>(groups * group_bytes), cuda_stream(launch.stream)>>>(
          a, Scales(a.D), static_cast<int>(W), static_cast<int>(groups), Divider(static_cast<std::uint32_t>(a.D)));
}

// --- forward, few channels -------------------------------------------------------------------------------------------

// Puts the features of a row of kD channels into words of shared memory, two to a word in bf16. There rows of even
// number begin with a word and rows of odd number (kOdd) in the middle of one, which holds the end of the row before:
// that one writes both, since the first feature of any row is 1.
template <class T, int kD, bool kOdd>
__device__ void put_features(const float (&x)[kD], const Scales& scales, std::uint32_t* words) {
  constexpr int kPerWord = 4 / sizeof(T);
  float word[kPerWord];
  int at = 0;  // known to the compiler, like all that follows from it
  const auto put = [&](float feature) {
    const int place = (at + (kOdd ? 1 : 0)) % kPerWord;
    word[place] = feature;
    if (place + 1 == kPerWord && !(kOdd && at == 0)) words[kPerWord == 1 ? at : (at - 1) / 2] = word_of(word, T{});
    ++at;
  };
  put(1.0f);
#pragma unroll
  for (int i = 0; i < kD; ++i) put(scales.linear * x[i]);
#pragma unroll
  for (int i = 0; i < kD; ++i) put(scales.square * x[i] * x[i]);
#pragma unroll
  for (int i = 0; i < kD; ++i) {
    const float left = scales.pair * x[i];
#pragma unroll
    for (int j = i + 1; j < kD; ++j) put(left * x[j]);
  }
  if (kPerWord == 2 && !kOdd) put(1.0f);
}

// A thread for each row of kD channels, which it keeps in registers. In bf16 a warp takes rows of even number or of odd
// number. Rows of one warp begin an odd number of words apart.
template <class T, int kD>
struct FewChannels {
  static constexpr int W = 1 + kD + kD * (kD + 1) / 2, kN = 16 / sizeof(T);
  static constexpr int kRows = 128 / sizeof(T), kPerWord = 4 / sizeof(T);
  static_assert(W % 2 == 1 && kRows * W % kN == 0, "no two lanes meet in a bank; blocks begin with a pack");

  __device__ static bool odd() { return threadIdx.x >= kRows / kPerWord; }
  __device__ static int row() {
    return static_cast<int>(threadIdx.x) % (kRows / kPerWord) * kPerWord + (odd() ? 1 : 0);
  }
  // The first word that is the row's own.
  template <class Element>
  __device__ static auto words(Element* features, int row) {
    using Word = std::conditional_t<std::is_const_v<Element>, const std::uint32_t, std::uint32_t>;
    return reinterpret_cast<Word*>(features) + (row * W + kPerWord - 1) / kPerWord;
  }
  __device__ static void load(const T* from, float (&x)[kD]) {
#pragma unroll
    for (int i = 0; i < kD; i += kN) {
      float values[kN];
      load_pack(from + i, values);
#pragma unroll
      for (int e = 0; e < kN; ++e) x[i + e] = values[e];
    }
  }
};

// The rows of a block go out together.
template <class T, int kD>
__global__ void __launch_bounds__(FewChannels<T, kD>::kRows) forward_kernel(FeatureMapForward a, Scales scales) {
  using Shape = FewChannels<T, kD>;
  constexpr int W = Shape::W, kN = Shape::kN, kRows = Shape::kRows;
  __shared__ alignas(16) T features[kRows * W];
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kRows;
  const int count = static_cast<int>(a.R - first_row < kRows ? a.R - first_row : kRows);
  const int row = Shape::row();
  if (row < count) {
    float x[kD];
    Shape::load(static_cast<const T*>(a.x) + (first_row + row) * kD, x);
    if (Shape::odd()) {
      put_features<T, kD, true>(x, scales, Shape::words(features, row));
    } else {
      put_features<T, kD, false>(x, scales, Shape::words(features, row));
    }
  }
  __syncthreads();
  T* y = static_cast<T*>(a.y) + first_row * W;
  const int whole = count * W / kN * kN;
#pragma unroll 4
  for (int at = threadIdx.x * kN; at < whole; at += kRows * kN) {
    *reinterpret_cast<uint4*>(y + at) = *reinterpret_cast<const uint4*>(features + at);
  }
  for (int at = whole + threadIdx.x; at < count * W; at += kRows) y[at] = features[at];
}

template <class T, int kD>
void launch_forward(const FeatureMapForward& a, const Launch& launch) {
  constexpr int kRows = FewChannels<T, kD>::kRows;
  const auto blocks = static_cast<unsigned>((a.R + kRows - 1) / kRows);
  forward_kernel<T, kD><<<blocks, kRows, 0, cuda_stream(launch.stream)>>>(a, Scales(kD));
}

// --- backward --------------------------------------------------------------------------------------------------------

// Gradients of the features of a row that put_features() would have put into the words; that of the first, which is
// constant, is not read.
template <class T, int kD, bool kOdd>
__device__ void take_gradients(const float (&x)[kD], const Scales& scales, const std::uint32_t* words,
                               float (&dx)[kD]) {
  const auto gradient = [&](int at) {  // at is known to the compiler
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(words[at]);
    } else {
      const std::uint32_t word = words[kOdd ? (at - 1) / 2 : at / 2];
      return __uint_as_float((at % 2 == 0) == kOdd ? word & 0xffff0000u : word << 16);
    }
  };
#pragma unroll
  for (int i = 0; i < kD; ++i) {
    dx[i] = scales.linear * gradient(1 + i) + 2.0f * scales.square * x[i] * gradient(1 + kD + i);
  }
  int at = 1 + 2 * kD;
#pragma unroll
  for (int i = 0; i < kD; ++i) {
    const float left = scales.pair * x[i];
    float sum = 0.0f;
#pragma unroll
    for (int j = i + 1; j < kD; ++j) {
      const float slope = gradient(at++);
      sum = fmaf(slope, x[j], sum);
      dx[j] = fmaf(slope, left, dx[j]);
    }
    dx[i] = fmaf(scales.pair, sum, dx[i]);
  }
}

// Gradients of the features of a block's rows come through shared memory; a thread for each row, as forward.
template <class T, int kD>
__global__ void __launch_bounds__(FewChannels<T, kD>::kRows) backward_kernel(FeatureMapBackward a, Scales scales) {
  using Shape = FewChannels<T, kD>;
  constexpr int W = Shape::W, kN = Shape::kN, kRows = Shape::kRows;
  __shared__ alignas(16) T gradients[kRows * W];
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * kRows;
  const int count = static_cast<int>(a.R - first_row < kRows ? a.R - first_row : kRows);
  const T* from = static_cast<const T*>(a.dy) + first_row * W;
  const int whole = count * W / kN * kN;
  for (int at = threadIdx.x * kN; at < whole; at += kRows * kN) tile::copy16_async(gradients + at, from + at, true);
  tile::commit_copies();
  for (int at = whole + threadIdx.x; at < count * W; at += kRows) gradients[at] = from[at];
  const int row = Shape::row();
  float x[kD], dx[kD];
  if (row < count) Shape::load(static_cast<const T*>(a.x) + (first_row + row) * kD, x);
  tile::wait_copies<0>();
  __syncthreads();
  if (row >= count) return;
  if (Shape::odd()) {
    take_gradients<T, kD, true>(x, scales, Shape::words(gradients, row), dx);
  } else {
    take_gradients<T, kD, false>(x, scales, Shape::words(gradients, row), dx);
  }
  T* to = static_cast<T*>(a.dx) + (first_row + row) * kD;
#pragma unroll
  for (int i = 0; i < kD; i += kN) {
    float values[kN];
#pragma unroll
    for (int e = 0; e < kN; ++e) values[e] = dx[i + e];
    store_pack(to + i, values, a.write_dx);
  }
}

// Any width: a warp for each row, which it holds in shared memory.
constexpr int kWarps = 4;

template <class T>
__global__ void __launch_bounds__(32 * kWarps)
    wide_backward_kernel(FeatureMapBackward a, Scales scales, std::int64_t W) {
  __shared__ float rows[kWarps][kWidest];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, D = static_cast<int>(a.D);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (row >= a.R) return;
  float* x = rows[warp];
  for (int i = lane; i < D; i += 32) x[i] = to_float(static_cast<const T*>(a.x)[row * D + i]);
  __syncwarp();
  const T* dy = static_cast<const T*>(a.dy) + row * W;
  const T* pairs = dy + 1 + 2 * D;
  for (int i = lane; i < D; i += 32) {
    float sum = 0.0f;
    for (int j = 0; j < i; ++j) sum += x[j] * to_float(pairs[first_pair(j, D) + i - j - 1]);
    for (int j = i + 1; j < D; ++j) sum += x[j] * to_float(pairs[first_pair(i, D) + j - i - 1]);
    const float dx[1] = {scales.pair * sum + scales.linear * to_float(dy[1 + i]) +
                         2.0f * scales.square * x[i] * to_float(dy[1 + D + i])};
    store_pack(static_cast<T*>(a.dx) + row * D + i, dx, a.write_dx);
  }
}

template <class T, int kD>
void launch_backward(const FeatureMapBackward& a, const Launch& launch) {
  constexpr int kRows = FewChannels<T, kD>::kRows;
  const auto blocks = static_cast<unsigned>((a.R + kRows - 1) / kRows);
  backward_kernel<T, kD><<<blocks, kRows, 0, cuda_stream(launch.stream)>>>(a, Scales(kD));
}

// --- launchers -------------------------------------------------------------------------------------------------------

inline void check(std::int64_t D) {
  if (D > kWidest) config_error("feature_map: Taylor features of rows of {}; on a GPU at most {}", D, kWidest);
}

template <class T>
void forward(const FeatureMapForward& a, const Launch& launch) {
  check(a.D);
  constexpr int kN = 16 / sizeof(T);
  if (!packs_fit<kN>(static_cast<const T*>(a.y), 0)) return launch_wide_forward<T, 1>(a, launch);
  if (packs_fit<kN>(static_cast<const T*>(a.x), 0)) {
    if (a.D == 16) return launch_forward<T, 16>(a, launch);
    if (a.D == 8) return launch_forward<T, 8>(a, launch);
  }
  launch_wide_forward<T, kN>(a, launch);
}

template <class T>
void backward(const FeatureMapBackward& a, const Launch& launch) {
  check(a.D);
  constexpr int kN = 16 / sizeof(T);
  const bool aligned = packs_fit<kN>(static_cast<const T*>(a.x), 0) && packs_fit<kN>(static_cast<const T*>(a.dy), 0) &&
                       packs_fit<kN>(static_cast<const T*>(a.dx), 0);
  if (aligned && a.D == 16) return launch_backward<T, 16>(a, launch);
  if (aligned && a.D == 8) return launch_backward<T, 8>(a, launch);
  const auto blocks = static_cast<unsigned>((a.R + kWarps - 1) / kWarps);
  wide_backward_kernel<T>
      <<<blocks, 32 * kWarps, 0, cuda_stream(launch.stream)>>>(a, Scales(a.D), feature_width(FeatureMap::taylor, a.D));
}

}  // namespace weft::taylor
