// Scores of blocks on Hopper, for groups of 16 heads: a tile of eight queries, whose heads fill the rows of two
// warpgroups and one warp each, against tiles of summaries by wgmma.
#include "autograd/cuda/cuda_target.h"
#include "modules/families/block_sparse/block_choice_cuda.cuh"
#include "modules/families/block_sparse/span_hopper.cuh"

namespace weft::block_sparse {
namespace {

constexpr int kGroup = 16;      // heads of a group: the rows of a warp
constexpr int kSummaries = 64;  // of a tile
constexpr int kStages = 3;
constexpr int kWarps = kSpanThreads / kWarp;

template <int D>
struct ScoreMemory {
  tile::SharedTile<64, D> q[kSpanWarpgroups];
  tile::SharedTile<kSummaries, D> k[kStages];
  float p[kWarps][kSummaries];
};

// Sums of the warp's 16 rows for every column: eight lanes that hold different rows of the same columns first halve the
// columns between them, three times; lane (g, t) ends up with columns 8 n + 2 t, + 1 of n = g.
template <int Half>
__device__ inline void halve(float* x, int g) {
  const bool upper = (g & (Half / 2)) != 0;
#pragma unroll
  for (int i = 0; i < Half; ++i) {
    const float give = upper ? x[i] : x[i + Half], keep = upper ? x[i + Half] : x[i];
    x[i] = keep + __shfl_xor_sync(kAllLanes, give, 2 * Half);
  }
}
__device__ inline float2 sum_rows(const tile::Accumulator<kSummaries>& s) {
  const int g = static_cast<int>(threadIdx.x) % kWarp / 4;
  float x[kSummaries / 4];
#pragma unroll
  for (int i = 0; i < kSummaries / 4; ++i) x[i] = s.x[i / 2 * 4 + i % 2] + s.x[i / 2 * 4 + 2 + i % 2];
  halve<8>(x, g);
  halve<4>(x, g);
  halve<2>(x, g);
  return make_float2(x[0], x[1]);
}

template <int D>
__global__ void __launch_bounds__(kSpanThreads, 2) span_scores_kernel(const ChoiceArguments a, const RowTables tiles) {
  extern __shared__ __align__(1024) std::byte dynamic[];
  auto& shared = *reinterpret_cast<ScoreMemory<D>*>(dynamic);
  const int thread = static_cast<int>(threadIdx.x), group = thread / tile::kWarpgroup, warp = thread / kWarp;
  const int own = thread % tile::kWarpgroup, lane = thread % kWarp;
  constexpr int kQueries = kSpanRows / kGroup;
  // The tile of the slab's first query, and those after it.
  const int n = last_at_most(tiles.cu_seqlens, tiles.N, a.begin);
  const int first_tile = tiles.first_block[n] + (a.begin - tiles.cu_seqlens[n]) / kQueries;
  const SpanTile t = span_tile(a.row, tiles, kGroup, first_tile + static_cast<int>(gridDim.x - 1 - blockIdx.x));
  if (!t.any || t.token >= a.end || a.takes_all(t.position + t.tokens - 1)) return;
  const int kv_head = static_cast<int>(blockIdx.y), first_head = kv_head * kGroup;
  const std::int64_t step = static_cast<std::int64_t>(a.H_KV) * D;
  const bf16* const k = static_cast<const bf16*>(a.k) + (static_cast<std::int64_t>(t.key_row) * a.H_KV + kv_head) * D;
  const int count = (t.keys + kSummaries - 1) / kSummaries;
  fetch_queries<D>(shared.q, static_cast<const bf16*>(a.q), t, a.H_Q, first_head);
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < count) fetch_keys(shared.k[i], k, step, i * kSummaries, t.keys);
    tile::commit_copies();
  }
  const int row = group * 64 + tile::Accumulator<kSummaries>::row(own, 0);  // and 8 below it, of the same query
  const int token = t.token + row / kGroup, position = t.position + row / kGroup;
  const bool scored = t.valid(row) && token >= a.begin && token < a.end && !a.takes_all(position);
  const int seen = t.seen(a.row.span, row);
  float lse[2] = {INFINITY, INFINITY};
  if (t.valid(row)) {
    lse[0] = a.lse[t.row(a.H_Q, first_head, row)] * tile::kLog2e;
    lse[1] = a.lse[t.row(a.H_Q, first_head, row + 8)] * tile::kLog2e;
  }
  for (int i = 0; i < count; ++i) {
    tile::wait_copies<kStages - 2>();
    tile::fence_async_shared();
    __syncthreads();
    if (i + kStages - 1 < count) {
      fetch_keys(shared.k[(i + kStages - 1) % kStages], k, step, (i + kStages - 1) * kSummaries, t.keys);
    }
    tile::commit_copies();
    tile::Accumulator<kSummaries> s;
    tile::wgmma_fence(s);
    tile::multiply(s, tile::along_columns(shared.q[group]), tile::along_columns(shared.k[i % kStages]), false);
    tile::wgmma_commit();
    tile::wgmma_wait<0>();
    tile::wgmma_fence(s);
#pragma unroll
    for (int x = 0; x < s.kSize; ++x) s.x[x] = tile::exp2_fast(s.x[x] * a.unit - lse[x / 2 % 2]);
    const float2 sum = sum_rows(s);
    const int first = i * kSummaries, visible = min(seen - first, kSummaries);
    if (!scored || visible <= 0) continue;
    const int column = lane / 4 * 8 + lane % 4 * 2;
    *reinterpret_cast<float2*>(&shared.p[warp][column]) = sum;
    __syncwarp();
    add_to_blocks(a, shared.p[warp], first, visible, a.score_row(token, kv_head), lane);
    __syncwarp();
  }
  tile::wait_copies<0>();
  if (scored) clear_rest(a, seen, position, a.score_row(token, kv_head), lane);
}

}  // namespace

bool choice_hopper_fits(const BlockChoice& args) {
  return choice_mma_fits(args) && args.score != BlockScore::logit && args.H_Q == kGroup * args.H_KV && hopper_kernels();
}

int choice_hopper_queries() {
  return kSpanRows / kGroup;
}

void choice_scores_hopper(const ChoiceArguments& a, const RowTables& tiles, const Stream& stream) {
  const dim3 grid(static_cast<unsigned>(most_blocks(a.end - a.begin, a.row.N, kSpanRows / kGroup) + 1),
                  static_cast<unsigned>(a.H_KV));
  dispatch_width(a.D, [&]<int D>() {
    constexpr std::size_t kBytes = sizeof(ScoreMemory<D>);
    WEFT_CUDA_CALL(cudaFuncSetAttribute(span_scores_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(kBytes)));
    span_scores_kernel<D><<<grid, kSpanThreads, kBytes, cuda_stream(stream)>>>(a, tiles);
  });
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft::block_sparse
