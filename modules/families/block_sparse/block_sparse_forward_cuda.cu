// CUDA kernels of block_sparse_attention.h, forward. This file holds the path for any element type and width: a warp
// for each query row and head; lanes are keys for logits and channels for sums. Widths of the tensor cores go to
// block_sparse_forward_mma.cu.
#include <cub/block/block_scan.cuh>

#include "autograd/cuda/cuda_target.h"
#include "modules/families/block_sparse/span_hopper.cuh"

namespace weft::block_sparse {
namespace {

constexpr int kWarps = 8;
constexpr int kScanThreads = 256;

__global__ void __launch_bounds__(kScanThreads) lay_out_kernel(const std::int32_t* cu, int N, KeySpan span, int block,
                                                               std::int32_t* key_row, std::int32_t* first_block) {
  using Scan = cub::BlockScan<unsigned long long, kScanThreads>;
  __shared__ typename Scan::TempStorage storage;
  unsigned long long before = 0;  // blocks in the upper half, keys in the lower
  for (int begin = 0; begin < N; begin += kScanThreads) {
    const int n = begin + static_cast<int>(threadIdx.x);
    unsigned long long own = 0;
    if (n < N) {
      const auto keys = static_cast<unsigned long long>(span_count(span, cu[n + 1] - cu[n]));
      own = ((keys + block - 1) / block << 32) | keys;
    }
    unsigned long long offset = 0, total = 0;
    Scan(storage).ExclusiveSum(own, offset, total);
    if (n < N) {
      key_row[n] = static_cast<std::int32_t>((before + offset) & 0xffffffffu);
      first_block[n] = static_cast<std::int32_t>((before + offset) >> 32);
    }
    before += total;
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    key_row[N] = static_cast<std::int32_t>(before & 0xffffffffu);
    first_block[N] = static_cast<std::int32_t>(before >> 32);
  }
}

template <class T>
struct ForwardRows {
  RowTables row;
  Selection selection;
  int T_count, D, D_V;
  float unit;  // logits in powers of 2
  bool packs;
  const T *q, *k, *v;
  T* o;
  float* lse;
};

template <class T>
__global__ void __launch_bounds__(kWarps* kWarp) forward_rows(const ForwardRows<T> a) {
  __shared__ float shared[kWarps][kWidest];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int H_Q = a.selection.H_Q, H_KV = a.selection.H_KV;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (row >= static_cast<std::int64_t>(a.T_count) * H_Q) return;
  const int token = static_cast<int>(row / H_Q), head = static_cast<int>(row % H_Q);
  const int kv_head = head / a.selection.heads_of_group();
  const QueryPlace place = place_of(a.row, token);
  float* const q = shared[warp];
  share_row(a.q + row * a.D, a.D, q, lane);
  __syncwarp();
  const auto key_at = [&](int key) { return static_cast<std::int64_t>(place.key_row + key) * H_KV + kv_head; };
  const Choices choices = a.selection.of(token, head, place.visible);
  LaneRow o;
  o.clear();
  float top = -INFINITY, mass = 0.0f;
  for (int slot = 0; slot < choices.slots(); ++slot) {
    const int first = choices.first(slot), last = choices.last(first);
    for (int begin = first; begin < last; begin += kWarp) {
      const int count = min(kWarp, last - begin);
      float logit = -INFINITY;
      if (lane < count) logit = dot_shared(a.k + key_at(begin + lane) * a.D, q, a.D, a.packs) * a.unit;
      const float after = fmaxf(top, tile::reduce_lanes<tile::Max>(logit));
      const float factor = tile::exp2_fast(top - after);
      const float p = tile::exp2_fast(logit - after);
      mass = mass * factor + tile::reduce_lanes<tile::Sum>(p);
      top = after;
      o.scale(factor);
      for (int i = 0; i < count; ++i) {
        o.add(a.v + key_at(begin + i) * a.D_V, a.D_V, __shfl_sync(kAllLanes, p, i), lane);
      }
    }
  }
  o.store(a.o + row * a.D_V, a.D_V, mass > 0.0f ? 1.0f / mass : 0.0f, Write::overwrite, lane);
  if (lane == 0) a.lse[row] = mass > 0.0f ? (top + tile::log2_fast(mass)) * tile::kLn2 : -INFINITY;
}

struct Tables {
  std::int32_t *key_row, *first_block, *tile_row, *first_tile;
};
Tables carve(DeviceCarver& carver, std::int64_t N) {
  const auto table = [&] { return carver.take<std::int32_t>(N + 1); };
  return {table(), table(), table(), table()};
}

}  // namespace

RowTables lay_out_row(const std::int32_t* cu_seqlens, std::int64_t N, KeySpan span, std::int64_t block,
                      std::int32_t* key_row, std::int32_t* first_block, const Stream& stream) {
  lay_out_kernel<<<1, kScanThreads, 0, cuda_stream(stream)>>>(cu_seqlens, static_cast<int>(N), span,
                                                              static_cast<int>(block), key_row, first_block);
  WEFT_CHECK_LAUNCH();
  return {cu_seqlens, key_row, first_block, static_cast<int>(N), span};
}

}  // namespace weft::block_sparse

namespace weft {

std::size_t block_sparse_forward_cuda_workspace(const BlockSparseForward& args) {
  block_sparse::DeviceCarver carver(nullptr);
  block_sparse::carve(carver, args.in.N);
  return carver.used();
}

void block_sparse_forward_cuda(const BlockSparseForward& args, const Launch& launch) {
  using namespace block_sparse;
  const BlockSparseInputs& in = args.in;
  if (in.shape.T == 0) return;
  DeviceCarver carver(launch.workspace);
  const Tables tables = carve(carver, in.N);
  const Selection selection = selection_of(in);
  const RowTables row =
      lay_out_row(in.cu_seqlens, in.N, in.span, selection.block, tables.key_row, tables.first_block, launch.stream);
  const std::int64_t G = in.shape.H_Q / in.shape.H_KV;
  if (in.idx == nullptr && mma_fits(in) && span_tiles_fit(G) && hopper_kernels()) {
    const RowTables tiles =
        lay_out_row(in.cu_seqlens, in.N, {}, kSpanRows / G, tables.tile_row, tables.first_tile, launch.stream);
    return span_forward_hopper(args, row, tiles, launch.stream);
  }
  if (mma_fits(in)) return forward_mma(args, row, selection, launch.stream);
  dispatch_cuda(in.dtype, "block-sparse attention", [&]<class T>() {
    const ForwardRows<T> a{.row = row,
                           .selection = selection,
                           .T_count = static_cast<int>(in.shape.T),
                           .D = static_cast<int>(in.shape.D),
                           .D_V = static_cast<int>(in.shape.D_V),
                           .unit = static_cast<float>(in.scale * tile::kLog2e),
                           .packs = rows_in_packs<T>(in.shape.D, {in.k}),
                           .q = static_cast<const T*>(in.q),
                           .k = static_cast<const T*>(in.k),
                           .v = static_cast<const T*>(in.v),
                           .o = static_cast<T*>(args.o),
                           .lse = static_cast<float*>(args.lse)};
    forward_rows<T>
        <<<blocks_for(in.shape.T * in.shape.H_Q, kWarps), kWarps * kWarp, 0, cuda_stream(launch.stream)>>>(a);
    WEFT_CHECK_LAUNCH();
  });
}

}  // namespace weft
