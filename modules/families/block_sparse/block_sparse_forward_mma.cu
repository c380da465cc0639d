// Forward attention to chosen blocks on the tensor cores: a warp for each query and up to 16 heads of its group, which
// are the rows of all products. Keys and values go from L1 and L2 to registers; warps side by side hold neighbouring
// queries, which share blocks, so that many reads stay in L1.
#include "modules/families/block_sparse/block_sparse_mma.cuh"

namespace weft::block_sparse {
namespace {

constexpr int kWarps = 4;
constexpr int kRows = 16;  // heads of a warp
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

// The keys [0, count) from `k` on, at most kStep.
template <int D>
__device__ void attend(ForwardState<D>& state, const bf16* k, const bf16* v, int step, int count, float unit,
                       const Lane& lane) {
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
      const int key = 8 * n + 2 * lane.t + i % 2;
      s[n].x[i] = key < count ? s[n].x[i] * unit : -INFINITY;
      after[i / 2] = fmaxf(after[i / 2], s[n].x[i]);
    }
  }
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    after[r] = tile::reduce_quad<tile::Max>(after[r]);
    factor[r] = tile::exp2_fast(state.softmax.top[r] - after[r]);
    state.softmax.mass[r] *= factor[r];
    state.softmax.top[r] = after[r];
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
    add_rows<D>(state.o, tile::as_operand(s[2 * n], s[2 * n + 1]), v + 16 * n * step, step, count - 16 * n, lane);
  }
}

template <int D>
__global__ void __launch_bounds__(kWarps* kWarp, 2) forward_kernel(const ForwardMma a) {
  const Lane lane;
  // Late queries see most keys: they go first.
  const int token = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  if (token >= a.T_count) return;
  const int G = a.selection.rows_of_entry(), H_Q = a.selection.H_Q, H_KV = a.selection.H_KV;
  const int tiles = (G + kRows - 1) / kRows;
  const int first_head = static_cast<int>(blockIdx.y) / tiles * G + static_cast<int>(blockIdx.y) % tiles * kRows;
  const int heads = min(kRows, G - static_cast<int>(blockIdx.y) % tiles * kRows);
  const int kv_head = first_head / a.selection.heads_of_group();
  const QueryPlace place = place_of(a.row, token);
  const std::int64_t row = static_cast<std::int64_t>(token) * H_Q + first_head;
  ForwardState<D> state;
  state.q.low.load(a.q + (row + lane.g) * D, lane.g < heads, lane);
  state.q.high.load(a.q + (row + lane.g + 8) * D, lane.g + 8 < heads, lane);
#pragma unroll
  for (tile::FragmentC& c : state.o) c = {};
  const int step = H_KV * D;
  const std::int64_t base = (static_cast<std::int64_t>(place.key_row) * H_KV + kv_head) * D;
  const Choices choices = a.selection.of(token, first_head, place.visible);
  for (int slot = 0; slot < choices.slots(); ++slot) {
    const int first = choices.first(slot), last = choices.last(first);
    for (int key = first; key < last; key += kStep) {
      const std::int64_t at = base + static_cast<std::int64_t>(key) * step;
      attend<D>(state, a.k + at, a.v + at, step, min(kStep, last - key), a.unit, lane);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float mass = tile::reduce_quad<tile::Sum>(state.softmax.mass[r]);
    const int head = lane.g + 8 * r;
    if (head >= heads) continue;
    store_row<D>(a.o + (row + head) * D, state.o, r, mass > 0.0f ? 1.0f / mass : 0.0f, Write::overwrite, lane);
    if (lane.t == 0) {
      a.lse[row + head] = mass > 0.0f ? (state.softmax.top[r] + tile::log2_fast(mass)) * tile::kLn2 : -INFINITY;
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
  const int G = selection.rows_of_entry();
  const dim3 grid(blocks_for(in.shape.T, kWarps), static_cast<unsigned>(selection.H_Q / G * ((G + kRows - 1) / kRows)));
  dispatch_width(in.shape.D, [&]<int D>() { forward_kernel<D><<<grid, kWarps * kWarp, 0, cuda_stream(stream)>>>(a); });
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft::block_sparse
