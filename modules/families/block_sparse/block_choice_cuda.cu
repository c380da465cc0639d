// CUDA kernels of block_choice.h. Queries go through in slabs whose scores of blocks fit in a budget: one kernel adds
// up the scores of a slab, one takes the best of each row. This file holds the path for any element type and width; the
// tensor cores' is block_choice_mma.cu.
#include <cmath>

#include "modules/families/block_sparse/block_choice_cuda.cuh"

namespace weft::block_sparse {
namespace {

constexpr int kWarps = 8;
constexpr std::int64_t kBudgetBytes = std::int64_t{64} << 20;  // for scores

// The product of a lane's own row with one that all lanes share, both in global memory.
template <class T>
__device__ float dot_rows(const T* own, const T* shared, int width, bool packs) {
  constexpr int kN = 16 / static_cast<int>(sizeof(T));
  float sum = 0.0f;
  if (packs) {
    for (int c = 0; c < width; c += kN) {
      float x[kN], y[kN];
      load_pack(own + c, x);
      load_pack(shared + c, y);
#pragma unroll
      for (int i = 0; i < kN; ++i) sum += x[i] * y[i];
    }
  } else {
    for (int c = 0; c < width; ++c) sum += to_float(own[c]) * to_float(shared[c]);
  }
  return sum;
}

// A warp for each query and head; lanes are summaries.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    find_denominators(const ChoiceArguments a, float* lse, std::int64_t T_count) {
  const int lane = threadIdx.x % kWarp;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= T_count * a.H_Q) return;
  const int token = static_cast<int>(row / a.H_Q), kv_head = static_cast<int>(row % a.H_Q) / a.G;
  const QueryPlace place = place_of(a.row, token);
  const T* const q = static_cast<const T*>(a.q) + row * a.D;
  float top = -INFINITY, mass = 0.0f;
  for (int key = lane; key < place.visible; key += kWarp) {
    const T* const k =
        static_cast<const T*>(a.k) + (static_cast<std::int64_t>(place.key_row + key) * a.H_KV + kv_head) * a.D;
    const float logit = dot_rows(k, q, a.D, a.packs) * a.unit;
    const float after = fmaxf(top, logit);
    mass = mass * tile::exp2_fast(top - after) + tile::exp2_fast(logit - after);
    top = after;
  }
  const float all = tile::reduce_lanes<tile::Max>(top);
  mass = tile::reduce_lanes<tile::Sum>(top == -INFINITY ? 0.0f : mass * tile::exp2_fast(top - all));
  if (lane == 0) lse[row] = mass > 0.0f ? (all + tile::log2_fast(mass)) * tile::kLn2 : -INFINITY;
}

// A warp for each query and key/value head; lanes are summaries.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp) score_blocks(const ChoiceArguments a) {
  __shared__ float shared[kWarps][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  const int token = a.begin + static_cast<int>(item / a.H_KV), kv_head = static_cast<int>(item % a.H_KV);
  if (token >= a.end) return;
  const QueryPlace place = place_of(a.row, token);
  if (a.takes_all(place.position)) return;
  const std::int64_t row = static_cast<std::int64_t>(token) * a.H_Q + kv_head * a.G;
  const T* const q = static_cast<const T*>(a.q) + row * a.D;
  for (int key = 0; key < place.visible; key += kWarp) {
    const int count = min(kWarp, place.visible - key);
    const T* const k =
        static_cast<const T*>(a.k) + (static_cast<std::int64_t>(place.key_row + key + lane) * a.H_KV + kv_head) * a.D;
    float sum = 0.0f;
    for (int g = 0; g < a.G; ++g) {
      const float dot = lane < count ? dot_rows(k, q + g * a.D, a.D, a.packs) : 0.0f;
      if (a.score == BlockScore::logit) {
        if (lane < count) a.score_row(token, kv_head * a.G + g)[key + lane] = dot;
      } else if (lane < count) {
        sum += tile::exp2_fast(dot * a.unit - a.lse[row + g] * tile::kLog2e);
      }
    }
    if (a.score == BlockScore::logit) continue;
    shared[warp][lane] = sum;
    __syncwarp();
    add_to_blocks(a, shared[warp], key, count, a.score_row(token, kv_head), lane);
    __syncwarp();
  }
  if (a.score != BlockScore::logit) clear_rest(a, place.visible, place.position, a.score_row(token, kv_head), lane);
}

// A warp for each row of idx.
__global__ void __launch_bounds__(kWarps* kWarp) take_best(const ChoiceArguments a) {
  const int lane = threadIdx.x % kWarp;
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int token = a.begin + static_cast<int>(item / a.lists), list = static_cast<int>(item % a.lists);
  if (token < a.end) take_best_of_row(a, token, list, place_of(a.row, token).position, lane);
}

