// Scores of blocks on the tensor cores: a warp for each query and key/value head, whose rows are the heads of the
// group, 16 at a time.
#include "modules/families/block_sparse/block_choice_cuda.cuh"

namespace weft::block_sparse {
namespace {

constexpr int kWarps = 4;
constexpr int kRows = 16;  // heads at a time
constexpr int kTile = 64;  // summaries at a time

template <int D>
__device__ void load_heads(RowOperand<D>& to, const bf16* q, int heads, const Lane& lane) {
  to.low.load(q + lane.g * D, lane.g < heads, lane);
  to.high.load(q + (lane.g + 8) * D, lane.g + 8 < heads, lane);
}

template <int D>
__device__ tile::FragmentC products(const RowOperand<D>& q, const bf16* k, std::int64_t step, int key, int visible,
                                    const Lane& lane) {
  RowPart<D> part;
  part.load(k + (key + lane.g) * step, key + lane.g < visible, lane);
  tile::FragmentC s{};
  multiply_rows<D>(s, q, part);
  return s;
}

template <int D>
__global__ void __launch_bounds__(kWarps* kWarp) denominators_kernel(const ChoiceArguments a, float* lse, int T_count) {
  const Lane lane;
  const int token = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (token >= T_count) return;
  const int tiles = (a.G + kRows - 1) / kRows;
  const int kv_head = static_cast<int>(blockIdx.y) / tiles, first = static_cast<int>(blockIdx.y) % tiles * kRows;
  const int heads = min(kRows, a.G - first);
  const std::int64_t row = static_cast<std::int64_t>(token) * a.H_Q + kv_head * a.G + first;
  const QueryPlace place = place_of(a.row, token);
  const std::int64_t step = static_cast<std::int64_t>(a.H_KV) * D;
  const bf16* const k =
      static_cast<const bf16*>(a.k) + (static_cast<std::int64_t>(place.key_row) * a.H_KV + kv_head) * D;
  RowOperand<D> q;
  load_heads<D>(q, static_cast<const bf16*>(a.q) + row * D, heads, lane);
  float top[2] = {-INFINITY, -INFINITY}, mass[2] = {0.0f, 0.0f};  // this lane's
  for (int key = 0; key < place.visible; key += 8) {
    const tile::FragmentC s = products<D>(q, k, step, key, place.visible, lane);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = key + 2 * lane.t;
      const float x = at < place.visible ? s.x[2 * r] * a.unit : -INFINITY;
      const float y = at + 1 < place.visible ? s.x[2 * r + 1] * a.unit : -INFINITY;
      const float after = fmaxf(top[r], fmaxf(x, y));
      if (after == -INFINITY) continue;
      mass[r] = mass[r] * tile::exp2_fast(top[r] - after) + tile::exp2_fast(x - after) + tile::exp2_fast(y - after);
      top[r] = after;
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float all = tile::reduce_quad<tile::Max>(top[r]);
    const float sum =
        tile::reduce_quad<tile::Sum>(top[r] == -INFINITY ? 0.0f : mass[r] * tile::exp2_fast(top[r] - all));
    const int head = lane.g + 8 * r;
    if (head < heads && lane.t == 0) {
      lse[row + head] = sum > 0.0f ? (all + tile::log2_fast(sum)) * tile::kLn2 : -INFINITY;
    }
  }
}

template <int D>
__global__ void __launch_bounds__(kWarps* kWarp) scores_kernel(const ChoiceArguments a) {
  __shared__ float shared[kWarps][kTile];
  const Lane lane;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, flat = static_cast<int>(threadIdx.x) % kWarp;
  const int token = a.end - 1 - (static_cast<int>(blockIdx.x) * kWarps + warp);
  if (token < a.begin) return;
  const int kv_head = static_cast<int>(blockIdx.y);
  const QueryPlace place = place_of(a.row, token);
  if (a.takes_all(place.position)) return;
  const std::int64_t row = static_cast<std::int64_t>(token) * a.H_Q + kv_head * a.G;
  const std::int64_t step = static_cast<std::int64_t>(a.H_KV) * D;
  const bf16* const k =
      static_cast<const bf16*>(a.k) + (static_cast<std::int64_t>(place.key_row) * a.H_KV + kv_head) * D;
  RowOperand<D> q;
  float lse[2] = {INFINITY, INFINITY};
  const auto load = [&](int first) {
    load_heads<D>(q, static_cast<const bf16*>(a.q) + (row + first) * D, a.G - first, lane);
    if (a.score == BlockScore::logit) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = first + lane.g + 8 * r;
      lse[r] = head < a.G ? a.lse[row + head] * tile::kLog2e : INFINITY;
    }
  };
  load(0);
  for (int begin = 0; begin < place.visible; begin += kTile) {
    const int count = min(kTile, place.visible - begin);
    float sum[kTile / 8][2] = {};
    for (int first = 0; first < a.G; first += kRows) {
      if (a.G > kRows) load(first);
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n) {
        const int key = begin + 8 * n;
        if (key >= place.visible) break;
        const tile::FragmentC s = products<D>(q, k, step, key, place.visible, lane);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (a.score == BlockScore::logit) {
            const int head = first + lane.g + i / 2 * 8, at = key + 2 * lane.t + i % 2;
            if (head < a.G && at < place.visible) a.score_row(token, kv_head * a.G + head)[at] = s.x[i];
          } else {
            sum[n][i % 2] += tile::exp2_fast(s.x[i] * a.unit - lse[i / 2]);
          }
        }
      }
    }
    if (a.score == BlockScore::logit) continue;
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int mask = 4; mask < kWarp; mask *= 2) sum[n][i] += __shfl_xor_sync(kAllLanes, sum[n][i], mask);
        if (lane.g == 0) shared[warp][8 * n + 2 * lane.t + i] = sum[n][i];
      }
    }
    __syncwarp();
    add_to_blocks(a, shared[warp], begin, count, a.score_row(token, kv_head), flat);
    __syncwarp();
  }
  if (a.score != BlockScore::logit) clear_rest(a, place.visible, place.position, a.score_row(token, kv_head), flat);
}

}  // namespace

void choice_denominators_mma(const ChoiceArguments& a, float* lse, std::int64_t T, const Stream& stream) {
  const dim3 grid(blocks_for(T, kWarps), static_cast<unsigned>(a.H_KV * ((a.G + kRows - 1) / kRows)));
  dispatch_width(a.D, [&]<int D>() {
    denominators_kernel<D><<<grid, kWarps * kWarp, 0, cuda_stream(stream)>>>(a, lse, static_cast<int>(T));
  });
  WEFT_CHECK_LAUNCH();
}

void choice_scores_mma(const ChoiceArguments& a, const Stream& stream) {
  const dim3 grid(blocks_for(a.end - a.begin, kWarps), static_cast<unsigned>(a.H_KV));
  dispatch_width(a.D, [&]<int D>() { scores_kernel<D><<<grid, kWarps * kWarp, 0, cuda_stream(stream)>>>(a); });
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft::block_sparse
