// CUDA kernels of columns.h: one launch for each part.
#include "autograd/cuda/map_rows.cuh"
#include "autograd/ops/columns/columns.h"

namespace weft {
namespace {

// to[r, :] = (or +=) the sum over n rows of `from` that follow one another: columns of rows that are `from_ld` apart
// into columns of rows that are `to_ld` apart. `from` may be null: zeros.
template <class T>
struct MoveColumns {
  const T* from;
  std::int64_t from_ld, from_each;  // rows of `from` for one of `to` are from_each apart (n of them summed)
  std::int64_t n;
  std::int64_t repeat;  // rows of `to` that one group of `from` serves
  T* to;
  std::int64_t to_ld;
  Write write;

  template <int kN>
  __device__ void at(std::int64_t row, std::int64_t column) const {
    float sum[kN] = {};
    if (from != nullptr) {
      const T* source = from + row / repeat * from_each + column;
      load_pack(source, sum);
      for (std::int64_t i = 1; i < n; ++i) {
        float values[kN];
        load_pack(source + i * from_ld, values);
#pragma unroll
        for (int c = 0; c < kN; ++c) sum[c] += values[c];
      }
    } else if (write == Write::accumulate) {
      return;
    }
    store_pack(to + row * to_ld + column, sum, write);
  }
};

template <class T>
void move(const Launch& launch, std::int64_t rows, std::int64_t width, const MoveColumns<T>& m) {
  constexpr int kN = 16 / sizeof(T);
  const bool aligned = width % kN == 0 && packs_fit<kN>(m.from, m.from_ld) && packs_fit<kN>(m.to, m.to_ld);
  map_rows<kN>(launch, rows, width, aligned, m);
}

}  // namespace

void split_columns_cuda(const SplitColumns& s, const Launch& launch) {
  dispatch_cuda(s.dtype, "split_columns", [&]<class T>() {
    const std::int64_t W = s.A + s.B;
    const auto* x = static_cast<const T*>(s.x);
    if (s.a != nullptr) {
      move(launch, s.T * s.H, s.A,
           MoveColumns<T>{.from = x,
                          .from_ld = W,
                          .from_each = W,
                          .n = 1,
                          .repeat = 1,
                          .to = static_cast<T*>(s.a),
                          .to_ld = s.A,
                          .write = s.write_a});
    }
    if (s.b == nullptr) return;
    move(launch, s.T, s.B,
         MoveColumns<T>{.from = x + s.A,
                        .from_ld = W,
                        .from_each = s.H * W,
                        .n = s.H,
                        .repeat = 1,
                        .to = static_cast<T*>(s.b),
                        .to_ld = s.B,
                        .write = s.write_b});
  });
}

void join_columns_cuda(const JoinColumns& j, const Launch& launch) {
  dispatch_cuda(j.dtype, "join_columns", [&]<class T>() {
    const std::int64_t W = j.A + j.B;
    auto* y = static_cast<T*>(j.y);
    move(launch, j.T * j.H, j.A,
         MoveColumns<T>{.from = static_cast<const T*>(j.a),
                        .from_ld = j.A,
                        .from_each = j.A,
                        .n = 1,
                        .repeat = 1,
                        .to = y,
                        .to_ld = W,
                        .write = j.write_y});
    move(launch, j.T * j.H, j.B,
         MoveColumns<T>{.from = static_cast<const T*>(j.b),
                        .from_ld = j.B,
                        .from_each = j.B,
                        .n = 1,
                        .repeat = j.H,
                        .to = y + j.A,
                        .to_ld = W,
                        .write = j.write_y});
  });
}

}  // namespace weft
