#include <algorithm>
#include <cmath>

#include "modules/families/attention/attention_hopper.cuh"
#include "modules/families/attention/attention_portable.cuh"
#include "modules/families/attention/portable_tiles.cuh"

namespace weft::attention_cuda {
namespace {

constexpr int kParts = static_cast<int>(kWidest) / 32;  // channels of a lane

template <class T>
__device__ inline void put(T* to, float value, Write write) {
  *to = from_float<T>(write == Write::accumulate ? to_float(*to) + value : value);
}

// Rows [32 half, 32 half + 32) of a tile of 64.
__device__ inline AttentionQueryTile half_of(AttentionQueryTile t, int half) {
  t.row += half * kTileRows;
  t.position += half * kTileRows;
  t.count = min(t.count - half * kTileRows, kTileRows);
  return t;
}

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    forward(const AttentionQueryTile* tiles, int H_Q, int H_KV, int D, int D_V, ScoreArgs s, const T* q, const T* k,
            const T* v, const float* sink_logit, T* o, float* lse) {
  extern __shared__ float memory[];
  const int ld = leading(D);
  float *const qs = memory, *const ks = qs + kTileRows * ld, *const vs = ks + kTileRows * ld;
  const AttentionQueryTile t = half_of(tiles[blockIdx.x], blockIdx.z);
  if (t.count <= 0) return;
  const int head = blockIdx.y, kv_head = head / (H_Q / H_KV);
  const int lane = threadIdx.x % 32, own = threadIdx.x / 32 * kOwn;
  const auto at = [&](int row) { return (static_cast<std::int64_t>(t.row) + row) * H_Q + head; };
  stage(qs, q + at(0) * D, static_cast<std::int64_t>(H_Q) * D, D, t.count);

  PortableSoftmax<kParts> softmax;
  softmax.start(sink_logit == nullptr ? -INFINITY : sink_logit[head]);
  const KeyWalk<kTileRows> walk(t, s.sight);
  for (int i = 0; i < walk.count(); ++i) {
    const KeyVisit visit = walk.visit(i, t, s.sight);
    __syncthreads();
    const std::int64_t key = static_cast<std::int64_t>(visit.row) * H_KV + kv_head;
    stage(ks, k + key * D, static_cast<std::int64_t>(H_KV) * D, D, visit.count);
    stage(vs, v + key * D_V, static_cast<std::int64_t>(H_KV) * D_V, D_V, visit.count);
    __syncthreads();
    float p[kOwn];
    products(p, qs, ks, D);
    softmax.add(p, vs, D_V, s,
                [&](int r) { return lane < visit.count && s.sight.sees(t.position + own + r, visit.position + lane); });
  }
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    if (own + r >= t.count) continue;
    const float inverse = softmax.inverse(r);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int c = part * 32 + lane;
      if (c < D_V) o[at(own + r) * D_V + c] = from_float<T>(softmax.sum[r][part] * inverse);
    }
    if (lane == 0) lse[at(own + r)] = softmax.lse(r);
  }
}

