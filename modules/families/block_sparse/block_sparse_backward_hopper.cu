// dk and dv on Hopper: a warpgroup for 64 keys, whose products go to wgmma. The rows of the list are gathered into
// shared memory 64 at a time, one tile ahead of the products; where they lie is found two tiles ahead.
#include "modules/families/block_sparse/block_sparse_backward_device.cuh"
#include "modules/families/block_sparse/span_hopper.cuh"

namespace weft::block_sparse {
namespace {

constexpr int kThreads = tile::kWarpgroup;
constexpr int kListRows = 64;  // of a tile

template <int D>
struct ListTile {
  tile::SharedTile<kListRows, D> q, d_o;
};
// What a row of the list brings along.
struct ListRows {
  float lse[kListRows], delta[kListRows];
  int seen[kListRows];  // keys of the tile that it sees
};
template <int D>
struct KeyMemory {
  tile::SharedTile<kKeyTile64, D> k, v;
  ListTile<D> tiles[2];
  ListRows rows[2];
  int row[2][kListRows];  // query rows of the next tiles, or -1
  int seen[2][kListRows];
};

// The accumulator as [64 keys x 64 rows]: logits and <v, d_o> become p and da.
__device__ inline void find_slopes(tile::Accumulator<kListRows>& s, tile::Accumulator<kListRows>& dp,
                                   const ListRows& rows, float unit) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int n = 0; n < kListRows / 8; ++n) {
    const int column = s.column(thread, 4 * n);
    const float2 lse = *reinterpret_cast<const float2*>(rows.lse + column);
    const float2 delta = *reinterpret_cast<const float2*>(rows.delta + column);
    const int2 seen = *reinterpret_cast<const int2*>(rows.seen + column);
#pragma unroll
    for (int i = 4 * n; i < 4 * n + 4; ++i) {
      const bool there = s.row(thread, i) < (i % 2 == 0 ? seen.x : seen.y);
      const float p = tile::exp2_fast(s.x[i] * unit - (i % 2 == 0 ? lse.x : lse.y));
      dp.x[i] = there ? p * (dp.x[i] - (i % 2 == 0 ? delta.x : delta.y)) : 0.0f;
      s.x[i] = there ? p : 0.0f;
    }
  }
}

