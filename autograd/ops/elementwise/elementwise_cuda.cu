// CUDA kernels of elementwise.h.
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/map_rows.cuh"
#include "autograd/cuda/row_reduce.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/cuda/sum_rows.h"
#include "autograd/ops/elementwise/elementwise.h"

namespace weft {
namespace {

struct Sum {
  __device__ void operator()(float a, float b, float& y) const { y = a + b; }
};

struct Product {
  __device__ void operator()(float a, float b, float& y) const { y = a * b; }
};

struct ProductGradients {
  __device__ void operator()(float a, float b, float dy, float& da, float& db) const {
    da = dy * b;
    db = dy * a;
  }
};

struct Scaled {
  float factor;
  __device__ void operator()(float a, float& y) const { y = factor * a; }
};

// y = x + row, or x row; also dx = dy row.
template <class T>
struct WithRow {
  const T* x;
  const float* row;
  T* y;
  Write write_y;
  std::int64_t D;
  RowFunction function;

  template <int kN>
  __device__ void at(std::int64_t r, std::int64_t column) const {
    float values[kN], with[kN];
    load_pack(x + r * D + column, values);
    load_pack(row + column, with);
#pragma unroll
    for (int i = 0; i < kN; ++i) values[i] = function == RowFunction::add ? values[i] + with[i] : values[i] * with[i];
    store_pack(y + r * D + column, values, write_y);
  }
};

// drow of a product, and dx on the way.
template <class T>
struct RowGradients {
  RowBackward a;

  template <int kN>
  __device__ ColumnPacks<kN> prepare(std::int64_t column) const {
    ColumnPacks<kN> row;
    load_pack(static_cast<const float*>(a.row) + column, row.data[0]);
    return row;
  }

  static constexpr int kAhead = 2, kResidentBlocks = 4;
  template <int kN>
  struct Held {
    HeldPack<T, kN> x, dy;
  };
  template <int kN>
  __device__ Held<kN> load(std::int64_t r, std::int64_t column) const {
    const std::int64_t at = r * a.D + column;
    return {HeldPack<T, kN>::load(static_cast<const T*>(a.x) + at),
            HeldPack<T, kN>::load(static_cast<const T*>(a.dy) + at)};
  }
  template <int kN>
  __device__ void add(const ColumnPacks<kN>& row, const Held<kN>& held, std::int64_t r, std::int64_t column,
                      float (&sums)[1][kN]) const {
    float dx[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      sums[0][i] = fmaf(held.dy[i], held.x[i], sums[0][i]);
      dx[i] = held.dy[i] * row.data[0][i];
    }
    if (a.dx != nullptr) store_pack(static_cast<T*>(a.dx) + r * a.D + column, dx, a.write_dx);
  }
};

template <class T>
bool fits(const void* data, std::int64_t D) {
  return packs_fit<16 / sizeof(T)>(static_cast<const T*>(data), D);
}

}  // namespace

void add_cuda(const AddForward& args, const Launch& launch) {
  dispatch_cuda(args.dtype, "add", [&]<class T>() {
    map_cuda(launch, args.N, map_inputs(static_cast<const T*>(args.a), static_cast<const T*>(args.b)),
             map_outputs(map_output(static_cast<T*>(args.y))), Sum{});
  });
}

void mul_forward_cuda(const MulForward& args, const Launch& launch) {
  dispatch_cuda(args.dtype, "mul", [&]<class T>() {
    map_cuda(launch, args.N, map_inputs(static_cast<const T*>(args.a), static_cast<const T*>(args.b)),
             map_outputs(map_output(static_cast<T*>(args.y))), Product{});
  });
}

void mul_backward_cuda(const MulBackward& args, const Launch& launch) {
  dispatch_cuda(args.dtype, "mul", [&]<class T>() {
    map_cuda(launch, args.N,
             map_inputs(static_cast<const T*>(args.a), static_cast<const T*>(args.b), static_cast<const T*>(args.dy)),
             map_outputs(map_output(static_cast<T*>(args.da), args.write_da),
                         map_output(static_cast<T*>(args.db), args.write_db)),
             ProductGradients{});
  });
}

void scale_cuda(const Scale& args, const Launch& launch) {
  dispatch_cuda(args.dtype, "scale", [&]<class T>() {
    map_cuda(launch, args.N, map_inputs(static_cast<const T*>(args.a)),
             map_outputs(map_output(static_cast<T*>(args.y), args.write_y)), Scaled{static_cast<float>(args.factor)});
  });
}

void row_forward_cuda(const RowForward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "row", [&]<class T>() {
    map_rows<16 / sizeof(T)>(launch, a.R, a.D, fits<T>(a.x, a.D) && fits<T>(a.y, a.D) && fits<float>(a.row, a.D),
                             WithRow<T>{static_cast<const T*>(a.x), static_cast<const float*>(a.row),
                                        static_cast<T*>(a.y), Write::overwrite, a.D, a.function});
  });
}

std::size_t row_backward_cuda_workspace(const RowBackward& a) {
  return a.drow == nullptr ? 0 : column_sums_workspace(a.R, a.D, 1);
}

void row_backward_cuda(const RowBackward& a, const Launch& launch) {
  if (a.function == RowFunction::add && a.drow != nullptr) {
    return sum_rows_cuda(a.dtype, a.dy, a.R, a.D, static_cast<float*>(a.drow), a.write_drow, launch);
  }
  dispatch_cuda(a.dtype, "row", [&]<class T>() {
    constexpr int kN = 16 / sizeof(T);
    const bool aligned = fits<T>(a.x, a.D) && fits<T>(a.dy, a.D) && fits<T>(a.dx, a.D) && fits<float>(a.row, a.D);
    if (a.drow == nullptr) {
      if (a.dx == nullptr) return;
      map_rows<kN>(launch, a.R, a.D, aligned,
                   WithRow<T>{static_cast<const T*>(a.dy), static_cast<const float*>(a.row), static_cast<T*>(a.dx),
                              a.write_dx, a.D, RowFunction::mul});
      return;
    }
    auto* lines = static_cast<float*>(launch.workspace);
    if (aligned) {
      column_sums<kN, 1>(launch, a.R, a.D, lines, RowGradients<T>{a});
    } else {
      column_sums<1, 1>(launch, a.R, a.D, lines, RowGradients<T>{a});
    }
    add_lines(launch, lines, column_blocks(a.R, a.D).count, a.D, PutTotal{static_cast<float*>(a.drow), a.write_drow});
  });
}

}  // namespace weft
