// CUDA kernels of block_sparse_attention.h, backward, in two passes: dq by query, dk and dv by block of keys from the
// lists of block_plan_cuda.cuh. This file holds the launcher and the path for any element type and width; widths of the
// tensor cores go to block_sparse_backward_mma.cu.
#include "autograd/cuda/cuda_target.h"
#include "modules/families/block_sparse/block_sparse_backward_device.cuh"
#include "modules/families/block_sparse/span_hopper.cuh"

namespace weft::block_sparse {
namespace {

constexpr int kWarps = 8;

// A warp for each query row and head.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp, 2) query_gradients(const BackwardArguments a, bool packs) {
  __shared__ float shared[kWarps][2][kWidest];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Selection& selection = a.plan.selection;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (row >= static_cast<std::int64_t>(a.plan.T_count) * selection.H_Q) return;
  const int token = static_cast<int>(row / selection.H_Q), head = static_cast<int>(row % selection.H_Q);
  const int kv_head = head / selection.heads_of_group();
  const auto *q_row = static_cast<const T*>(a.q) + row * a.D, *o_row = static_cast<const T*>(a.o) + row * a.D_V;
  const auto *k = static_cast<const T*>(a.k), *v = static_cast<const T*>(a.v);
  float *const q = shared[warp][0], *const d_o = shared[warp][1];
  share_row(q_row, a.D, q, lane);
  share_row(static_cast<const T*>(a.d_o) + row * a.D_V, a.D_V, d_o, lane);
  __syncwarp();
  float delta = 0.0f;
  for (int c = lane; c < a.D_V; c += kWarp) delta += d_o[c] * to_float(o_row[c]);
  delta = tile::reduce_lanes<tile::Sum>(delta);
  if (lane == 0) a.delta[row] = delta;
  if (a.dq == nullptr) return;
  const QueryPlace place = place_of(a.plan.row, token);
  const float lse = a.lse[row] * tile::kLog2e;
  const auto key_at = [&](int key) {
    return static_cast<std::int64_t>(place.key_row + key) * selection.H_KV + kv_head;
  };
  const Choices choices = selection.of(token, head, place.visible);
  LaneRow dq;
  dq.clear();
  for (int slot = 0; slot < choices.slots(); ++slot) {
    const int first = choices.first(slot), last = choices.last(first);
    for (int begin = first; begin < last; begin += kWarp) {
      const int count = min(kWarp, last - begin);
      float da = 0.0f;
      if (lane < count) {
        const std::int64_t key = key_at(begin + lane);
        const float p = tile::exp2_fast(dot_shared(k + key * a.D, q, a.D, packs) * a.unit - lse);
        da = p * (dot_shared(v + key * a.D_V, d_o, a.D_V, packs) - delta);
      }
      for (int i = 0; i < count; ++i) {
        dq.add(k + key_at(begin + i) * a.D, a.D, __shfl_sync(kAllLanes, da, i), lane);
      }
    }
  }
  dq.store(static_cast<T*>(a.dq) + row * a.D, a.D, a.scale, a.write_dq, lane);
}

// A block of threads for each work item, a warp for each of its keys in turn; lanes are query rows for logits.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp, 1) key_gradients(const BackwardArguments a, bool packs) {
  __shared__ float shared[kWarps][2][kWidest];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const KeyWork w = key_work(a, static_cast<int>(blockIdx.x));
  if (!w.any) return;
  float *const k = shared[warp][0], *const v = shared[warp][1];
  const auto *q = static_cast<const T*>(a.q), *d_o = static_cast<const T*>(a.d_o);
  for (int at = warp; at < w.keys; at += kWarps) {
    const std::int64_t key = (w.key + at) * a.plan.selection.H_KV + w.kv_head;
    __syncwarp();
    share_row(static_cast<const T*>(a.k) + key * a.D, a.D, k, lane);
    share_row(static_cast<const T*>(a.v) + key * a.D_V, a.D_V, v, lane);
    __syncwarp();
    LaneRow dk, dv;
    dk.clear();
    dv.clear();
    for (std::int64_t begin = w.first; begin < w.last; begin += kWarp) {
      float p = 0.0f, da = 0.0f;
      std::int64_t row = 0;
      if (begin + lane < w.last) {
        const DevicePlan::Row r = a.plan.row_at(w.block, begin + lane, w.kv_head);
        row = r.row;
        if (w.visible_before + at < r.visible) {
          p = tile::exp2_fast(dot_shared(q + row * a.D, k, a.D, packs) * a.unit - a.lse[row] * tile::kLog2e);
          da = p * (dot_shared(d_o + row * a.D_V, v, a.D_V, packs) - a.delta[row]);
        }
      }
      const int count = static_cast<int>(min(static_cast<std::int64_t>(kWarp), w.last - begin));
      for (int i = 0; i < count; ++i) {
        const std::int64_t from = __shfl_sync(kAllLanes, row, i);
        dv.add(d_o + from * a.D_V, a.D_V, __shfl_sync(kAllLanes, p, i), lane);
        dk.add(q + from * a.D, a.D, __shfl_sync(kAllLanes, da, i), lane);
      }
    }
    if (w.part >= 0) {
      float* const to = a.parts + (w.part * kKeyTile64 + at) * (a.D + a.D_V);
      dk.store(to, a.D, a.scale, Write::overwrite, lane);
      dv.store(to + a.D, a.D_V, 1.0f, Write::overwrite, lane);
    } else {
      if (a.dk != nullptr) dk.store(static_cast<T*>(a.dk) + key * a.D, a.D, a.scale, a.write_dk, lane);
      if (a.dv != nullptr) dv.store(static_cast<T*>(a.dv) + key * a.D_V, a.D_V, 1.0f, a.write_dv, lane);
    }
  }
}