template <int D>
__device__ void store_sums(const BackwardArguments& a, const KeyWork& w, const tile::Accumulator<D>& sum, float factor,
                           void* target, Write write, int part_column) {
  if (target == nullptr) return;
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < sum.kSize; i += 2) {
    const int key = sum.row(thread, i), c = sum.column(thread, i);
    if (key >= w.keys) continue;
    if (w.part >= 0) {
      float* const to = a.parts + (w.part * kKeyTile64 + key) * 2 * D + part_column + c;
      *reinterpret_cast<float2*>(to) = make_float2(factor * sum.x[i], factor * sum.x[i + 1]);
    } else {
      const std::int64_t row = (w.key + key) * a.plan.selection.H_KV + w.kv_head;
      put_pair(static_cast<bf16*>(target) + row * D + c, factor * sum.x[i], factor * sum.x[i + 1], write);
    }
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 2) key_kernel_hopper(const BackwardArguments a) {
  extern __shared__ __align__(1024) std::byte dynamic[];
  auto& shared = *reinterpret_cast<KeyMemory<D>*>(dynamic);
  constexpr int kChunks = D / 8;
  const int thread = static_cast<int>(threadIdx.x);
  const KeyWork w = key_work(a, static_cast<int>(blockIdx.x));
  if (!w.any) return;
  const auto *q = static_cast<const bf16*>(a.q), *d_o = static_cast<const bf16*>(a.d_o);
  const auto count = static_cast<int>((w.last - w.first + kListRows - 1) / kListRows);

  const auto find_rows = [&](int i) {  // by the first threads
    if (thread >= kListRows) return;
    const std::int64_t at = w.first + static_cast<std::int64_t>(i) * kListRows + thread;
    const bool valid = at < w.last;
    DevicePlan::Row row{-1, 0};
    if (valid) row = a.plan.row_at(w.block, at, w.kv_head);
    shared.row[i % 2][thread] = static_cast<int>(row.row);
    shared.seen[i % 2][thread] = row.visible - w.visible_before;
  };
  const auto fetch = [&](int i) {
    ListTile<D>& to = shared.tiles[i % 2];
#pragma unroll
    for (int x = thread; x < kListRows * kChunks; x += kThreads) {
      const int r = x / kChunks, c = x % kChunks * 8, row = shared.row[i % 2][r];
      const std::int64_t from = row < 0 ? 0 : static_cast<std::int64_t>(row) * D + c;
      tile::copy16_async(&to.q.chunk(r, c), q + from, row >= 0);
      tile::copy16_async(&to.d_o.chunk(r, c), d_o + from, row >= 0);
    }
  };
  struct OwnRow {
    float lse = INFINITY, delta = 0.0f;
    int seen = 0;
  };
  const auto read_own = [&](int i) {
    OwnRow own;
    if (thread >= kListRows) return own;
    const int row = shared.row[i % 2][thread];
    own.seen = shared.seen[i % 2][thread];
    if (row >= 0) own.lse = a.lse[row] * tile::kLog2e, own.delta = a.delta[row];
    return own;
  };
  const auto share_own = [&](int i, const OwnRow& own) {
    if (thread >= kListRows) return;
    shared.rows[i % 2].lse[thread] = own.lse;
    shared.rows[i % 2].delta[thread] = own.delta;
    shared.rows[i % 2].seen[thread] = own.seen;
  };

  const std::int64_t step = static_cast<std::int64_t>(a.plan.selection.H_KV) * D;
  const std::int64_t base = w.key * step + static_cast<std::int64_t>(w.kv_head) * D;
#pragma unroll
  for (int x = thread; x < kKeyTile64 * kChunks; x += kThreads) {
    const int r = x / kChunks, c = x % kChunks * 8;
    const std::int64_t from = base + (r < w.keys ? r * step + c : 0);
    tile::copy16_async(&shared.k.chunk(r, c), static_cast<const bf16*>(a.k) + from, r < w.keys);
    tile::copy16_async(&shared.v.chunk(r, c), static_cast<const bf16*>(a.v) + from, r < w.keys);
  }
  tile::Accumulator<D> dk, dv;
  dk.fill(0.0f);
  dv.fill(0.0f);
  find_rows(0);
  find_rows(1);
  __syncthreads();
  fetch(0);
  tile::commit_copies();
  share_own(0, read_own(0));
  for (int i = 0; i < count; ++i) {
    tile::wait_copies<0>();
    tile::fence_async_shared();
    __syncthreads();
    OwnRow own;
    if (i + 1 < count) {
      fetch(i + 1);
      own = read_own(i + 1);
    }
    tile::commit_copies();
    const ListTile<D>& list = shared.tiles[i % 2];
    tile::Accumulator<kListRows> s, dp;
    tile::wgmma_fence(s, dp);
    tile::multiply(s, tile::along_columns(shared.k), tile::along_columns(list.q), false);
    tile::multiply(dp, tile::along_columns(shared.v), tile::along_columns(list.d_o), false);
    tile::wgmma_commit();
    find_rows(i + 2);  // the place of tile i, whose copies have been made
    share_own(i + 1, own);
    tile::wgmma_wait<0>();
    tile::wgmma_fence(s, dp);
    find_slopes(s, dp, shared.rows[i % 2], a.unit);
    tile::RegisterOperand<kListRows> p, slopes;
    tile::round_to_operand(p, s);
    tile::round_to_operand(slopes, dp);
    tile::wgmma_fence(dv, dk, p, slopes);
    tile::multiply(dv, p, tile::along_rows(list.d_o), true);
    tile::multiply(dk, slopes, tile::along_rows(list.q), true);
    tile::wgmma_commit();
    tile::wgmma_wait<0>();
    tile::wgmma_fence(dv, dk);
  }
  tile::wait_copies<0>();
  store_sums<D>(a, w, dk, a.scale, a.dk, a.write_dk, 0);
  store_sums<D>(a, w, dv, 1.0f, a.dv, a.write_dv, D);
}

}  // namespace

void key_gradients_hopper(const BackwardArguments& a, dim3 grid, const Stream& stream) {
  dispatch_width(a.D, [&]<int D>() {
    constexpr std::size_t kBytes = sizeof(KeyMemory<D>);
    WEFT_CUDA_CALL(cudaFuncSetAttribute(key_kernel_hopper<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(kBytes)));
    key_kernel_hopper<D><<<grid, kThreads, kBytes, cuda_stream(stream)>>>(a);
  });
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft::block_sparse
