// Attention to all visible spans on Hopper: both products by wgmma. The logits of the next tile and the sum of values
// of the last one are computed while the softmax of this one runs.
#include "modules/families/block_sparse/span_hopper.cuh"

namespace weft::block_sparse {
namespace {

constexpr int kKeys = 64;  // of a tile
constexpr int kStages = 3;

template <int D>
struct SpanMemory {
  tile::SharedTile<64, D> q[kSpanWarpgroups];
  tile::SharedTile<kKeys, D> k[kStages], v[kStages];
};

struct SpanForward {
  RowTables keys, tiles;
  int H_Q, H_KV, G;
  float unit;
  const bf16 *q, *k, *v;
  bf16* o;
  float* lse;
};

// Rows of one thread: row(thread, 0) and 8 below it.
struct SpanSoftmax {
  float top[2] = {-INFINITY, -INFINITY};
  float mass[2] = {0.0f, 0.0f};  // this thread's columns
};

// Logits become 2^(logit - top); those of unseen keys 0. Earlier sums are to be multiplied by `factor`.
__device__ void soften(tile::Accumulator<kKeys>& s, SpanSoftmax& softmax, float (&factor)[2], const int (&seen)[2],
                       float unit) {
  const int thread = static_cast<int>(threadIdx.x) % tile::kWarpgroup;
  float after[2] = {softmax.top[0], softmax.top[1]};
#pragma unroll
  for (int i = 0; i < s.kSize; ++i) {
    const int r = i / 2 % 2;
    s.x[i] = s.column(thread, i) < seen[r] ? s.x[i] * unit : -INFINITY;
    after[r] = fmaxf(after[r], s.x[i]);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    after[r] = tile::reduce_quad<tile::Max>(after[r]);
    factor[r] = after[r] == softmax.top[r] ? 1.0f : tile::exp2_fast(softmax.top[r] - after[r]);
    softmax.mass[r] *= factor[r];
    softmax.top[r] = after[r];
    if (after[r] == -INFINITY) after[r] = 0.0f;
  }
#pragma unroll
  for (int i = 0; i < s.kSize; ++i) {
    const int r = i / 2 % 2;
    s.x[i] = tile::exp2_fast(s.x[i] - after[r]);
    softmax.mass[r] += s.x[i];
  }
}

template <int D>
__global__ void __launch_bounds__(kSpanThreads, 1) span_forward_kernel(const SpanForward a) {
  extern __shared__ __align__(1024) std::byte dynamic[];
  auto& shared = *reinterpret_cast<SpanMemory<D>*>(dynamic);
  const int thread = static_cast<int>(threadIdx.x), group = thread / tile::kWarpgroup;
  const int own = thread % tile::kWarpgroup;
  // Late queries see most keys: they go first.
  const SpanTile t = span_tile(a.keys, a.tiles, a.G, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  if (!t.any) return;
  const int kv_head = static_cast<int>(blockIdx.y), first_head = kv_head * a.G;
  const std::int64_t step = static_cast<std::int64_t>(a.H_KV) * D;
  const std::int64_t base = (static_cast<std::int64_t>(t.key_row) * a.H_KV + kv_head) * D;
  const auto fetch = [&](int first, int stage) {
    fetch_keys(shared.k[stage], a.k + base, step, first, t.keys);
    fetch_keys(shared.v[stage], a.v + base, step, first, t.keys);
  };
  fetch_queries<D>(shared.q, a.q, t, a.H_Q, first_head);
  fetch(0, 0);
  tile::commit_copies();
  const int rows[2] = {group * 64 + tile::Accumulator<D>::row(own, 0), group * 64 + tile::Accumulator<D>::row(own, 2)};
  const int seen[2] = {t.seen(a.keys.span, rows[0]), t.seen(a.keys.span, rows[1])};
  const int count = (t.keys + kKeys - 1) / kKeys;
  if (count > 1) fetch(kKeys, 1);
  tile::commit_copies();
  tile::Accumulator<D> o;
  o.fill(0.0f);
  SpanSoftmax softmax;
  tile::Accumulator<kKeys> s;
  tile::RegisterOperand<kKeys> p;
  float factor[2];
  const auto logits = [&](int i) {
    tile::multiply(s, tile::along_columns(shared.q[group]), tile::along_columns(shared.k[i % kStages]), false);
    tile::wgmma_commit();
  };
  const auto values = [&](int i) {
    tile::multiply(o, p, tile::along_rows(shared.v[i % kStages]), true);
    tile::wgmma_commit();
  };
  const auto soften_tile = [&](int i) {
    const int here[2] = {seen[0] - i * kKeys, seen[1] - i * kKeys};
    soften(s, softmax, factor, here, a.unit);
  };
  if (count > 0) {
    tile::wait_copies<1>();
    tile::fence_async_shared();
    __syncthreads();
    tile::wgmma_fence(s);
    logits(0);
    tile::wgmma_wait<0>();
    tile::wgmma_fence(s);
    soften_tile(0);
    tile::round_to_operand(p, s);
  }
  for (int i = 0; i + 1 < count; ++i) {
    tile::wait_copies<0>();
    tile::fence_async_shared();
    __syncthreads();
    // In the place of tile i - 1, which everybody has left.
    if (i + 2 < count) fetch((i + 2) * kKeys, (i + 2) % kStages);
    tile::commit_copies();
    tile::wgmma_fence(s, o, p);
    logits(i + 1);
    values(i);
    tile::wgmma_wait<1>();
    tile::wgmma_fence(s);
    soften_tile(i + 1);
    tile::wgmma_wait<0>();
    tile::wgmma_fence(o, p);
#pragma unroll
    for (int x = 0; x < o.kSize; ++x) o.x[x] *= factor[x / 2 % 2];
    tile::round_to_operand(p, s);
  }
  if (count > 0) {
    tile::wgmma_fence(o, p);
    values(count - 1);
    tile::wgmma_wait<0>();
    tile::wgmma_fence(o);
  }
  tile::wait_copies<0>();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float mass = tile::reduce_quad<tile::Sum>(softmax.mass[r]);
    const float inverse = mass > 0.0f ? 1.0f / mass : 0.0f;
#pragma unroll
    for (int i = 0; i < o.kSize; ++i) {
      if (i / 2 % 2 == r) o.x[i] *= inverse;
    }
    if (own % 4 == 0 && t.valid(rows[r])) {
      a.lse[t.row(a.H_Q, first_head, rows[r])] =
          mass > 0.0f ? (softmax.top[r] + tile::log2_fast(mass)) * tile::kLn2 : -INFINITY;
    }
  }
  // Through the queries' place, so that rows leave in whole pieces of 16 bytes.
  __syncthreads();
  tile::store_rounded(o, shared.q[group], 0, 0, own);
  __syncthreads();
  constexpr int kChunks = D / 8;
  for (int i = thread; i < kSpanRows * kChunks; i += kSpanThreads) {
    const int r = i / kChunks, c = i % kChunks * 8;
    if (t.valid(r)) tile::store16(a.o + t.row(a.H_Q, first_head, r) * D + c, shared.q[r / 64].chunk(r % 64, c));
  }
}

}  // namespace

void span_forward_hopper(const BlockSparseForward& args, const RowTables& keys, const RowTables& tiles,
                         const Stream& stream) {
  const BlockSparseInputs& in = args.in;
  const int G = static_cast<int>(in.shape.H_Q / in.shape.H_KV);
  const SpanForward a{.keys = keys,
                      .tiles = tiles,
                      .H_Q = static_cast<int>(in.shape.H_Q),
                      .H_KV = static_cast<int>(in.shape.H_KV),
                      .G = G,
                      .unit = static_cast<float>(in.scale * tile::kLog2e),
                      .q = static_cast<const bf16*>(in.q),
                      .k = static_cast<const bf16*>(in.k),
                      .v = static_cast<const bf16*>(in.v),
                      .o = static_cast<bf16*>(args.o),
                      .lse = static_cast<float*>(args.lse)};
  const dim3 grid(static_cast<unsigned>(most_blocks(in.shape.T, in.N, kSpanRows / G)),
                  static_cast<unsigned>(in.shape.H_KV));
  dispatch_width(in.shape.D, [&]<int D>() {
    constexpr std::size_t kBytes = sizeof(SpanMemory<D>);
    WEFT_CUDA_CALL(cudaFuncSetAttribute(span_forward_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(kBytes)));
    span_forward_kernel<D><<<grid, kSpanThreads, kBytes, cuda_stream(stream)>>>(a);
  });
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft::block_sparse