// Adds up the pieces of the lists that were cut, in order.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp, 2) add_parts(const BackwardArguments a) {
  const DevicePlan& plan = a.plan;
  const int id = static_cast<int>(blockIdx.x);
  const int pieces = plan.item_begin[id + 1] - plan.item_begin[id];
  if (pieces < 2) return;
  const KeyWork w = key_work(a, plan.item_begin[id]);
  if (!w.any) return;
  const int width = a.D + a.D_V;
  const float* const parts = a.parts + w.part * kKeyTile64 * width;
  for (int i = static_cast<int>(threadIdx.x); i < w.keys * width; i += static_cast<int>(blockDim.x)) {
    float sum = 0.0f;
    for (int piece = 0; piece < pieces; ++piece) {
      sum += parts[static_cast<std::int64_t>(piece) * kKeyTile64 * width + i];
    }
    const std::int64_t key = (w.key + i / width) * plan.selection.H_KV + w.kv_head;
    const int c = i % width;
    const auto put = [&](void* base, std::int64_t at, Write write) {
      if (base == nullptr) return;
      T& to = static_cast<T*>(base)[at];
      to = from_float<T>(write == Write::overwrite ? sum : to_float(to) + sum);
    };
    if (c < a.D) {
      put(a.dk, key * a.D + c, a.write_dk);
    } else {
      put(a.dv, key * a.D_V + c - a.D, a.write_dv);
    }
  }
}

// Rows of dk and dv beyond the keys of the documents get nothing.
constexpr unsigned kClearingBlocks = 64;
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    clear_beyond(RowTables row, std::int64_t S, std::int64_t width, T* to) {
  const std::int64_t first = row.key_row[row.N] * width + blockIdx.x * blockDim.x + threadIdx.x;
  for (std::int64_t i = first; i < S * width; i += gridDim.x * blockDim.x) to[i] = from_float<T>(0.0f);
}

struct Extents {
  int tiles;
  unsigned y;
  std::int64_t parts;  // elements
};
Extents extents_of(const BlockSparseInputs& in, const DevicePlan& plan) {
  const int longest = static_cast<int>(std::min<std::int64_t>(plan.selection.block, in.shape.S));
  const int tiles = std::max(1, (longest + kKeyTile64 - 1) / kKeyTile64);
  const int y = tiles * (plan.selection.groups() == 1 ? plan.selection.H_KV : 1);
  return {tiles, static_cast<unsigned>(y), y * plan.parts * kKeyTile64 * (in.shape.D + in.shape.D_V)};
}

}  // namespace
}  // namespace weft::block_sparse

