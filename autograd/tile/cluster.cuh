// Clusters of thread blocks (sm_90a): blocks that run at the same time on neighbouring processors, signal each other's
// barriers and share what the copy engine brings.
#pragma once

#include "autograd/tile/tma.cuh"

namespace weft::tile {

// Number of this block in its cluster.
__device__ inline int cluster_rank() {
  std::uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// All threads of all blocks of the cluster. What one wrote before, the others see after; no block that others signal
// may leave before a last one of these.
__device__ inline void cluster_sync() {
#ifdef WEFT_HOPPER
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  unavailable();
#endif
}

// Arrives at the barrier that lies at the same place in block `rank` of the cluster.
__device__ inline void arrive_at(const Barrier& barrier, int rank) {
#ifdef WEFT_HOPPER
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(barrier.address()),
      "r"(rank)
      : "memory");
#else
  unavailable();
#endif
}

// One panel of 64 columns of a tile, from column x and row y at index z of the tensor, to the same place in all blocks
// of the cluster whose bit of `blocks` is set; each of them gets the bytes at its own barrier. The tile may have more
// rows than the map: it keeps the others.
template <int Rows, int Cols, int Copied>
__device__ inline void load_panel_to_all(SharedTile<Rows, Cols>& tile, int panel, const TileMap<Copied, 3>& map,
                                         Barrier& barrier, int x, int y, int z, std::uint32_t blocks) {
  static_assert(Copied <= Rows, "the rows fit into the tile");
#ifdef WEFT_HOPPER
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(tile.data) +
                                                  panel * SharedTile<Rows, Cols>::kPanelBytes),
      "l"(&map.map), "r"(barrier.address()), "r"(x), "r"(y), "r"(z), "h"(static_cast<std::uint16_t>(blocks))
      : "memory");
#else
  unavailable();
#endif
}

}  // namespace weft::tile
