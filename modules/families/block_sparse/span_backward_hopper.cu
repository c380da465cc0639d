// dq of attention to all visible spans on Hopper: three products by wgmma, keys and values two tiles deep in shared
// memory.
#include "modules/families/block_sparse/block_sparse_backward_device.cuh"
#include "modules/families/block_sparse/span_hopper.cuh"

namespace weft::block_sparse {
namespace {

constexpr int kKeys = 64;  // of a tile
constexpr int kStages = 2;
constexpr int kDeltaWarps = 8;

template <int D>
struct SpanGradientMemory {
  tile::SharedTile<64, D> q[kSpanWarpgroups], d_o[kSpanWarpgroups];
  tile::SharedTile<kKeys, D> k[kStages], v[kStages];
};

// delta = <d_o, o>: a warp for each row.
template <int D>
__global__ void __launch_bounds__(kDeltaWarps* kWarp) delta_kernel(const BackwardArguments a, std::int64_t rows) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kDeltaWarps + threadIdx.x / kWarp;
  if (row >= rows) return;
  constexpr int kN = D / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float x[kN], y[kN], sum = 0.0f;
  load_pack(static_cast<const bfloat16*>(a.o) + row * D + lane * kN, x);
  load_pack(static_cast<const bfloat16*>(a.d_o) + row * D + lane * kN, y);
#pragma unroll
  for (int i = 0; i < kN; ++i) sum += x[i] * y[i];
  sum = tile::reduce_lanes<tile::Sum>(sum);
  if (lane == 0) a.delta[row] = sum;
}

template <int D>
__global__ void __launch_bounds__(kSpanThreads, 1) span_query_kernel(const BackwardArguments a, const RowTables tiles) {
  extern __shared__ __align__(1024) std::byte dynamic[];
  auto& shared = *reinterpret_cast<SpanGradientMemory<D>*>(dynamic);
  const Selection& selection = a.plan.selection;
  const RowTables& keys = a.plan.row;
  const int thread = static_cast<int>(threadIdx.x), group = thread / tile::kWarpgroup;
  const int own = thread % tile::kWarpgroup;
  const int G = selection.heads_of_group(), H_Q = selection.H_Q;
  const SpanTile t = span_tile(keys, tiles, G, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  if (!t.any) return;
  const int kv_head = static_cast<int>(blockIdx.y), first_head = kv_head * G;
  const std::int64_t step = static_cast<std::int64_t>(selection.H_KV) * D;
  const std::int64_t base = (static_cast<std::int64_t>(t.key_row) * selection.H_KV + kv_head) * D;
  const auto fetch = [&](int first, int stage) {
    fetch_keys(shared.k[stage], static_cast<const bf16*>(a.k) + base, step, first, t.keys);
    fetch_keys(shared.v[stage], static_cast<const bf16*>(a.v) + base, step, first, t.keys);
  };
  fetch_queries<D>(shared.q, static_cast<const bf16*>(a.q), t, H_Q, first_head);
  fetch_queries<D>(shared.d_o, static_cast<const bf16*>(a.d_o), t, H_Q, first_head);
  fetch(0, 0);
  tile::commit_copies();
  int rows[2], seen[2];
  float lse[2], delta[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    rows[r] = group * 64 + tile::Accumulator<D>::row(own, 2 * r);
    seen[r] = t.seen(keys.span, rows[r]);
    const std::int64_t row = t.valid(rows[r]) ? t.row(H_Q, first_head, rows[r]) : 0;
    lse[r] = t.valid(rows[r]) ? a.lse[row] * tile::kLog2e : INFINITY;
    delta[r] = t.valid(rows[r]) ? a.delta[row] : 0.0f;
  }
  tile::Accumulator<D> dq;
  dq.fill(0.0f);
  int stage = 0;
  for (int first = 0; first < t.keys; first += kKeys) {
    if (first + kKeys < t.keys) fetch(first + kKeys, stage ^ 1);
    tile::commit_copies();
    tile::wait_copies<1>();
    tile::fence_async_shared();
    __syncthreads();
    tile::Accumulator<kKeys> s, dp;
    tile::wgmma_fence(s, dp);
    tile::multiply(s, tile::along_columns(shared.q[group]), tile::along_columns(shared.k[stage]), false);
    tile::multiply(dp, tile::along_columns(shared.d_o[group]), tile::along_columns(shared.v[stage]), false);
    tile::wgmma_commit();
    tile::wgmma_wait<0>();
    tile::wgmma_fence(s, dp);
#pragma unroll
    for (int i = 0; i < s.kSize; ++i) {
      const int r = i / 2 % 2;
      const float p = tile::exp2_fast(s.x[i] * a.unit - lse[r]);
      dp.x[i] = s.column(own, i) < seen[r] - first ? p * (dp.x[i] - delta[r]) : 0.0f;
    }
    tile::RegisterOperand<kKeys> slopes;
    tile::round_to_operand(slopes, dp);
    tile::wgmma_fence(dq, slopes);
    tile::multiply(dq, slopes, tile::along_rows(shared.k[stage]), true);
    tile::wgmma_commit();
    tile::wgmma_wait<0>();
    tile::wgmma_fence(dq);
    __syncthreads();
    stage ^= 1;
  }
  tile::wait_copies<0>();
#pragma unroll
  for (int i = 0; i < dq.kSize; ++i) dq.x[i] *= a.scale;
  if (a.write_dq == Write::accumulate) {
#pragma unroll
    for (int i = 0; i < dq.kSize; i += 2) {
      const int r = rows[i / 2 % 2];
      if (!t.valid(r)) continue;
      put_pair(static_cast<bf16*>(a.dq) + t.row(H_Q, first_head, r) * D + dq.column(own, i), dq.x[i], dq.x[i + 1],
               Write::accumulate);
    }
    return;
  }
  __syncthreads();
  tile::store_rounded(dq, shared.q[group], 0, 0, own);
  __syncthreads();
  constexpr int kChunks = D / 8;
  for (int i = thread; i < kSpanRows * kChunks; i += kSpanThreads) {
    const int r = i / kChunks, c = i % kChunks * 8;
    if (!t.valid(r)) continue;
    tile::store16(static_cast<bf16*>(a.dq) + t.row(H_Q, first_head, r) * D + c, shared.q[r / 64].chunk(r % 64, c));
  }
}

}  // namespace

void span_query_gradients_hopper(const BackwardArguments& a, const RowTables& tiles, const Stream& stream) {
  const Selection& selection = a.plan.selection;
  const std::int64_t rows = static_cast<std::int64_t>(a.plan.T_count) * selection.H_Q;
  const dim3 grid(
      static_cast<unsigned>(most_blocks(a.plan.T_count, a.plan.row.N, kSpanRows / selection.heads_of_group())),
      static_cast<unsigned>(selection.H_KV));
  dispatch_width(a.D, [&]<int D>() {
    delta_kernel<D><<<blocks_for(rows, kDeltaWarps), kDeltaWarps * kWarp, 0, cuda_stream(stream)>>>(a, rows);
    WEFT_CHECK_LAUNCH();
    if (a.dq == nullptr) return;
    constexpr std::size_t kBytes = sizeof(SpanGradientMemory<D>);
    WEFT_CUDA_CALL(cudaFuncSetAttribute(span_query_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(kBytes)));
    span_query_kernel<D><<<grid, kSpanThreads, kBytes, cuda_stream(stream)>>>(a, tiles);
    WEFT_CHECK_LAUNCH();
  });
}

}  // namespace weft::block_sparse
