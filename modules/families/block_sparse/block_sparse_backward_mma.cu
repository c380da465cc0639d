// Backward attention to chosen blocks on the tensor cores. dq: a warp for a bundle of 16 rows, as forward. dk and dv:
// four warps for 64 keys, 16 each, kept in registers as the left operand; the rows of the list are gathered into shared
// memory, 64 at a time and one copy ahead, for all four.
#include "autograd/tile/async_copy.cuh"
#include "modules/families/block_sparse/block_sparse_backward_device.cuh"

namespace weft::block_sparse {
namespace {

constexpr int kWarps = 4;
constexpr int kStep = 16;  // keys at a time

// --- dq ------------------------------------------------------------------------------------------------------------

template <int D>
struct QueryState {
  RowOperand<D> q, d_o;
  tile::FragmentC dq[D / 8];
  float lse[2], delta[2];
};

// The keys [0, count) from `k` on, at most kStep, of which the rows see the first seen[0] and seen[1]; values lie
// `to_values` elements after their keys.
template <int D>
__device__ void add_keys(QueryState<D>& state, const bf16* k, std::int64_t to_values, int step, int count,
                         const int (&seen)[2], float unit, const Lane& lane) {
  tile::FragmentA slopes{};
#pragma unroll 1  // all loads at once need more registers than there are
  for (int n = 0; n < kStep / 8; ++n) {
    tile::FragmentC s{}, dp{};
    const int key = 8 * n + lane.g;
    const bf16* const row = k + static_cast<std::int64_t>(key) * step;
    RowPart<D> part;
    part.load(row, key < count, lane);
    multiply_rows<D>(s, state.q, part);
    part.load(row + to_values, key < count, lane);
    multiply_rows<D>(dp, state.d_o, part);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float p = tile::exp2_fast(s.x[i] * unit - state.lse[i / 2]);
      const float da = p * (dp.x[i] - state.delta[i / 2]);
      s.x[i] = 8 * n + 2 * lane.t + i % 2 < seen[i / 2] ? da : 0.0f;
    }
    const std::uint32_t low = tile::pack(s.x[0], s.x[1]), high = tile::pack(s.x[2], s.x[3]);
    slopes = n == 0 ? tile::FragmentA{{low, high, 0, 0}} : tile::FragmentA{{slopes.x[0], slopes.x[1], low, high}};
  }
  add_rows<D>(state.dq, slopes, k, step, count, lane);
}

// This lane's share of <a, b> of one row.
template <int D>
__device__ float dot_share(const RowPart<D>& a, const RowPart<D>& b) {
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < D / 32; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = tile::unpack(a.x[c][i]), y = tile::unpack(b.x[c][i]);
      sum += x.x * y.x + x.y * y.y;
    }
  }
  return sum;
}

