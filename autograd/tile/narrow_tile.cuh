// Tiles of 32 columns (sm_90a), 64-byte swizzled: half a panel of a SharedTile for those who need no more of it.
//
// Rows are 64 bytes; inside each 512 bytes (8 rows) the 16-byte chunk c of row r sits at chunk c ^ (r / 2 % 4).
#pragma once

#include "autograd/tile/tma.cuh"
#include "autograd/tile/wgmma.cuh"

namespace weft::tile {

template <int Rows>
struct alignas(512) NarrowTile {
  static_assert(Rows > 0 && Rows % 8 == 0, "rows come in groups of 8 (the swizzle's period)");
  static constexpr int kCols = 32;
  static constexpr int kBytes = Rows * kCols * 2;

  bf16 data[Rows * kCols];

  __device__ static constexpr int offset(int row, int column) {
    const unsigned r = static_cast<unsigned>(row), c = static_cast<unsigned>(column);
    return static_cast<int>(r * 64 + ((c / 8) ^ (r / 2 % 4)) * 16 + c % 8 * 2);
  }
  __device__ const bf16& at(int row, int column) const {
    return *reinterpret_cast<const bf16*>(reinterpret_cast<const char*>(data) + offset(row, column));
  }
  // Elements of an aligned group of 8 columns.
  __device__ uint4& chunk(int row, int column) {
    return *reinterpret_cast<uint4*>(reinterpret_cast<char*>(data) + offset(row, column));
  }
  __device__ const uint4& chunk(int row, int column) const {
    return *reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(data) + offset(row, column));
  }
  __device__ std::uint32_t address(int row, int column) const {
    return shared_address(data) + static_cast<std::uint32_t>(offset(row, column));
  }
};

// A right operand of wgmma: the tile's columns, contracted along its rows.
template <int K>
struct NarrowOperand {
  static constexpr int kMN = 32;
  static constexpr int kK = K;
  static constexpr Major kMajor = Major::mn;

  std::uint64_t descriptor;

  __device__ std::uint64_t step(int step) const { return descriptor + static_cast<std::uint64_t>(step * 1024 / 16); }
};
template <int Rows>
__device__ inline NarrowOperand<Rows> along_rows(const NarrowTile<Rows>& tile) {
  constexpr std::uint64_t kSwizzle64 = std::uint64_t{2} << 62;
  constexpr std::uint64_t kGroup = 512 / 16;  // 8 rows
  return {kSwizzle64 | kGroup << 32 | kGroup << 16 |
          static_cast<std::uint64_t>((shared_address(tile.data) & 0x3ffff) >> 4)};
}

// Host: a map whose boxes are 32 columns of Rows tokens of one head of [T, H, D]; dimensions are (D, T, H).
template <int Rows>
struct NarrowMap {
  CUtensorMap map;
};
template <int Rows>
NarrowMap<Rows> make_narrow_map(const void* base, std::int64_t T, std::int64_t H, std::int64_t D) {
  const std::int64_t sizes[] = {D, T, H}, strides[] = {1, H * D, D};
  const std::int32_t box[] = {32, Rows, 1};
  return {make_tensor_map(base, 3, sizes, strides, box)};
}

// tile = columns [x, x + 32) of rows [y, y + Rows) of head z. Brings kBytes to the barrier.
template <int Rows>
__device__ inline void load_tile(NarrowTile<Rows>& tile, const NarrowMap<Rows>& map, Barrier& barrier, int x, int y,
                                 int z) {
  detail::tma_load(shared_address(tile.data), &map.map, barrier.address(), x, y, z);
}
// The other way, from rows [row, row + Count) of the tile, a multiple of 8.
template <int Count, int Rows>
__device__ inline void store_rows(const NarrowMap<Count>& map, const NarrowTile<Rows>& tile, int row, int x, int y,
                                  int z) {
  detail::tma_store(&map.map, shared_address(tile.data) + static_cast<std::uint32_t>(row * 64), x, y, z);
}

// c rounded to bf16 into rows [row, row + 64) of a tile, with stmatrix; a warp writes 16 whole rows.
template <int Rows>
__device__ inline void store_rounded(const Accumulator<32>& c, NarrowTile<Rows>& tile, int row, int thread) {
#ifdef WEFT_HOPPER
  const unsigned lane = static_cast<unsigned>(thread) % kWarp;
  const int own_row = row + static_cast<int>(static_cast<unsigned>(thread) / kWarp * 16 + lane % 16);
#pragma unroll
  for (int n = 0; n < 32; n += 16) {
    const float* x = c.x + n / 2;
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     tile.address(own_row, n + static_cast<int>(lane / 16 * 8))),
                 "r"(pack(x[0], x[1])), "r"(pack(x[2], x[3])), "r"(pack(x[4], x[5])), "r"(pack(x[6], x[7]))
                 : "memory");
  }
#else
  unavailable();
#endif
}

}  // namespace weft::tile
