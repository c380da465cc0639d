#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/row_reduce.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/cuda/sum_rows.h"

namespace weft {
namespace {

struct Nothing {};

template <class T>
struct AddRow {
  const T* x;
  std::int64_t W;

  template <int kN>
  __device__ Nothing prepare(std::int64_t) const {
    return {};
  }
  static constexpr int kAhead = 8, kResidentBlocks = 4;
  template <int kN>
  using Held = HeldPack<T, kN>;
  template <int kN>
  __device__ HeldPack<T, kN> load(std::int64_t row, std::int64_t column) const {
    return HeldPack<T, kN>::load(x + row * W + column);
  }
  template <int kN>
  __device__ void add(Nothing, const HeldPack<T, kN>& values, std::int64_t, std::int64_t, float (&sums)[1][kN]) const {
#pragma unroll
    for (int i = 0; i < kN; ++i) sums[0][i] += values[i];
  }
};

}  // namespace

std::size_t sum_rows_workspace(std::int64_t R, std::int64_t W) {
  return column_sums_workspace(R, W, 1);
}

void sum_rows_cuda(DType dtype, const void* x, std::int64_t R, std::int64_t W, float* target, Write write,
                   const Launch& launch) {
  auto* lines = static_cast<float*>(launch.workspace);
  dispatch_cuda(dtype, "sum over rows", [&]<class T>() {
    constexpr int kN = 16 / sizeof(T);
    const auto* rows = static_cast<const T*>(x);
    if (packs_fit<kN>(rows, W)) {
      column_sums<kN, 1>(launch, R, W, lines, AddRow<T>{rows, W});
    } else {
      column_sums<1, 1>(launch, R, W, lines, AddRow<T>{rows, W});
    }
  });
  add_lines(launch, lines, column_blocks(R, W).count, W, PutTotal{target, write});
}

}  // namespace weft
