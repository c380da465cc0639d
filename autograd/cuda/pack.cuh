// Values of one thread: a pack of consecutive elements, read and written with the widest accesses, computed on in fp32.
// For device code.
#pragma once

#include <cstdint>
#include <cuda_bf16.h>

#include "autograd/dispatch.h"
#include "autograd/dtype.h"

namespace weft {

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(bfloat16 x) {
  return __uint_as_float(static_cast<std::uint32_t>(x.bits) << 16);
}
template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline bfloat16 from_float<bfloat16>(float x) {
  bfloat16 y;
  y.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
  return y;
}

// kN elements from an address aligned to the pack (or to 16 bytes, if that is less).
template <class T, int kN>
struct alignas(sizeof(T) * kN < 16 ? sizeof(T) * kN : 16) Pack {
  T data[kN];
};

template <int kN, class T>
__device__ void load_pack(const T* from, float (&to)[kN]) {
  const Pack<T, kN> pack = *reinterpret_cast<const Pack<T, kN>*>(from);
#pragma unroll
  for (int i = 0; i < kN; ++i) to[i] = to_float(pack.data[i]);
}

// One or two elements as they lie in a word.
__device__ inline std::uint32_t word_of(const float* from, float) {
  return __float_as_uint(*from);
}
__device__ inline std::uint32_t word_of(const float* from, bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(from[0], from[1]);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

// Word by word: from a struct of bf16 the compiler may well make 2-byte stores.
template <int kN, class T>
__device__ void store_pack(T* to, const float (&from)[kN]) {
  constexpr int kPerWord = 4 / sizeof(T);
  if constexpr (kN < kPerWord) {
    *to = from_float<T>(from[0]);
  } else {
    constexpr int kWords = kN / kPerWord;
    static_assert(kN % kPerWord == 0 && (kWords & (kWords - 1)) == 0, "a power of two");
    std::uint32_t words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = word_of(from + i * kPerWord, T{});
    if constexpr (kWords == 1) {
      *reinterpret_cast<std::uint32_t*>(to) = words[0];
    } else if constexpr (kWords == 2) {
      *reinterpret_cast<uint2*>(to) = uint2{words[0], words[1]};
    } else {
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        reinterpret_cast<uint4*>(to)[i / 4] = uint4{words[i], words[i + 1], words[i + 2], words[i + 3]};
      }
    }
  }
}

// to = (or +=) from.
template <int kN, class T>
__device__ void store_pack(T* to, const float (&from)[kN], Write write) {
  if (write == Write::overwrite) return store_pack(to, from);
  float sum[kN];
  load_pack(to, sum);
#pragma unroll
  for (int i = 0; i < kN; ++i) sum[i] += from[i];
  store_pack(to, sum);
}

// Whether rows of `width` elements that start at `data` can be read in packs of kN. Null counts as aligned.
template <int kN, class T>
bool packs_fit(const T* data, std::int64_t width) {
  return width % kN == 0 && reinterpret_cast<std::uintptr_t>(data) % alignof(Pack<T, kN>) == 0;
}

}  // namespace weft