struct Plan {
  bool scores, denominators;
  std::int64_t lists, blocks, slab;
};
Plan plan_of(const BlockChoice& a) {
  Plan p;
  p.scores = a.T > 0 && !a.rule.takes_all(a.T - 1);
  p.denominators = p.scores && a.lse == nullptr && a.score != BlockScore::logit;
  p.lists = a.score == BlockScore::logit ? a.H_Q : a.H_KV;
  p.blocks = (a.T + a.rule.block - 1) / a.rule.block;
  const auto row = p.lists * p.blocks * static_cast<std::int64_t>(sizeof(float));
  p.slab =
      std::clamp<std::int64_t>(kBudgetBytes / std::max<std::int64_t>(1, row), std::min<std::int64_t>(64, a.T), a.T);
  return p;
}

struct Arrays {
  std::int32_t *key_row, *first_block, *tile_row, *first_tile;
  float *lse, *scores;
};
Arrays carve(DeviceCarver& carver, const BlockChoice& a, const Plan& p) {
  const auto table = [&] { return carver.take<std::int32_t>(a.N + 1); };
  return {table(),
          table(),
          table(),
          table(),
          carver.take<float>(p.denominators ? a.T * a.H_Q : 0),
          carver.take<float>(p.scores ? p.slab * p.lists * p.blocks : 0)};
}

}  // namespace
}  // namespace weft::block_sparse

namespace weft {

std::size_t block_choice_cuda_workspace(const BlockChoice& args) {
  block_sparse::DeviceCarver carver(nullptr);
  block_sparse::carve(carver, args, block_sparse::plan_of(args));
  return carver.used();
}

void block_choice_cuda(const BlockChoice& args, const Launch& launch) {
  using namespace block_sparse;
  if (args.T == 0) return;
  const Plan plan = plan_of(args);
  DeviceCarver carver(launch.workspace);
  const Arrays arrays = carve(carver, args, plan);
  const auto small = [](std::int64_t x) { return static_cast<int>(std::min<std::int64_t>(x, 1 << 30)); };
  ChoiceArguments a{
      .row = lay_out_row(args.cu_seqlens, args.N, args.span, args.rule.block, arrays.key_row, arrays.first_block,
                         launch.stream),
      .score = args.score,
      .begin = 0,
      .end = 0,
      .H_Q = static_cast<int>(args.H_Q),
      .H_KV = static_cast<int>(args.H_KV),
      .D = static_cast<int>(args.D),
      .G = static_cast<int>(args.H_Q / args.H_KV),
      .lists = static_cast<int>(plan.lists),
      .block = static_cast<int>(args.rule.block),
      .selected = small(args.rule.selected),
      .first = small(args.rule.first),
      .local = small(args.rule.local),
      .slots = static_cast<int>(args.rule.slots()),
      .dense = args.rule.dense,
      .strides = args.span.length / args.span.stride,
      .per_block = static_cast<int>(args.rule.block) / args.span.stride,
      .blocks = static_cast<int>(plan.blocks),
      .unit = static_cast<float>(static_cast<double>(tile::kLog2e) / std::sqrt(static_cast<double>(args.D))),
      .packs = false,
      .q = args.q,
      .k = args.k,
      .lse = plan.denominators ? arrays.lse : static_cast<const float*>(args.lse),
      .scores = arrays.scores,
      .idx = args.idx};
  const cudaStream_t stream = cuda_stream(launch.stream);
  dispatch_cuda(args.dtype, "block choice", [&]<class T>() {
    a.packs = rows_in_packs<T>(args.D, {args.q, args.k});
    if (plan.denominators) {
      if (choice_mma_fits(args)) {
        choice_denominators_mma(a, arrays.lse, args.T, launch.stream);
      } else {
        find_denominators<T>
            <<<blocks_for(args.T * args.H_Q, kWarps), kWarps * kWarp, 0, stream>>>(a, arrays.lse, args.T);
        WEFT_CHECK_LAUNCH();
      }
    }
    const bool hopper = plan.scores && choice_hopper_fits(args);
    RowTables tiles{};
    if (hopper) {
      tiles = lay_out_row(args.cu_seqlens, args.N, {}, choice_hopper_queries(), arrays.tile_row, arrays.first_tile,
                          launch.stream);
    }
    for (std::int64_t begin = 0; begin < args.T; begin += plan.slab) {
      a.begin = static_cast<int>(begin);
      a.end = static_cast<int>(std::min(begin + plan.slab, args.T));
      const std::int64_t tokens = a.end - a.begin;
      if (hopper) {
        choice_scores_hopper(a, tiles, launch.stream);
      } else if (plan.scores && choice_mma_fits(args)) {
        choice_scores_mma(a, launch.stream);
      } else if (plan.scores) {
        score_blocks<T><<<blocks_for(tokens * a.H_KV, kWarps), kWarps * kWarp, 0, stream>>>(a);
        WEFT_CHECK_LAUNCH();
      }
      take_best<<<blocks_for(tokens * a.lists, kWarps), kWarps * kWarp, 0, stream>>>(a);
      WEFT_CHECK_LAUNCH();
    }
  });
}

}  // namespace weft