// p and dz of one pair, from its two products.
struct Pair {
  float p, dz;
};
__device__ inline Pair pair(bool seen, float product, float dp, float lse, float delta, const ScoreArgs& s) {
  if (!seen) return {0.0f, 0.0f};
  const float a = score(product, s);
  const float p = expf(a - lse);
  const float ratio = s.cap > 0.0f ? a / s.cap : 0.0f;
  return {p, s.scale * p * (dp - delta) * (1.0f - ratio * ratio)};
}

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    query_gradient(const AttentionQueryTile* tiles, int H_Q, int H_KV, int D, int D_V, ScoreArgs s, const T* q,
                   const T* k, const T* v, const T* d_o, const float* lse, const float* delta, T* dq, Write write) {
  extern __shared__ float memory[];
  const int ld = leading(D), ld_v = leading(D_V);
  float *const qs = memory, *const ks = qs + kTileRows * ld, *const gs = ks + kTileRows * ld,
               *const vs = gs + kTileRows * ld_v;
  const AttentionQueryTile t = half_of(tiles[blockIdx.x], blockIdx.z);
  if (t.count <= 0) return;
  const int head = blockIdx.y, kv_head = head / (H_Q / H_KV);
  const int lane = threadIdx.x % 32, own = threadIdx.x / 32 * kOwn;
  const auto at = [&](int row) { return (static_cast<std::int64_t>(t.row) + row) * H_Q + head; };
  stage(qs, q + at(0) * D, static_cast<std::int64_t>(H_Q) * D, D, t.count);
  stage(gs, d_o + at(0) * D_V, static_cast<std::int64_t>(H_Q) * D_V, D_V, t.count);
  float row_lse[kOwn], row_delta[kOwn], sum[kOwn][kParts] = {};
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    const bool valid = own + r < t.count;
    row_lse[r] = valid ? lse[at(own + r)] : 0.0f;
    row_delta[r] = valid ? delta[at(own + r)] : 0.0f;
  }
  const KeyWalk<kTileRows> walk(t, s.sight);
  for (int i = 0; i < walk.count(); ++i) {
    const KeyVisit visit = walk.visit(i, t, s.sight);
    __syncthreads();
    const std::int64_t key = static_cast<std::int64_t>(visit.row) * H_KV + kv_head;
    stage(ks, k + key * D, static_cast<std::int64_t>(H_KV) * D, D, visit.count);
    stage(vs, v + key * D_V, static_cast<std::int64_t>(H_KV) * D_V, D_V, visit.count);
    __syncthreads();
    float x[kOwn], dp[kOwn];
    products(x, qs, ks, D);
    products(dp, gs, vs, D_V);
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      const bool seen =
          own + r < t.count && lane < visit.count && s.sight.sees(t.position + own + r, visit.position + lane);
      x[r] = pair(seen, x[r], dp[r], row_lse[r], row_delta[r], s).dz;
    }
    accumulate(sum, x, ks, D);
  }
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    if (own + r >= t.count) continue;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int c = part * 32 + lane;
      if (c < D) put(dq + at(own + r) * D + c, sum[r][part], write);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    key_gradient(const AttentionKeyTile* key_tiles, const AttentionQueryTile* query_tiles, int H_Q, int H_KV, int D,
                 int D_V, ScoreArgs s, const T* q, const T* k, const T* v, const T* d_o, const float* lse,
                 const float* delta, T* dk, Write write_dk, T* dv, Write write_dv) {
  extern __shared__ float memory[];
  const int ld = leading(D), ld_v = leading(D_V);
  float *const qs = memory, *const ks = qs + kTileRows * ld, *const gs = ks + kTileRows * ld,
               *const vs = gs + kTileRows * ld_v;
  AttentionKeyTile t = key_tiles[blockIdx.x];
  const int first = static_cast<int>(blockIdx.z) * kTileRows;
  t.row += first;
  t.position += first;
  t.count = min(t.count - first, kTileRows);
  if (t.count <= 0) return;
  const int kv_head = blockIdx.y, G = H_Q / H_KV;
  const int lane = threadIdx.x % 32, own = threadIdx.x / 32 * kOwn;
  const auto at = [&](int row) { return (static_cast<std::int64_t>(t.row) + row) * H_KV + kv_head; };
  stage(ks, k + at(0) * D, static_cast<std::int64_t>(H_KV) * D, D, t.count);
  stage(vs, v + at(0) * D_V, static_cast<std::int64_t>(H_KV) * D_V, D_V, t.count);
  float sum_k[kOwn][kParts] = {}, sum_v[kOwn][kParts] = {};
  const bool pinned = t.anchor != 0 || t.position < s.sight.sinks;
  const int from = t.anchor != 0 ? 0 : max(0, t.position - t.query_position) / kBackwardRows;
  for (int i = from; i < t.query_tiles; ++i) {
    const AttentionQueryTile whole = query_tiles[t.query_tile + i];
    if (!pinned && whole.position - (t.position + t.count - 1) >= s.sight.window) break;
    for (int half = 0; half < kBackwardRows / kTileRows; ++half) {
      const AttentionQueryTile queries = half_of(whole, half);
      if (queries.count <= 0) continue;
      const bool valid = lane < queries.count;
      for (int g = 0; g < G; ++g) {
        const std::int64_t row = static_cast<std::int64_t>(queries.row) * H_Q + kv_head * G + g;
        __syncthreads();
        stage(qs, q + row * D, static_cast<std::int64_t>(H_Q) * D, D, queries.count);
        stage(gs, d_o + row * D_V, static_cast<std::int64_t>(H_Q) * D_V, D_V, queries.count);
        __syncthreads();
        const float row_lse = valid ? lse[row + static_cast<std::int64_t>(lane) * H_Q] : 0.0f;
        const float row_delta = valid ? delta[row + static_cast<std::int64_t>(lane) * H_Q] : 0.0f;
        float x[kOwn], dp[kOwn];
        products(x, ks, qs, D);
        products(dp, vs, gs, D_V);
#pragma unroll
        for (int r = 0; r < kOwn; ++r) {
          const bool seen = valid && own + r < t.count &&
                            (t.anchor != 0 || s.sight.sees(queries.position + lane, t.position + own + r));
          const Pair both = pair(seen, x[r], dp[r], row_lse, row_delta, s);
          x[r] = both.dz;
          dp[r] = both.p;
        }
        accumulate(sum_k, x, qs, D);
        accumulate(sum_v, dp, gs, D_V);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    if (own + r >= t.count) continue;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int c = part * 32 + lane;
      if (dk != nullptr && c < D) put(dk + at(own + r) * D + c, sum_k[r][part], write_dk);
      if (dv != nullptr && c < D_V) put(dv + at(own + r) * D_V + c, sum_v[r][part], write_dv);
    }
  }
}

constexpr int kDeltaThreads = 256;

// One warp a row.
template <class T>
__global__ void __launch_bounds__(kDeltaThreads)
    delta_rows(std::int64_t rows, int D_V, const T* o, const T* d_o, const float* dlse, float* delta) {
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * kDeltaThreads + threadIdx.x) / 32;
  if (row >= rows) return;
  float sum = 0.0f;
  for (int c = threadIdx.x % 32; c < D_V; c += 32) {
    sum += to_float(o[row * D_V + c]) * to_float(d_o[row * D_V + c]);
  }
  sum = tile::reduce_lanes<tile::Sum>(sum);
  if (threadIdx.x % 32 == 0) delta[row] = dlse == nullptr ? sum : sum - dlse[row];
}

