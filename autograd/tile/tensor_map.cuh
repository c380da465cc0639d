// Host side of the copy engine (TMA): descriptions of global tensors for copies of tiles.
#pragma once

#include <array>
#include <cstdint>
#include <cuda.h>

namespace weft::tile {

// How a kernel sees a bf16 tensor: `sizes` and `strides` in elements, innermost first; the innermost dimension is
// contiguous, the other strides are multiples of 8. Copies move boxes of `box` elements, swizzled as the tile they go
// to: SharedTile, or NarrowTile if 32 columns; what lies outside the sizes is zero. Error (internal) if refused.
template <int Rank>
struct TensorView {
  const void* base;
  std::array<std::int64_t, Rank> sizes;
  std::array<std::int64_t, Rank> strides;  // [0] is 1
};
CUtensorMap make_tensor_map(const void* base, int rank, const std::int64_t* sizes, const std::int64_t* strides,
                            const std::int32_t* box);

// A map whose boxes are one panel of a SharedTile<Rows, ...>: 64 elements of dimension 0 times Rows of dimension 1, at
// one index of the others. Passed to kernels as `const __grid_constant__ TileMap<Rows, Rank>`.
template <int Rows, int Rank>
struct TileMap {
  static_assert(Rank >= 2 && Rank <= 5, "two to five dimensions");
  static_assert(Rows % 8 == 0 && Rows <= 256, "the copy engine moves at most 256 rows");
  CUtensorMap map;
};

template <int Rows, int Rank>
TileMap<Rows, Rank> make_tile_map(const TensorView<Rank>& view) {
  std::int32_t box[Rank] = {64, Rows};
  for (int i = 2; i < Rank; ++i) box[i] = 1;
  return {make_tensor_map(view.base, Rank, view.sizes.data(), view.strides.data(), box)};
}

// The usual case: tokens of one head of [T, H, D]; dimensions are (D, T, H).
template <int Rows>
TileMap<Rows, 3> make_head_map(const void* base, std::int64_t T, std::int64_t H, std::int64_t D) {
  return make_tile_map<Rows, 3>({base, {D, T, H}, {1, H * D, D}});
}

}  // namespace weft::tile
