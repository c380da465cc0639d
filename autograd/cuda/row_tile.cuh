// Rows in registers: one row of D elements held by L neighbouring threads, each with P packs of kN elements, for
// kernels that need sums over a row. Threads beyond the row hold zeros and store nothing.
//
// Pack p of lane l holds columns (p L + l) kN to (p L + l) kN + kN - 1, so that neighbours read neighbours.
#pragma once

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/map_cuda.cuh"

namespace weft {

// kN elements of T, 16 or 8 bytes or one element, as they came from memory: bf16 pairs share a register until used.
template <class T, int kN>
class HeldPack {
 public:
  static_assert(kN == 1 || kN * sizeof(T) == 16 || kN * sizeof(T) == 8, "16 or 8 bytes or one element");
  static constexpr int kWords = kN == 1 ? 1 : kN * sizeof(T) / 4;
  static constexpr int kPerWord = kN == 1 ? 1 : 4 / sizeof(T);

  HeldPack() = default;
  __device__ static HeldPack zero() {
    HeldPack pack;
#pragma unroll
    for (std::uint32_t& word : pack.words_) word = 0;
    return pack;
  }
  __device__ static HeldPack load(const T* from) {
    HeldPack pack;
    if constexpr (kN == 1) {
      pack.words_[0] = __float_as_uint(to_float(*from));
    } else if constexpr (kWords == 2) {
      const uint2 words = *reinterpret_cast<const uint2*>(from);
      pack.words_[0] = words.x, pack.words_[1] = words.y;
    } else {
      const uint4 words = *reinterpret_cast<const uint4*>(from);
      pack.words_[0] = words.x, pack.words_[1] = words.y, pack.words_[2] = words.z, pack.words_[3] = words.w;
    }
    return pack;
  }
  // Rounds to T, as a store and a load would.
  __device__ static HeldPack rounded(const float (&values)[kN]) {
    HeldPack pack;
    if constexpr (kPerWord == 2) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
        pack.words_[i] = *reinterpret_cast<const std::uint32_t*>(&pair);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kN; ++i) pack.words_[i] = __float_as_uint(to_float(from_float<T>(values[i])));
    }
    return pack;
  }
  __device__ void store(T* to) const {
    if constexpr (kN == 1) {
      *to = from_float<T>(__uint_as_float(words_[0]));
    } else if constexpr (kWords == 2) {
      *reinterpret_cast<uint2*>(to) = uint2{words_[0], words_[1]};
    } else {
      *reinterpret_cast<uint4*>(to) = uint4{words_[0], words_[1], words_[2], words_[3]};
    }
  }
  __device__ float operator[](int i) const {
    if constexpr (kPerWord == 2) return __uint_as_float(i % 2 == 0 ? words_[i / 2] << 16 : words_[i / 2] & 0xffff0000u);
    return __uint_as_float(words_[i]);
  }

 private:
  std::uint32_t words_[kWords];
};

template <int kLanesT, int kPacksT, int kNT>
struct RowTile {
  static constexpr int kLanes = kLanesT;
  static constexpr int kPacks = kPacksT;
  static constexpr int kN = kNT;
  static constexpr int kThreads = kLanes <= 32 ? 128 : kLanes;
  static constexpr int kRows = kThreads / kLanes;  // of a block
  static constexpr int kWidth = kLanes * kPacks * kN;
  // Of one multiprocessor, for kernels that stay on it and keep some 80 registers a thread for each pack.
  static constexpr int kResidentBlocks = (kPacks == 1 ? 768 : 512) / kThreads;
  static_assert(kLanes <= 32 || kRows == 1, "sums over several warps use the whole block");

  // `width` is D, or 0 for a row that is not there.
  __device__ explicit RowTile(std::int64_t width) : width_(static_cast<int>(width)) {}

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kLanes; }
  __device__ static int row_of_block() { return static_cast<int>(threadIdx.x) / kLanes; }
  __device__ bool leads() const { return lane() == 0 && width_ > 0; }
  __device__ static int column(int pack) { return (pack * kLanes + lane()) * kN; }
  __device__ bool holds(int pack) const { return column(pack) < width_; }

  template <class T>
  using Held = HeldPack<T, kN>[kPacks];

  template <class T>
  __device__ void load(const T* row, HeldPack<T, kN> (&to)[kPacks]) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      to[p] = holds(p) ? HeldPack<T, kN>::load(row + column(p)) : HeldPack<T, kN>::zero();
    }
  }

  // Over the row; every thread of it gets the result. All threads of the block take part.
  __device__ static float sum(float x) {
    return reduce(x, [](float a, float b) { return a + b; });
  }
  __device__ static float max(float x) {
    return reduce(x, [](float a, float b) { return fmaxf(a, b); });
  }

 private:
  template <class F>
  __device__ static float reduce(float x, const F& join) {
#pragma unroll
    for (int mask = (kLanes < 32 ? kLanes : 32) / 2; mask > 0; mask /= 2) {
      x = join(x, __shfl_xor_sync(0xffffffffu, x, mask));
    }
    if constexpr (kLanes > 32) {
      __shared__ float warps[kLanes / 32];
      __syncthreads();
      if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
      __syncthreads();
      x = warps[0];
#pragma unroll
      for (int i = 1; i < kLanes / 32; ++i) x = join(x, warps[i]);
    }
    return x;
  }

  int width_;
};

// Calls f.template operator()<Tile>() with the smallest tile for rows of D elements of T. `aligned` says that 16 bytes
// of T, and as many elements of every other array of the kernel, can be read at once.
template <class T, class F>
void dispatch_row_tile(const char* op, std::int64_t D, bool aligned, F&& f) {
  constexpr int kN = 16 / sizeof(T);
  constexpr std::int64_t kWidest = 1024 * kN, kWidestUnaligned = 2048;
  if (aligned && D <= kWidest) {
    if (D <= 8 * kN) return f.template operator()<RowTile<8, 1, kN>>();
    if (D <= 16 * kN) return f.template operator()<RowTile<16, 1, kN>>();
    if (D <= 32 * kN) return f.template operator()<RowTile<32, 1, kN>>();
    if (D <= 64 * kN) return f.template operator()<RowTile<64, 1, kN>>();
    if (D <= 128 * kN) return f.template operator()<RowTile<128, 1, kN>>();
    if (D <= 256 * kN) return f.template operator()<RowTile<256, 1, kN>>();
    if (D <= 512 * kN) return f.template operator()<RowTile<256, 2, kN>>();
    return f.template operator()<RowTile<512, 2, kN>>();
  }
  if (D <= 32) return f.template operator()<RowTile<32, 1, 1>>();
  if (D <= 512) return f.template operator()<RowTile<128, 4, 1>>();
  if (D <= kWidestUnaligned) return f.template operator()<RowTile<512, 4, 1>>();
  config_error("{}: rows of {} elements; on a GPU at most {}, and at most {} unless a multiple of {}", op, D, kWidest,
               kWidestUnaligned, kN);
}

}  // namespace weft
