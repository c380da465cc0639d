// bf16 tiles in shared memory as the copy engine writes them and the tensor cores read them: 128-byte swizzled.
//
// Columns lie in panels of 64 (128 bytes); a panel is [Rows][64], and inside each 1024 bytes (8 rows) the 16-byte chunk
// c of row r sits at chunk c ^ (r % 8). A type says rows and columns, so that copies and products of tiles that do not
// fit each other do not compile.
#pragma once

#include "autograd/tile/hopper.cuh"

namespace weft::tile {

inline constexpr int kPanel = 64;

template <int Rows, int Cols>
struct alignas(1024) SharedTile {
  static_assert(Rows > 0 && Rows % 8 == 0, "rows come in groups of 8 (the swizzle's period)");
  static_assert(Cols > 0 && Cols % kPanel == 0, "columns come in panels of 64 bf16 (128 bytes)");
  static constexpr int kRows = Rows;
  static constexpr int kCols = Cols;
  static constexpr int kPanels = Cols / kPanel;
  static constexpr int kPanelBytes = Rows * 128;
  static constexpr int kBytes = Rows * Cols * 2;

  bf16 data[Rows * Cols];

  // Byte offset of an element; elements of an aligned group of 8 columns are contiguous.
  // Neither is negative: said to the compiler, which then divides by shifts alone.
  __device__ static constexpr int offset(int row, int column) {
    const unsigned r = static_cast<unsigned>(row), c = static_cast<unsigned>(column);
    return static_cast<int>(c / kPanel * kPanelBytes + r * 128 + ((c % kPanel / 8) ^ (r % 8)) * 16 + c % 8 * 2);
  }
  __device__ bf16& at(int row, int column) {
    return *reinterpret_cast<bf16*>(reinterpret_cast<char*>(data) + offset(row, column));
  }
  __device__ const bf16& at(int row, int column) const {
    return *reinterpret_cast<const bf16*>(reinterpret_cast<const char*>(data) + offset(row, column));
  }
  __device__ Vector16<bf16>& chunk(int row, int column) {
    return *reinterpret_cast<Vector16<bf16>*>(reinterpret_cast<char*>(data) + offset(row, column));
  }
  __device__ std::uint32_t address(int row, int column) const {
    return shared_address(data) + static_cast<std::uint32_t>(offset(row, column));
  }
};

// Zeroes rows outside [begin, end), by `Threads` threads, of which this is number `thread`: tail rows of a tile that
// the copy engine filled with a neighbour's rows. fence_async_shared() and a barrier must follow.
template <int Threads, int Rows, int Cols>
__device__ inline void zero_rows_outside(SharedTile<Rows, Cols>& tile, int begin, int end, int thread) {
  constexpr int kChunks = Cols / 8;
#pragma unroll 1
  for (int i = thread; i < Rows * kChunks; i += Threads) {
    const int row = i / kChunks;
    if (row < begin || row >= end) tile.chunk(row, i % kChunks * 8) = Vector16<bf16>::filled(0.0f);
  }
}

// --- operands of wgmma
// -------------------------------------------------------------------------------------------------

enum class Major { k, mn };

// MN rows (of the left operand) or columns (of the right one), contracted over K. `descriptor` is what the hardware
// reads; the addresses inside are in units of 16 bytes.
template <int MN, int K, Major Order, int PanelBytes>
struct Operand {
  static_assert(MN % 8 == 0 && K % 16 == 0, "operands are multiples of 8 by 16");
  static_assert(Order == Major::k || MN % kPanel == 0 || MN == kPanel / 2,
                "an operand contracted along rows takes whole panels of 64, or one half of one");
  static constexpr int kMN = MN;
  static constexpr int kK = K;
  static constexpr Major kMajor = Order;

  std::uint64_t descriptor;

  // Descriptor of contraction steps [16 step, 16 step + 16).
  __device__ std::uint64_t step(int step) const {
    const int bytes = Order == Major::k ? step / 4 * PanelBytes + step % 4 * 32 : step * 2048;
    return descriptor + static_cast<std::uint64_t>(bytes / 16);
  }
  // Rows or columns [First, First + Count) of the operand.
  template <int First, int Count>
  __device__ Operand<Count, K, Order, PanelBytes> part() const {
    static_assert(First >= 0 && First + Count <= MN, "inside the operand");
    static_assert(First % (Order == Major::k ? 8 : kPanel) == 0, "parts start at rows of 8 or panels of 64");
    constexpr int kBytes = Order == Major::k ? First * 128 : First / kPanel * PanelBytes;
    return {descriptor + kBytes / 16};
  }
  // Parts of `Count` rows or columns, the index known at run time.
  template <int Count>
  __device__ Operand<Count, K, Order, PanelBytes> part_at(int index) const {
    static_assert(MN % Count == 0 && Count % (Order == Major::k ? 8 : kPanel / 2) == 0,
                  "parts of 8 rows or 32 columns");
    const int first = index * Count;
    const int bytes = Order == Major::k ? first * 128 : first / kPanel * PanelBytes + first % kPanel * 2;
    return {descriptor + static_cast<std::uint64_t>(bytes / 16)};
  }
};

namespace detail {
__device__ inline std::uint64_t swizzled_descriptor(std::uint32_t address, int leading_bytes) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kGroupStride = std::uint64_t{1024 / 16} << 32;  // 8 rows
  return kSwizzle128 | kGroupStride | (static_cast<std::uint64_t>(leading_bytes / 16) << 16) |
         static_cast<std::uint64_t>((address & 0x3ffff) >> 4);
}
}  // namespace detail

// The tile's rows as the operand's rows (or columns), contracted along the tile's columns: q and k of q k^T.
template <int Rows, int Cols>
__device__ inline Operand<Rows, Cols, Major::k, Rows * 128> along_columns(const SharedTile<Rows, Cols>& tile) {
  return {detail::swizzled_descriptor(shared_address(tile.data), 16)};
}
// The tile's columns as the operand's columns (or rows), contracted along the tile's rows: v of p v.
template <int Rows, int Cols>
__device__ inline Operand<Cols, Rows, Major::mn, Rows * 128> along_rows(const SharedTile<Rows, Cols>& tile) {
  return {detail::swizzled_descriptor(shared_address(tile.data), Rows * 128)};
}

}  // namespace weft::tile
