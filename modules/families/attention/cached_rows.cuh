// Attention of single query rows over keys in the pages of a cache, whatever rule says which keys a query sees.
//
// A block takes one query, up to kHeads heads that share keys, and one part of the keys that the query sees; each part
// leaves an output and its lse, which a second kernel merges in order. Parts have kPartKeys keys, or more where that
// would be too many parts; where more than kFewRows queries come at once, each is one part. Nothing else but the
// query's own keys decides its bits.
//
// Keys says which they are: `at(token, head, position)` gives a list with count() and position(i) of the i-th, or -1
// for a key that is not seen.
#pragma once

#include <algorithm>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/pack.cuh"
#include "modules/families/attention/attention_decode.h"

namespace weft::cached_rows {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kPartKeys = 128;  // of a part, and of a tile
constexpr int kMostParts = 64;
constexpr std::int64_t kFewRows = 64;  // more rows than these fill the device without parts
constexpr float kLog2e = 1.44269504f, kLn2 = 0.69314718f;
constexpr unsigned kAll = 0xffffffffu;

struct Rows {
  const void* q;                   // [T, H_Q, D]
  int H_Q, H_KV, D, D_V;           //
  int N;                           // documents
  const std::int32_t* cu_seqlens;  // [N + 1]
  const std::int32_t* positions;   // [T]
  CachedTable cache;               //
  float scale, cap;                // of the logits; cap 0: none
  int most_parts;                  //
  bool packs_k, packs_v;           // rows in packs of 4
  const float* sink_logit;         // [H_Q] or null
  std::int64_t T;

  __device__ int document(int token) const {
    int low = 0, high = N;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (cu_seqlens[middle] <= token ? low : high) = middle;
    }
    return low;
  }
};

__device__ inline int part_keys(int count, int most_parts) {
  const int least = (count + most_parts - 1) / most_parts;
  return max(kPartKeys, (least + kPartKeys - 1) / kPartKeys * kPartKeys);
}

// Four elements of a row from channel c on, zeros beyond `width`.
template <class T>
__device__ void load_four(const T* row, int c, int width, bool packs, float (&to)[4]) {
  if (packs) return load_pack(row + c, to);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = c + i < width ? to_float(row[c + i]) : 0.0f;
}

// Where the key and the value at a position lie, for one head of one sequence.
template <class T>
struct PageRows {
  const void* const* pages;
  int pinned, ring, head, H_KV, D, D_V;
  bool inside;

  __device__ PageRows(const Rows& a, int sequence, int kv_head)
      : pages(a.cache.pages + sequence * a.cache.capacity),
        pinned(a.cache.pinned),
        ring(a.cache.ring),
        head(kv_head),
        H_KV(a.H_KV),
        D(a.D),
        D_V(a.D_V),
        inside(a.cache.values == CachedValues::inside_keys) {}
  __device__ const T* page(int position) const {
    const int t = position / kKeyTile;
    return static_cast<const T*>(pages[t < pinned ? t : pinned + (t - pinned) % ring]);
  }
  __device__ const T* key(int position) const {
    return page(position) + (head * kKeyTile + position % kKeyTile) * static_cast<std::int64_t>(D);
  }
  __device__ const T* value(int position) const {
    if (inside) return key(position);
    return page(position) + static_cast<std::int64_t>(H_KV) * kKeyTile * D +
           (head * kKeyTile + position % kKeyTile) * static_cast<std::int64_t>(D_V);
  }
};

