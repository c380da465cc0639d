// Forward attention to chosen blocks on the tensor cores: a warp for a bundle of 16 rows, queries and the heads that
// share their lists. Keys and values go from L1 and L2 to registers; warps side by side hold neighbouring
// queries, which share blocks, so that many reads stay in L1.
#include "modules/families/block_sparse/block_sparse_mma.cuh"

namespace weft::block_sparse {
namespace {

constexpr int kWarps = 4;
constexpr int kStep = 32;  // keys at a time

struct ForwardMma {
  RowTables row;
  Selection selection;
  int T_count;
  float unit;  // logits in powers of 2
  const bf16 *q, *k, *v;
  bf16* o;
  float* lse;
};

// Online softmax of the rows g and g + 8; `mass` is this lane's share.
struct RunningSoftmax {
  float top[2] = {-INFINITY, -INFINITY};
  float mass[2] = {0.0f, 0.0f};
};

template <int D>
struct ForwardState {
  RowOperand<D> q;
  tile::FragmentC o[D / 8];
  RunningSoftmax softmax;
};

// The keys [0, count) from `k` on, at most kStep, of which the rows see the first seen[0] and seen[1].
template <int D>
__device__ void attend(ForwardState<D>& state, const bf16* k, const bf16* v, int step, int count, const int (&seen)[2],
                       float unit, const Lane& lane) {
  tile::FragmentC s[kStep / 8];
#pragma unroll
  for (int n = 0; n < kStep / 8; ++n) {
    s[n] = {};
    const int key = 8 * n + lane.g;
    RowPart<D> part;
    part.load(k + static_cast<std::int64_t>(key) * step, key < count, lane);
    multiply_rows<D>(s[n], state.q, part);
  }
  float after[2] = {state.softmax.top[0], state.softmax.top[1]};
#pragma unroll
  for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[n].x[i] = 8 * n + 2 * lane.t + i % 2 < seen[i / 2] ? s[n].x[i] * unit : -INFINITY;
      after[i / 2] = fmaxf(after[i / 2], s[n].x[i]);
    }
  }
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    after[r] = tile::reduce_quad<tile::Max>(after[r]);
    factor[r] = after[r] == state.softmax.top[r] ? 1.0f : tile::exp2_fast(state.softmax.top[r] - after[r]);
    state.softmax.mass[r] *= factor[r];
    state.softmax.top[r] = after[r];
    if (after[r] == -INFINITY) after[r] = 0.0f;
  }
  if (__any_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
    for (tile::FragmentC& c : state.o) {
#pragma unroll
      for (int i = 0; i < 4; ++i) c.x[i] *= factor[i / 2];
    }
  }
#pragma unroll
  for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[n].x[i] = tile::exp2_fast(s[n].x[i] - after[i / 2]);
      state.softmax.mass[i / 2] += s[n].x[i];
    }
  }
#pragma unroll
  for (int n = 0; n < kStep / 16; ++n) {
    if (16 * n >= count) break;
    add_rows<D>(state.o, tile::as_operand(s[2 * n], s[2 * n + 1]), v + static_cast<std::int64_t>(16 * n) * step, step,
                count - 16 * n, lane);
  }
}

template <int D>
__global__ void __launch_bounds__(kWarps* kWarp, 2) forward_kernel(const ForwardMma a) {
  const Lane lane;
  // Late queries see most keys: they go first.
  const int index = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  Bundle bundle(a.row, a.selection, a.T_count, index, static_cast<int>(blockIdx.y), lane);
  ForwardState<D> state;
  state.q.low.load(a.q + bundle.row(0) * D, bundle.valid(0), lane);
  state.q.high.load(a.q + bundle.row(1) * D, bundle.valid(1), lane);
#pragma unroll
  for (tile::FragmentC& c : state.o) c = {};
  const int step = a.selection.H_KV * D, column = bundle.key_head(a.selection) * D;
  Bundle::Block block;
  while (bundle.next(block)) {
    for (int begin = 0; begin < block.most; begin += kStep) {
      const std::int64_t at = static_cast<std::int64_t>(block.key + begin) * step + column;
      const int seen[2] = {block.seen[0] - begin, block.seen[1] - begin};
      attend<D>(state, a.k + at, a.v + at, step, min(kStep, block.most - begin), seen, a.unit, lane);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float mass = tile::reduce_quad<tile::Sum>(state.softmax.mass[r]);
    if (!bundle.valid(r)) continue;
    store_row<D>(a.o + bundle.row(r) * D, state.o, r, mass > 0.0f ? 1.0f / mass : 0.0f, Write::overwrite, lane);
    if (lane.t == 0) {
      a.lse[bundle.row(r)] = mass > 0.0f ? (state.softmax.top[r] + tile::log2_fast(mass)) * tile::kLn2 : -INFINITY;
    }
  }
}

}  // namespace

void forward_mma(const BlockSparseForward& args, const RowTables& row, const Selection& selection,
                 const Stream& stream) {
  const BlockSparseInputs& in = args.in;
  const ForwardMma a{.row = row,
                     .selection = selection,
                     .T_count = static_cast<int>(in.shape.T),
                     .unit = static_cast<float>(in.scale * tile::kLog2e),
                     .q = static_cast<const bf16*>(in.q),
                     .k = static_cast<const bf16*>(in.k),
                     .v = static_cast<const bf16*>(in.v),
                     .o = static_cast<bf16*>(args.o),
                     .lse = static_cast<float*>(args.lse)};
  const dim3 grid = Bundle::grid(selection, in.shape.T, kWarps);
  dispatch_width(in.shape.D, [&]<int D>() { forward_kernel<D><<<grid, kWarps * kWarp, 0, cuda_stream(stream)>>>(a); });
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft::block_sparse