template <int D>
__global__ void __launch_bounds__(kWarps* kWarp, 2) query_kernel(const BackwardArguments a) {
  const Lane lane;
  const Selection& selection = a.plan.selection;
  const int index = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  Bundle bundle(a.plan.row, selection, a.plan.T_count, index, static_cast<int>(blockIdx.y), lane);
  const auto *q = static_cast<const bf16*>(a.q), *k = static_cast<const bf16*>(a.k);
  const auto *v = static_cast<const bf16*>(a.v), *o = static_cast<const bf16*>(a.o);
  const auto* d_o = static_cast<const bf16*>(a.d_o);
  QueryState<D> state;
  const auto prepare = [&](int r, RowPart<D>& q_part, RowPart<D>& d_o_part) {
    const bool valid = bundle.valid(r);
    const std::int64_t row = bundle.row(r);
    q_part.load(q + row * D, valid, lane);
    d_o_part.load(d_o + row * D, valid, lane);
    RowPart<D> o_part;
    o_part.load(o + row * D, valid, lane);
    state.delta[r] = tile::reduce_quad<tile::Sum>(dot_share<D>(o_part, d_o_part));
    state.lse[r] = valid ? a.lse[row] * tile::kLog2e : INFINITY;
    if (valid && lane.t == 0) a.delta[row] = state.delta[r];
  };
  prepare(0, state.q.low, state.d_o.low);
  prepare(1, state.q.high, state.d_o.high);
  if (a.dq == nullptr) return;
#pragma unroll
  for (tile::FragmentC& c : state.dq) c = {};
  const int step = selection.H_KV * D, column = bundle.key_head(selection) * D;
  Bundle::Block block;
  while (bundle.next(block)) {
    for (int begin = 0; begin < block.most; begin += kStep) {
      const std::int64_t at = static_cast<std::int64_t>(block.key + begin) * step + column;
      const int seen[2] = {block.seen[0] - begin, block.seen[1] - begin};
      add_keys<D>(state, k + at, v - k, step, min(kStep, block.most - begin), seen, a.unit, lane);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (bundle.valid(r)) {
      store_row<D>(static_cast<bf16*>(a.dq) + bundle.row(r) * D, state.dq, r, a.scale, a.write_dq, lane);
    }
  }
}

// --- dk, dv --------------------------------------------------------------------------------------------------------

constexpr int kListRows = 64;  // of a stage
constexpr int kStages = 2;

template <int D>
struct KeyStage {
  static constexpr int kLead = D + 8;
  bf16 q[kListRows * kLead];
  bf16 d_o[kListRows * kLead];
  float lse[kListRows];
  float delta[kListRows];
  int keys[kListRows];  // of the tile that the row sees
};

// Starts the copies of a stage: rows [begin, begin + kListRows) of the list; those from w.last on are zero.
template <int D>
__device__ void fetch(const BackwardArguments& a, const KeyWork& w, std::int64_t begin, KeyStage<D>& stage) {
  constexpr int kPieces = D / 8;  // of 16 bytes in a row
  constexpr int kRowsAtOnce = kWarps * kWarp / kPieces;
  const auto *q = static_cast<const bf16*>(a.q), *d_o = static_cast<const bf16*>(a.d_o);
  const int piece = static_cast<int>(threadIdx.x) % kPieces;
  for (int r = static_cast<int>(threadIdx.x) / kPieces; r < kListRows; r += kRowsAtOnce) {
    const bool valid = begin + r < w.last;
    DevicePlan::Row row{0, 0};
    if (valid) row = a.plan.row_at(w.block, begin + r, w.kv_head);
    const std::int64_t from = row.row * D + piece * 8;
    tile::copy16_async(stage.q + r * stage.kLead + piece * 8, q + from, valid);
    tile::copy16_async(stage.d_o + r * stage.kLead + piece * 8, d_o + from, valid);
    if (piece == 0) {
      stage.lse[r] = valid ? a.lse[row.row] * tile::kLog2e : INFINITY;
      stage.delta[r] = valid ? a.delta[row.row] : 0.0f;
      stage.keys[r] = row.visible - w.visible_before;
    }
  }
}

// 16 rows from `row` on of [.., D] as the left operand, in the order of load_b_transposed; zero from `count` on.
template <int D>
__device__ void load_keys(tile::FragmentA (&x)[D / 16], const bf16* row, std::int64_t step, int count,
                          const Lane& lane) {
#pragma unroll
  for (int c = 0; c < D / 16; ++c) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = lane.g + i % 2 * 8;
      x[c].x[i] =
          r < count ? *reinterpret_cast<const std::uint32_t*>(row + r * step + 16 * c + 2 * lane.t + i / 2 * 8) : 0u;
    }
  }
}

template <int D>
struct KeyState {
  tile::FragmentA k[D / 16], v[D / 16];
  tile::FragmentC dk[D / 8], dv[D / 8];
};

// 16 rows of a stage against the warp's 16 keys, which begin `first_key` keys into the tile.
template <int D>
__device__ void add_list_rows(KeyState<D>& state, const KeyStage<D>& stage, int row, int first_key, float unit,
                              const Lane& lane) {
  const tile::SharedMatrix q(stage.q, stage.kLead), d_o(stage.d_o, stage.kLead);
  tile::FragmentC p[2] = {}, da[2] = {};
#pragma unroll
  for (int c = 0; c < D / 16; ++c) {
    tile::FragmentB b[2];
    tile::load_b_transposed(b, q, row, 16 * c);
    tile::mma(p[0], state.k[c], b[0]);
    tile::mma(p[1], state.k[c], b[1]);
    tile::load_b_transposed(b, d_o, row, 16 * c);
    tile::mma(da[0], state.v[c], b[0]);
    tile::mma(da[1], state.v[c], b[1]);
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int r = row + 8 * n + 2 * lane.t;
    const float2 lse = *reinterpret_cast<const float2*>(stage.lse + r);
    const float2 delta = *reinterpret_cast<const float2*>(stage.delta + r);
    const int2 keys = *reinterpret_cast<const int2*>(stage.keys + r);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool seen = first_key + lane.g + i / 2 * 8 < (i % 2 == 0 ? keys.x : keys.y);
      const float x = tile::exp2_fast(p[n].x[i] * unit - (i % 2 == 0 ? lse.x : lse.y));
      const float y = x * (da[n].x[i] - (i % 2 == 0 ? delta.x : delta.y));
      p[n].x[i] = seen ? x : 0.0f;
      da[n].x[i] = seen ? y : 0.0f;
    }
  }
  const tile::FragmentA weights = tile::as_operand(p[0], p[1]), slopes = tile::as_operand(da[0], da[1]);