// kColumns channels of the value for each lane. Shared memory: [kHeads][D] queries, [kHeads][kPartKeys] scores, then
// [kWarps][kHeads][D_V] sums.
template <class T, int kHeads, int kColumns, class Keys>
__global__ void __launch_bounds__(kThreads) attend(const Rows a, const Keys keys, float* o_part, float* lse_part) {
  extern __shared__ float4 shared[];
  __shared__ float rescale[kHeads], inverse[kHeads];
  float* const qs = reinterpret_cast<float*>(shared);
  const int width = (a.D + 3) / 4 * 4;
  float* const scores = qs + kHeads * width;
  float* const sums = scores + kHeads * kPartKeys;
  const int token = static_cast<int>(blockIdx.x), G = a.H_Q / a.H_KV, groups = (G + kHeads - 1) / kHeads;
  const int kv_head = static_cast<int>(blockIdx.y) / groups, first = static_cast<int>(blockIdx.y) % groups * kHeads;
  const int heads = min(kHeads, G - first), head = kv_head * G + first;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const auto list = keys.at(token, head, a.positions[token]);
  const int count = list.count(), part = part_keys(count, a.most_parts);
  const int begin = static_cast<int>(blockIdx.z) * part, end = min(begin + part, count);
  if (begin >= count && blockIdx.z > 0) return;
  const PageRows<T> rows(a, a.document(token), kv_head);
  const T* const q = static_cast<const T*>(a.q) + (static_cast<std::int64_t>(token) * a.H_Q + head) * a.D;
  for (int i = static_cast<int>(threadIdx.x); i < kHeads * width; i += kThreads) {
    const int g = i / width, c = i % width;
    qs[i] = g < heads && c < a.D ? to_float(q[g * a.D + c]) : 0.0f;
  }
  float acc[kHeads][kColumns];
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) acc[g][c] = 0.0f;
  }
  float top = -INFINITY, mass = 0.0f;  // of head `warp`, in powers of 2
  for (int tile = begin; tile < end; tile += kPartKeys) {
    __syncthreads();
    constexpr int kBatch = kHeads <= 4 ? 8 : 4;
    for (int i = 0; i < kPartKeys / kWarps; i += kBatch) {
      const T* from[kBatch];
      float dot[kBatch][kHeads];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int j = tile + warp + (i + b) * kWarps;
        const int position = j < end ? list.position(j) : -1;
        from[b] = position < 0 ? nullptr : rows.key(position);
#pragma unroll
        for (int g = 0; g < kHeads; ++g) dot[b][g] = 0.0f;
      }
      for (int c = lane * 4; c < a.D; c += 128) {
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          float k[4] = {0.0f, 0.0f, 0.0f, 0.0f};
          if (from[b] != nullptr) load_four(from[b], c, a.D, a.packs_k, k);
#pragma unroll
          for (int g = 0; g < kHeads; ++g) {
            const float4 x = *reinterpret_cast<const float4*>(qs + g * width + c);
            dot[b][g] += k[0] * x.x + k[1] * x.y + k[2] * x.z + k[3] * x.w;
          }
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
#pragma unroll
        for (int g = 0; g < kHeads; ++g) {
          float x = dot[b][g];
#pragma unroll
          for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
          x *= a.scale;
          if (a.cap > 0.0f) x = a.cap * tanhf(x / a.cap);
          if (lane == 0) {
            scores[g * kPartKeys + warp + (i + b) * kWarps] = from[b] == nullptr ? -INFINITY : x * kLog2e;
          }
        }
      }
    }
    __syncthreads();
    if (warp < heads) {
      float* const own = scores + warp * kPartKeys;
      float high = top;
      for (int j = lane; j < kPartKeys; j += 32) high = fmaxf(high, own[j]);
#pragma unroll
      for (int step = 16; step > 0; step /= 2) high = fmaxf(high, __shfl_xor_sync(kAll, high, step));
      const float origin = high == -INFINITY ? 0.0f : high;
      float sum = 0.0f;
      for (int j = lane; j < kPartKeys; j += 32) {
        const float p = exp2f(own[j] - origin);
        own[j] = p;
        sum += p;
      }
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAll, sum, step);
      const float by = exp2f(top - origin);  // 0 for the first keys that are seen
      mass = mass * by + sum;
      top = high;
      if (lane == 0) rescale[warp] = by;
    }
    __syncthreads();
#pragma unroll
    for (int g = 0; g < kHeads; ++g) {
      const float by = g < heads ? rescale[g] : 0.0f;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) acc[g][c] *= by;
    }
    const int last = min(kPartKeys, end - tile);
#pragma unroll 4
    for (int j = warp; j < last; j += kWarps) {
      const int position = list.position(tile + j);
      if (position < 0) continue;
      const T* const from = rows.value(position);
#pragma unroll
      for (int c = 0; c < kColumns; c += 4) {
        const int channel = c * 32 + lane * 4;
        if (channel >= a.D_V) continue;
        float v[4];
        load_four(from, channel, a.D_V, a.packs_v, v);
#pragma unroll
        for (int g = 0; g < kHeads; ++g) {
          const float p = g < heads ? scores[g * kPartKeys + j] : 0.0f;
#pragma unroll
          for (int e = 0; e < 4; ++e) acc[g][c + e] += p * v[e];
        }
      }
    }
  }
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.z) * a.T + token) * a.H_Q + head;
  if (warp < heads && lane == 0) {
    inverse[warp] = mass > 0.0f ? 1.0f / mass : 0.0f;
    lse_part[row + warp] = mass > 0.0f ? top + log2f(mass) : -INFINITY;
  }
#pragma unroll
  for (int g = 0; g < kHeads; ++g) {
#pragma unroll
    for (int c = 0; c < kColumns; c += 4) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int channel = c * 32 + lane * 4 + e;
        if (channel < a.D_V) sums[(warp * kHeads + g) * a.D_V + channel] = acc[g][c + e];
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < heads * a.D_V; i += kThreads) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += sums[w * kHeads * a.D_V + i];
    o_part[row * a.D_V + i] = sum * inverse[i / a.D_V];
  }
}

constexpr int kMergeThreads = 128;