namespace weft {

std::size_t block_sparse_backward_cuda_workspace(const BlockSparseBackward& args) {
  using namespace block_sparse;
  if (args.in.shape.T == 0) return 0;
  const DevicePlan bounds = device_plan_bounds(args.in);
  DeviceCarver carver(nullptr);
  carver.take<float>(args.in.shape.T * args.in.shape.H_Q);
  carver.take<float>(extents_of(args.in, bounds).parts);
  carver.take<std::int32_t>(args.in.N + 1);
  carver.take<std::int32_t>(args.in.N + 1);
  return carver.used() + device_plan_workspace(args.in);
}

void block_sparse_backward_cuda(const BlockSparseBackward& args, const Launch& launch) {
  using namespace block_sparse;
  const BlockSparseInputs& in = args.in;
  if (in.shape.T == 0) return;
  DeviceCarver carver(launch.workspace);
  auto* const delta = carver.take<float>(in.shape.T * in.shape.H_Q);
  auto* const parts = carver.take<float>(extents_of(in, device_plan_bounds(in)).parts);
  auto* const tile_row = carver.take<std::int32_t>(in.N + 1);
  auto* const first_tile = carver.take<std::int32_t>(in.N + 1);
  const DevicePlan plan = build_device_plan(in, launch, carver);
  const Extents e = extents_of(in, plan);
  const BackwardArguments a{.plan = plan,
                            .D = static_cast<int>(in.shape.D),
                            .D_V = static_cast<int>(in.shape.D_V),
                            .scale = static_cast<float>(in.scale),
                            .unit = static_cast<float>(in.scale * tile::kLog2e),
                            .tiles = e.tiles,
                            .q = in.q,
                            .k = in.k,
                            .v = in.v,
                            .o = args.o,
                            .d_o = args.d_o,
                            .lse = static_cast<const float*>(args.lse),
                            .delta = delta,
                            .dq = args.dq,
                            .dk = args.dk,
                            .dv = args.dv,
                            .write_dq = args.write_dq,
                            .write_dk = args.write_dk,
                            .write_dv = args.write_dv,
                            .parts = parts};
  const cudaStream_t stream = cuda_stream(launch.stream);
  const dim3 grid(static_cast<unsigned>(plan.items), e.y);
  const dim3 parts_grid(static_cast<unsigned>(plan.group_blocks()), e.y);
  const bool keys = args.dk != nullptr || args.dv != nullptr;
  dispatch_cuda(in.dtype, "block-sparse attention", [&]<class T>() {
    const bool packs = rows_in_packs<T>(in.shape.D, {in.q, in.k}) && rows_in_packs<T>(in.shape.D_V, {in.v, args.d_o});
    const std::int64_t G = in.shape.H_Q / in.shape.H_KV;
    if (in.idx == nullptr && mma_fits(in) && span_tiles_fit(G) && hopper_kernels()) {
      const RowTables tiles = lay_out_row(in.cu_seqlens, in.N, {}, kSpanRows / G, tile_row, first_tile, launch.stream);
      span_query_gradients_hopper(a, tiles, launch.stream);
    } else if (mma_fits(in)) {
      query_gradients_mma(a, launch.stream);
    } else {
      query_gradients<T><<<blocks_for(in.shape.T * in.shape.H_Q, kWarps), kWarps * kWarp, 0, stream>>>(a, packs);
      WEFT_CHECK_LAUNCH();
    }
    if (!keys || in.shape.S == 0) return;
    if (mma_fits(in) && hopper_kernels()) {
      key_gradients_hopper(a, grid, launch.stream);
    } else if (mma_fits(in)) {
      key_gradients_mma(a, grid, launch.stream);
    } else {
      key_gradients<T><<<grid, kWarps * kWarp, 0, stream>>>(a, packs);
      WEFT_CHECK_LAUNCH();
    }
    add_parts<T><<<parts_grid, kWarps * kWarp, 0, stream>>>(a);
    WEFT_CHECK_LAUNCH();
    const auto clear = [&](void* to, Write write, std::int64_t width) {
      if (to == nullptr || write == Write::accumulate || in.span.length == 1) return;  // tokens: all are keys
      clear_beyond<T><<<kClearingBlocks, kWarps * kWarp, 0, stream>>>(plan.row, in.shape.S, in.shape.H_KV * width,
                                                                      static_cast<T*>(to));
      WEFT_CHECK_LAUNCH();
    };
    clear(args.dk, args.write_dk, in.shape.D);
    clear(args.dv, args.write_dv, in.shape.D_V);
  });
}

}  // namespace weft