constexpr int kSinkThreads = 1024;

// One block a head.
__global__ void __launch_bounds__(kSinkThreads)
    sink_gradient(std::int64_t T, int H_Q, const float* sink_logit, const float* lse, const float* delta, float* dsink,
                  Write write) {
  __shared__ float scratch[kSinkThreads / 32];
  const int h = blockIdx.x;
  float sum = 0.0f;
  for (std::int64_t t = threadIdx.x; t < T; t += kSinkThreads) {
    const float share = sink_logit[h] == -INFINITY ? 0.0f : expf(sink_logit[h] - lse[t * H_Q + h]);
    sum -= share * delta[t * H_Q + h];
  }
  sum = tile::reduce_block<tile::Sum, kSinkThreads>(sum, scratch);
  if (threadIdx.x == 0) put(dsink + h, sum, write);
}

template <class Kernel>
void allow_shared(Kernel* kernel, std::size_t bytes) {
  WEFT_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

}  // namespace

ScoreArgs score_args(const AttentionShape& shape, const AttentionOptions& options) {
  return {Sight(options), static_cast<float>(logit_scale(shape, options)), static_cast<float>(options.soft_cap)};
}

void attention_forward_portable(const AttentionForward& a, const AttentionQueryTile* short_tiles, cudaStream_t stream) {
  const int H_Q = static_cast<int>(a.shape.H_Q), H_KV = static_cast<int>(a.shape.H_KV);
  const int D = static_cast<int>(a.shape.D), D_V = static_cast<int>(a.shape.D_V);
  const std::size_t bytes = static_cast<std::size_t>(kTileRows * (2 * leading(D) + leading(D_V))) * sizeof(float);
  dispatch_cuda(a.dtype, "attention", [&]<class T>() {
    allow_shared(&forward<T>, bytes);
    const dim3 grid(static_cast<unsigned>(a.row.short_tiles.count), static_cast<unsigned>(H_Q),
                    kBackwardRows / kTileRows);
    forward<T><<<grid, kTileThreads, bytes, stream>>>(
        short_tiles, H_Q, H_KV, D, D_V, score_args(a.shape, a.options), static_cast<const T*>(a.q),
        static_cast<const T*>(a.k), static_cast<const T*>(a.v), static_cast<const float*>(a.sink_logit),
        static_cast<T*>(a.o), static_cast<float*>(a.lse));
  });
  WEFT_CHECK_LAUNCH();
}