#pragma unroll
  for (int c = 0; c < D / 16; ++c) {
    tile::FragmentB b[2];
    tile::load_b(b, d_o, row, 16 * c);
    tile::mma(state.dv[2 * c], weights, b[0]);
    tile::mma(state.dv[2 * c + 1], weights, b[1]);
    tile::load_b(b, q, row, 16 * c);
    tile::mma(state.dk[2 * c], slopes, b[0]);
    tile::mma(state.dk[2 * c + 1], slopes, b[1]);
  }
}

// Rows g and g + 8 of a sum of 16 keys, of which `count` are there.
template <int D>
__device__ void store_keys(const BackwardArguments& a, const KeyWork& w, const tile::FragmentC (&sum)[D / 8], int first,
                           float factor, void* target, Write write, int part_column, const Lane& lane) {
  if (target == nullptr) return;
  const std::int64_t step = static_cast<std::int64_t>(a.plan.selection.H_KV) * D;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int key = first + lane.g + 8 * r;
    if (key >= w.keys) continue;
    if (w.part >= 0) {
      float* const to = a.parts + (w.part * kKeyTile64 + key) * 2 * D + part_column;
#pragma unroll
      for (int c = 0; c < D / 8; ++c) {
        *reinterpret_cast<float2*>(to + 8 * c + 2 * lane.t) =
            make_float2(factor * sum[c].x[2 * r], factor * sum[c].x[2 * r + 1]);
      }
    } else {
      bf16* const to = static_cast<bf16*>(target) + (w.key + key) * step + static_cast<std::int64_t>(w.kv_head) * D;
#pragma unroll
      for (int c = 0; c < D / 8; ++c) {
        put_pair(to + 8 * c + 2 * lane.t, factor * sum[c].x[2 * r], factor * sum[c].x[2 * r + 1], write);
      }
    }
  }
}

template <int D>
__global__ void __launch_bounds__(kWarps* kWarp, 2) key_kernel(const BackwardArguments a) {
  extern __shared__ __align__(16) std::byte dynamic[];
  auto* const stages = reinterpret_cast<KeyStage<D>*>(dynamic);
  const Lane lane;
  const KeyWork w = key_work(a, static_cast<int>(blockIdx.x));
  if (!w.any) return;
  const int first = static_cast<int>(threadIdx.x) / kWarp * 16;
  const std::int64_t step = static_cast<std::int64_t>(a.plan.selection.H_KV) * D;
  const std::int64_t base = (w.key + first) * step + static_cast<std::int64_t>(w.kv_head) * D;
  KeyState<D> state;
  load_keys<D>(state.k, static_cast<const bf16*>(a.k) + base, step, w.keys - first, lane);
  load_keys<D>(state.v, static_cast<const bf16*>(a.v) + base, step, w.keys - first, lane);
#pragma unroll
  for (int c = 0; c < D / 8; ++c) state.dk[c] = state.dv[c] = {};
  fetch<D>(a, w, w.first, stages[0]);
  tile::commit_copies();
  int stage = 0;
  for (std::int64_t begin = w.first; begin < w.last; begin += kListRows) {
    if (begin + kListRows < w.last) fetch<D>(a, w, begin + kListRows, stages[stage ^ 1]);
    tile::commit_copies();
    tile::wait_copies<1>();
    __syncthreads();
    for (int row = 0; row < kListRows && begin + row < w.last; row += 16) {
      add_list_rows<D>(state, stages[stage], row, first, a.unit, lane);
    }
    __syncthreads();
    stage ^= 1;
  }
  tile::wait_copies<0>();
  store_keys<D>(a, w, state.dk, first, a.scale, a.dk, a.write_dk, 0, lane);
  store_keys<D>(a, w, state.dv, first, 1.0f, a.dv, a.write_dv, D, lane);
}

}  // namespace

void query_gradients_mma(const BackwardArguments& a, const Stream& stream) {
  const dim3 grid = Bundle::grid(a.plan.selection, a.plan.T_count, kWarps);
  dispatch_width(a.D, [&]<int D>() { query_kernel<D><<<grid, kWarps * kWarp, 0, cuda_stream(stream)>>>(a); });
  WEFT_CHECK_LAUNCH();
}

void key_gradients_mma(const BackwardArguments& a, dim3 grid, const Stream& stream) {
  dispatch_width(a.D, [&]<int D>() {
    constexpr std::size_t kBytes = kStages * sizeof(KeyStage<D>);
    WEFT_CUDA_CALL(
        cudaFuncSetAttribute(key_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)));
    key_kernel<D><<<grid, kWarps * kWarp, kBytes, cuda_stream(stream)>>>(a);
  });
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft::block_sparse