// One block for each query and head. `lse` may be null.
template <class T, class Keys>
__global__ void __launch_bounds__(kMergeThreads)
    merge(const Rows a, const Keys keys, const float* o_part, const float* lse_part, T* o, float* lse) {
  __shared__ float weights[kMostParts];
  const std::int64_t row = blockIdx.x, stride = a.T * a.H_Q;
  const int token = static_cast<int>(row / a.H_Q), head = static_cast<int>(row % a.H_Q);
  const int count = keys.at(token, head, a.positions[token]).count(), part = part_keys(count, a.most_parts);
  const int parts = max(1, (count + part - 1) / part);
  if (threadIdx.x < parts) weights[threadIdx.x] = lse_part[static_cast<std::int64_t>(threadIdx.x) * stride + row];
  __syncthreads();
  const float sink = a.sink_logit == nullptr ? -INFINITY : a.sink_logit[head] * kLog2e;
  float top = sink;
  for (int i = 0; i < parts; ++i) top = fmaxf(top, weights[i]);
  const float origin = top == -INFINITY ? 0.0f : top;
  float mass = exp2f(sink - origin);
  for (int i = 0; i < parts; ++i) mass += exp2f(weights[i] - origin);
  const float inverse = mass > 0.0f ? 1.0f / mass : 0.0f;
  for (int c = static_cast<int>(threadIdx.x); c < a.D_V; c += kMergeThreads) {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < parts; ++i) sum += exp2f(weights[i] - origin) * o_part[(i * stride + row) * a.D_V + c];
    o[row * a.D_V + c] = from_float<T>(sum * inverse);
  }
  if (threadIdx.x == 0 && lse != nullptr) lse[row] = mass > 0.0f ? (origin + log2f(mass)) * kLn2 : -INFINITY;
}

// --- launching -------------------------------------------------------------------------------------------------------

struct Plan {
  int most_parts;
  std::int64_t parts;  // of the longest list there may be

  Plan(std::int64_t rows, std::int64_t most_keys)
      : most_parts(rows > kFewRows ? 1 : kMostParts),
        parts(std::clamp<std::int64_t>((most_keys + kPartKeys - 1) / kPartKeys, 1, most_parts)) {}
  std::int64_t floats(std::int64_t rows, std::int64_t D_V) const { return parts * rows * (D_V + 1); }
};

inline std::size_t workspace(std::int64_t T, std::int64_t H_Q, std::int64_t D_V, std::int64_t most_keys) {
  return static_cast<std::size_t>(Plan(T, most_keys).floats(T * H_Q, D_V)) * sizeof(float);
}

template <class T, int kHeads, int kColumns, class Keys>
void launch_attend(const Rows& a, const Keys& keys, const Plan& plan, float* o_part, float* lse_part,
                   cudaStream_t stream) {
  const int G = a.H_Q / a.H_KV, width = (a.D + 3) / 4 * 4;
  const dim3 grid(static_cast<unsigned>(a.T), static_cast<unsigned>(a.H_KV * ((G + kHeads - 1) / kHeads)),
                  static_cast<unsigned>(plan.parts));
  const auto bytes = static_cast<std::size_t>(kHeads * (width + kPartKeys) + kWarps * kHeads * a.D_V) * sizeof(float);
  constexpr auto kernel = &attend<T, kHeads, kColumns, Keys>;
  if (bytes > 48 * 1024) {
    WEFT_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
  kernel<<<grid, kThreads, bytes, stream>>>(a, keys, o_part, lse_part);
  WEFT_CHECK_LAUNCH();
}

// o [T, H_Q, D_V], lse [T, H_Q] or null. `single_heads`: heads of a group see different keys.
template <class T, class Keys>
void run(Rows a, const Keys& keys, std::int64_t most_keys, bool single_heads, void* o, float* lse,
         const Launch& launch) {
  if (a.T == 0) return;
  const Plan plan(a.T, most_keys);
  a.most_parts = plan.most_parts;
  const auto aligned = [](std::int64_t width) { return width * static_cast<std::int64_t>(sizeof(T)) % 16 == 0; };
  a.packs_k = aligned(a.D);
  a.packs_v = aligned(a.D_V) && (a.packs_k || a.cache.values == CachedValues::beside_keys);
  float* const o_part = static_cast<float*>(launch.workspace);
  float* const lse_part = o_part + plan.parts * a.T * a.H_Q * a.D_V;
  const cudaStream_t stream = cuda_stream(launch.stream);
  const bool single = single_heads || a.H_Q == a.H_KV;
  const auto attend_with = [&](auto heads, auto columns) {
    launch_attend<T, decltype(heads)::value, decltype(columns)::value>(a, keys, plan, o_part, lse_part, stream);
  };
  using std::integral_constant;
  if (a.D_V <= 128) {
    if (single) {
      attend_with(integral_constant<int, 1>{}, integral_constant<int, 4>{});
    } else if (a.H_Q <= 4 * a.H_KV) {
      attend_with(integral_constant<int, 4>{}, integral_constant<int, 4>{});
    } else {
      attend_with(integral_constant<int, 8>{}, integral_constant<int, 4>{});
    }
  } else if (a.D_V <= 256) {
    single ? attend_with(integral_constant<int, 1>{}, integral_constant<int, 8>{})
           : attend_with(integral_constant<int, 4>{}, integral_constant<int, 8>{});
  } else {
    single ? attend_with(integral_constant<int, 1>{}, integral_constant<int, 16>{})
           : attend_with(integral_constant<int, 2>{}, integral_constant<int, 16>{});
  }
  merge<T><<<static_cast<unsigned>(a.T * a.H_Q), kMergeThreads, 0, stream>>>(a, keys, o_part, lse_part,
                                                                             static_cast<T*>(o), lse);
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft::cached_rows
