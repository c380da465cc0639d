// CUDA kernels of repeat_heads.h.
#include "autograd/cuda/map_rows.cuh"
#include "autograd/ops/repeat_heads/repeat_heads.h"

namespace weft {
namespace {

template <class T>
struct Repeat {
  const T* x;
  T* y;
  std::int64_t copies, D;

  // A row of x, and all that are made from it.
  template <int kN>
  __device__ void at(std::int64_t row, std::int64_t column) const {
    float values[kN];
    load_pack(x + row * D + column, values);
    for (std::int64_t i = 0; i < copies; ++i) store_pack(y + (row * copies + i) * D + column, values);
  }
};

template <class T>
struct SumOfCopies {
  const T* dy;
  T* dx;
  Write write;
  std::int64_t copies, D;

  template <int kN>
  __device__ void at(std::int64_t row, std::int64_t column) const {
    float sum[kN] = {};
    for (std::int64_t i = 0; i < copies; ++i) {
      float values[kN];
      load_pack(dy + (row * copies + i) * D + column, values);
#pragma unroll
      for (int c = 0; c < kN; ++c) sum[c] += values[c];
    }
    store_pack(dx + row * D + column, sum, write);
  }
};

template <class T>
bool fits(const void* data, std::int64_t D) {
  return packs_fit<16 / sizeof(T)>(static_cast<const T*>(data), D);
}

}  // namespace

void repeat_heads_forward_cuda(const RepeatHeadsForward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "repeat_heads", [&]<class T>() {
    map_rows<16 / sizeof(T)>(launch, a.T * a.G, a.D, fits<T>(a.x, a.D) && fits<T>(a.y, a.D),
                             Repeat<T>{static_cast<const T*>(a.x), static_cast<T*>(a.y), a.H / a.G, a.D});
  });
}

void repeat_heads_backward_cuda(const RepeatHeadsBackward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "repeat_heads", [&]<class T>() {
    map_rows<16 / sizeof(T)>(
        launch, a.T * a.G, a.D, fits<T>(a.dy, a.D) && fits<T>(a.dx, a.D),
        SumOfCopies<T>{static_cast<const T*>(a.dy), static_cast<T*>(a.dx), a.write_dx, a.H / a.G, a.D});
  });
}

}  // namespace weft
