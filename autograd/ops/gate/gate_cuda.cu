// CUDA kernels of gate.h.
#include "autograd/cuda/functions.cuh"
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/map_rows.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/ops/gate/gate.h"

namespace weft {
namespace {

template <class F>
void dispatch_gate_function(GateFunction function, F&& f) {
  switch (function) {
    case GateFunction::sigmoid:
      return f(DeviceSigmoid{});
    case GateFunction::silu:
      return f(DeviceSilu{});
    case GateFunction::gelu:
      return f(DeviceGelu{});
    case GateFunction::linear:
      return f(DeviceIdentity{});
  }
}

template <class Function>
struct Gated {
  Function function;
  __device__ void operator()(float x, float g, float& y) const { y = x * function.value(g); }
};

template <class Function>
struct GateGradients {
  Function function;
  __device__ void operator()(float x, float g, float dy, float& dx, float& dg) const {
    dx = dy * function.value(g);
    dg = dy * x * function.slope(g);
  }
};

template <class T, class G, class Function>
struct RowGated {
  const T* x;
  const G* g;
  T* y;
  std::int64_t D;
  Function function;

  template <int kN>
  __device__ void at(std::int64_t row, std::int64_t column) const {
    const float gate = function.value(to_float(g[row]));
    float values[kN];
    load_pack(x + row * D + column, values);
#pragma unroll
    for (int i = 0; i < kN; ++i) values[i] *= gate;
    store_pack(y + row * D + column, values);
  }
};

template <class T, class G, class Tile, class Function>
__global__ void __launch_bounds__(Tile::kThreads) row_gate_backward_kernel(GateBackward a, Function function) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * Tile::kRows + Tile::row_of_block();
  const Tile tile(row < a.R ? a.D : 0);
  const std::int64_t at = row * a.D;
  typename Tile::template Held<T> x, dy;
  tile.load(static_cast<const T*>(a.x) + at, x);
  tile.load(static_cast<const T*>(a.dy) + at, dy);
  const float g = row < a.R ? to_float(static_cast<const G*>(a.g)[row]) : 0.0f;
  if (a.dx != nullptr) {
    const float gate = function.value(g);
#pragma unroll
    for (int p = 0; p < Tile::kPacks; ++p) {
      if (!tile.holds(p)) continue;
      float dx[Tile::kN];
#pragma unroll
      for (int c = 0; c < Tile::kN; ++c) dx[c] = dy[p][c] * gate;
      store_pack(static_cast<T*>(a.dx) + at + tile.column(p), dx, a.write_dx);
    }
  }
  if (a.dg == nullptr) return;
  float dot = 0.0f;
#pragma unroll
  for (int p = 0; p < Tile::kPacks; ++p) {
#pragma unroll
    for (int c = 0; c < Tile::kN; ++c) dot += dy[p][c] * x[p][c];
  }
  dot = Tile::sum(dot);
  if (tile.leads()) {
    const float dg[1] = {dot * function.slope(g)};
    store_pack(static_cast<G*>(a.dg) + row, dg, a.write_dg);
  }
}

template <class T>
bool fits(const void* data, std::int64_t D) {
  return packs_fit<16 / sizeof(T)>(static_cast<const T*>(data), D);
}

// Element types of x and of the gates: those of rows may be f32 beside bf16.
template <class F>
void dispatch_types(DType dtype, DType gate_dtype, F&& f) {
  if (dtype == gate_dtype) {
    dispatch_cuda(dtype, "gate", [&]<class T>() { f.template operator()<T, T>(); });
  } else {
    f.template operator()<bfloat16, float>();
  }
}

}  // namespace

void gate_forward_cuda(const GateForward& a, const Launch& launch) {
  dispatch_types(a.dtype, a.gate_dtype, [&]<class T, class G>() {
    const auto* x = static_cast<const T*>(a.x);
    const auto* g = static_cast<const G*>(a.g);
    auto* y = static_cast<T*>(a.y);
    dispatch_gate_function(a.function, [&]<class Function>(Function function) {
      if (a.per_row) {
        map_rows<16 / sizeof(T)>(launch, a.R, a.D, fits<T>(x, a.D) && fits<T>(y, a.D),
                                 RowGated<T, G, Function>{x, g, y, a.D, function});
      } else {
        map_cuda(launch, a.R * a.D, map_inputs(x, g), map_outputs(map_output(y)), Gated<Function>{function});
      }
    });
  });
}

void gate_backward_cuda(const GateBackward& a, const Launch& launch) {
  dispatch_types(a.dtype, a.gate_dtype, [&]<class T, class G>() {
    dispatch_gate_function(a.function, [&]<class Function>(Function function) {
      if (!a.per_row) {
        return map_cuda(
            launch, a.R * a.D,
            map_inputs(static_cast<const T*>(a.x), static_cast<const G*>(a.g), static_cast<const T*>(a.dy)),
            map_outputs(map_output(static_cast<T*>(a.dx), a.write_dx), map_output(static_cast<G*>(a.dg), a.write_dg)),
            GateGradients<Function>{function});
      }
      if (a.R == 0) return;
      const bool aligned = fits<T>(a.x, a.D) && fits<T>(a.dy, a.D) && fits<T>(a.dx, a.D);
      dispatch_row_tile<T>("gate", a.D, aligned, [&]<class Tile>() {
        const auto blocks = static_cast<unsigned>((a.R + Tile::kRows - 1) / Tile::kRows);
        row_gate_backward_kernel<T, G, Tile><<<blocks, Tile::kThreads, 0, cuda_stream(launch.stream)>>>(a, function);
        WEFT_CHECK_LAUNCH();
      });
    });
  });
}

}  // namespace weft