void attention_delta(const AttentionBackward& a, float* delta, cudaStream_t stream) {
  const std::int64_t rows = a.shape.T * a.shape.H_Q;
  const auto blocks = static_cast<unsigned>((rows * 32 + kDeltaThreads - 1) / kDeltaThreads);
  dispatch_cuda(a.dtype, "attention", [&]<class T>() {
    delta_rows<T><<<blocks, kDeltaThreads, 0, stream>>>(rows, static_cast<int>(a.shape.D_V), static_cast<const T*>(a.o),
                                                        static_cast<const T*>(a.d_o), static_cast<const float*>(a.dlse),
                                                        delta);
  });
  WEFT_CHECK_LAUNCH();
}

void attention_sink_gradient(const AttentionBackward& a, const float* delta, cudaStream_t stream) {
  sink_gradient<<<static_cast<unsigned>(a.shape.H_Q), kSinkThreads, 0, stream>>>(
      a.shape.T, static_cast<int>(a.shape.H_Q), static_cast<const float*>(a.sink_logit),
      static_cast<const float*>(a.lse), delta, static_cast<float*>(a.dsink_logit), a.write_dsink_logit);
  WEFT_CHECK_LAUNCH();
}

void attention_backward_portable(const AttentionBackward& a, const AttentionQueryTile* short_tiles,
                                 const AttentionKeyTile* key_tiles, const float* delta, cudaStream_t stream) {
  const int H_Q = static_cast<int>(a.shape.H_Q), H_KV = static_cast<int>(a.shape.H_KV);
  const int D = static_cast<int>(a.shape.D), D_V = static_cast<int>(a.shape.D_V);
  const std::size_t bytes = static_cast<std::size_t>(kTileRows * 2 * (leading(D) + leading(D_V))) * sizeof(float);
  const ScoreArgs s = score_args(a.shape, a.options);
  dispatch_cuda(a.dtype, "attention", [&]<class T>() {
    const auto* q = static_cast<const T*>(a.q);
    const auto* k = static_cast<const T*>(a.k);
    const auto* v = static_cast<const T*>(a.v);
    const auto* d_o = static_cast<const T*>(a.d_o);
    const auto* lse = static_cast<const float*>(a.lse);
    if (a.dq != nullptr) {
      allow_shared(&query_gradient<T>, bytes);
      const dim3 grid(static_cast<unsigned>(a.row.short_tiles.count), static_cast<unsigned>(H_Q),
                      kBackwardRows / kTileRows);
      query_gradient<T><<<grid, kTileThreads, bytes, stream>>>(short_tiles, H_Q, H_KV, D, D_V, s, q, k, v, d_o, lse,
                                                               delta, static_cast<T*>(a.dq), a.write_dq);
      WEFT_CHECK_LAUNCH();
    }
    if (a.dk != nullptr || a.dv != nullptr) {
      allow_shared(&key_gradient<T>, bytes);
      const dim3 grid(static_cast<unsigned>(a.row.long_tiles.count), static_cast<unsigned>(H_KV), kKeyRows / kTileRows);
      key_gradient<T><<<grid, kTileThreads, bytes, stream>>>(key_tiles, short_tiles, H_Q, H_KV, D, D_V, s, q, k, v, d_o,
                                                             lse, delta, static_cast<T*>(a.dk), a.write_dk,
                                                             static_cast<T*>(a.dv), a.write_dv);
      WEFT_CHECK_LAUNCH();
    }
  });
}

}  // namespace weft::attention_cuda
