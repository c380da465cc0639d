// The copy engine (TMA, sm_90a): tiles and plain bytes between global and shared memory, issued by one thread.
//
// Loads arrive at a Barrier that expects their bytes. Stores and reductions form groups of the issuing thread.
#pragma once

#include "autograd/tile/shared_tile.cuh"
#include "autograd/tile/tensor_map.cuh"

namespace weft::tile {

template <int Rows, int Rank>
__device__ inline void prefetch_map(const TileMap<Rows, Rank>& map) {
#ifdef WEFT_HOPPER
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map.map) : "memory");
#else
  unavailable();
#endif
}

namespace detail {

__device__ inline void tma_load(std::uint32_t to, const CUtensorMap* map, std::uint32_t barrier, int x, int y) {
#ifdef WEFT_HOPPER
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          to),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
#else
  unavailable();
#endif
}
__device__ inline void tma_load(std::uint32_t to, const CUtensorMap* map, std::uint32_t barrier, int x, int y, int z) {
#ifdef WEFT_HOPPER
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
          "r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
#else
  unavailable();
#endif
}
__device__ inline void tma_load(std::uint32_t to, const CUtensorMap* map, std::uint32_t barrier, int x, int y, int z,
                                int w) {
#ifdef WEFT_HOPPER
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
#else
  unavailable();
#endif
}
__device__ inline void tma_store(const CUtensorMap* map, std::uint32_t from, int x, int y) {
#ifdef WEFT_HOPPER
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(from),
               "r"(x), "r"(y)
               : "memory");
#else
  unavailable();
#endif
}
__device__ inline void tma_store(const CUtensorMap* map, std::uint32_t from, int x, int y, int z) {
#ifdef WEFT_HOPPER
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(from),
               "r"(x), "r"(y), "r"(z)
               : "memory");
#else
  unavailable();
#endif
}
__device__ inline void tma_store(const CUtensorMap* map, std::uint32_t from, int x, int y, int z, int w) {
#ifdef WEFT_HOPPER
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
               "r"(from), "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
#else
  unavailable();
#endif
}

}  // namespace detail

// tile = the tensor's columns [x, x + Cols) of rows [y, y + Rows), at `index` of the further dimensions. Elements
// outside the tensor are zero. Brings SharedTile::kBytes to the barrier, which must have been told to expect them.
template <int Rows, int Cols, int Rank, class... Index>
__device__ inline void load_tile(SharedTile<Rows, Cols>& tile, const TileMap<Rows, Rank>& map, Barrier& barrier, int x,
                                 int y, Index... index) {
  static_assert(sizeof...(Index) == Rank - 2, "one index for every further dimension");
#pragma unroll
  for (int p = 0; p < Cols / kPanel; ++p) {
    detail::tma_load(shared_address(tile.data) + p * SharedTile<Rows, Cols>::kPanelBytes, &map.map, barrier.address(),
                     x + p * kPanel, y, index...);
  }
}
// The other way. Elements outside the tensor are left out; rows of a neighbouring document are not: full tiles only.
template <int Rows, int Cols, int Rank, class... Index>
__device__ inline void store_tile(const TileMap<Rows, Rank>& map, const SharedTile<Rows, Cols>& tile, int x, int y,
                                  Index... index) {
  static_assert(sizeof...(Index) == Rank - 2, "one index for every further dimension");
#pragma unroll
  for (int p = 0; p < Cols / kPanel; ++p) {
    detail::tma_store(&map.map, shared_address(tile.data) + p * SharedTile<Rows, Cols>::kPanelBytes, x + p * kPanel, y,
                      index...);
  }
}

// --- plain bytes; sizes and both addresses are multiples of 16
// -----------------------------------------------------------

__device__ inline void load_bytes(void* shared, const void* global, std::uint32_t bytes, Barrier& barrier) {
#ifdef WEFT_HOPPER
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(barrier.address())
               : "memory");
#else
  unavailable();
#endif
}
__device__ inline void store_bytes(void* global, const void* shared, std::uint32_t bytes) {
#ifdef WEFT_HOPPER
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(shared_address(shared)),
               "r"(bytes)
               : "memory");
#else
  unavailable();
#endif
}
// global[i] += shared[i], fp32. The order of additions to one element is the order in which they are issued and waited
// for: whoever wants the same bits every run passes a turn from one block to the next.
__device__ inline void add_floats(float* global, const float* shared, std::uint32_t bytes) {
#ifdef WEFT_HOPPER
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
#else
  unavailable();
#endif
}

__device__ inline void commit_stores() {
#ifdef WEFT_HOPPER
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  unavailable();
#endif
}
// At most `Pending` of this thread's latest groups still read their shared memory.
template <int Pending>
__device__ inline void wait_stores_read() {
#ifdef WEFT_HOPPER
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
#else
  unavailable();
#endif
}
// At most `Pending` of them are not yet written.
template <int Pending>
__device__ inline void wait_stores() {
#ifdef WEFT_HOPPER
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
#else
  unavailable();
#endif
}

}  // namespace weft::tile
