// CUDA kernels of rows.h.
#include "autograd/cuda/map_rows.cuh"
#include "autograd/ops/rows/rows.h"

namespace weft {
namespace {

template <class T>
struct Take {
  TakeRowsForward a;

  template <int kN>
  __device__ void at(std::int64_t r, std::int64_t column) const {
    const std::int64_t s = a.index[r];
    // Selection in place of an index, which would put the arguments into local memory.
    const void* source = a.sources[0];
    std::int64_t first = 0;
#pragma unroll
    for (int i = 1; i < kMaxRowSources; ++i) {
      if (s < a.ends[i - 1]) continue;
      source = a.sources[i];
      first = a.ends[i - 1];
    }
    float values[kN];
    load_pack(static_cast<const T*>(source) + (s - first) * a.D + column, values);
    store_pack(static_cast<T*>(a.y) + r * a.D + column, values);
  }
};

// The gradient of one source.
template <class T>
struct SumOfUsers {
  const std::int32_t* begin;  // of the source's rows
  const std::int32_t* users;
  const T* dy;
  T* dsource;
  Write write;
  std::int64_t D;

  template <int kN>
  __device__ void at(std::int64_t row, std::int64_t column) const {
    float sum[kN] = {};
    const std::int32_t end = begin[row + 1];
    for (std::int32_t i = begin[row]; i < end; ++i) {
      float values[kN];
      load_pack(dy + users[i] * D + column, values);
#pragma unroll
      for (int c = 0; c < kN; ++c) sum[c] += values[c];
    }
    store_pack(dsource + row * D + column, sum, write);
  }
};

template <class T>
bool fits(const void* data, std::int64_t D) {
  return packs_fit<16 / sizeof(T)>(static_cast<const T*>(data), D);
}

}  // namespace

void take_rows_forward_cuda(const TakeRowsForward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "take_rows", [&]<class T>() {
    bool aligned = fits<T>(a.y, a.D);
    for (const void* source : a.sources) aligned = aligned && fits<T>(source, a.D);
    map_rows<16 / sizeof(T)>(launch, a.R, a.D, aligned, Take<T>{a});
  });
}

void take_rows_backward_cuda(const TakeRowsBackward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "take_rows", [&]<class T>() {
    std::int64_t first = 0;
    for (std::int64_t i = 0; i < kMaxRowSources; first = a.ends[i++]) {
      if (a.dsources[i] == nullptr) continue;
      map_rows<16 / sizeof(T)>(launch, a.ends[i] - first, a.D, fits<T>(a.dy, a.D) && fits<T>(a.dsources[i], a.D),
                               SumOfUsers<T>{.begin = a.begin + first,
                                             .users = a.users,
                                             .dy = static_cast<const T*>(a.dy),
                                             .dsource = static_cast<T*>(a.dsources[i]),
                                             .write = a.write[i],
                                             .D = a.D});
    }
  });
}

}  // namespace weft
