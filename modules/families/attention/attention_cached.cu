// Attention of new tokens over cached pages and themselves: decoding and continued prefill, for inference.
//
// Rows are (token, head of the group), so that the heads that share keys read them once. A decoding document's keys are
// cut into parts of a length that depends on how many they are alone; each part leaves an output and its lse, which a
// second kernel merges in order, together with the sink logit.
#include <algorithm>
#include <vector>

#include "modules/families/attention/attention_cached.cuh"
#include "modules/families/attention/attention_portable.cuh"
#include "modules/families/attention/portable_tiles.cuh"

namespace weft::attention_cuda {
namespace {

constexpr std::int32_t kPartKeys = 1024;
constexpr std::int32_t kMostParts = 64;

struct CachedTile {
  AttentionDocument document;
  std::int32_t row_begin;  // of the document's rows (token, head of the group)
  std::int32_t part_keys;  // keys of a part; multiple of kTileRows
};

std::int32_t round_up(std::int32_t x, std::int32_t to) {
  return (x + to - 1) / to * to;
}

std::int32_t keys_of(const AttentionDocument& d) {
  return d.key_position + d.key_count;
}
std::int32_t part_keys(const AttentionDocument& d) {
  if (d.query_count > 1) return std::max(round_up(keys_of(d), kTileRows), kTileRows);
  return std::max(kPartKeys, round_up((keys_of(d) + kMostParts - 1) / kMostParts, kTileRows));
}

struct Plan {
  std::vector<CachedTile> tiles;
  std::int32_t parts = 1;

  explicit Plan(const AttentionForward& a) {
    const auto G = static_cast<std::int32_t>(a.shape.H_Q / a.shape.H_KV);
    for (std::int64_t n = 0; n < a.document_count; ++n) {
      const AttentionDocument& d = a.documents[n];
      parts = std::max(parts, (keys_of(d) + part_keys(d) - 1) / part_keys(d));
      for (std::int32_t row = 0; row < d.query_count * G; row += kTileRows) tiles.push_back({d, row, part_keys(d)});
    }
  }
};

struct CachedWorkspace {
  CachedTile* tiles;
  float* o;    // [parts][T, H_Q, D_V]
  float* lse;  // [parts][T, H_Q]
  std::size_t bytes;

  CachedWorkspace(const AttentionForward& a, const Plan& plan, void* base) {
    const auto pad = [](std::size_t n) { return (n + 255) / 256 * 256; };
    const auto rows = static_cast<std::size_t>(plan.parts * a.shape.T * a.shape.H_Q);
    const std::size_t tile_bytes = pad(plan.tiles.size() * sizeof(CachedTile));
    const std::size_t o_bytes = pad(rows * static_cast<std::size_t>(a.shape.D_V) * sizeof(float));
    auto* const at = static_cast<std::byte*>(base);
    tiles = reinterpret_cast<CachedTile*>(at);
    o = reinterpret_cast<float*>(at + tile_bytes);
    lse = reinterpret_cast<float*>(at + tile_bytes + o_bytes);
    bytes = tile_bytes + o_bytes + pad(rows * sizeof(float));
  }
};

// CachedKeys::page, on the device.
__device__ inline const void* page_of(const CachedKeys& c, std::int32_t position) {
  const std::int32_t t = position / kKeyTile;
  return c.pages[t < c.pinned ? t : c.pinned + (t - c.pinned) % c.ring];
}

template <class T>
struct KeyRows {
  const AttentionDocument& d;
  const T *k, *v;
  std::int64_t H_KV, D, D_V, head;

  __device__ const T* page(std::int32_t position) const {
    return static_cast<const T*>(page_of(d.cached, position)) + (head * kKeyTile + position % kKeyTile) * D;
  }
  __device__ std::int64_t row(std::int32_t position) const {
    return (static_cast<std::int64_t>(d.key_row) + position - d.key_position) * H_KV + head;
  }
  __device__ const T* key(std::int32_t position) const {
    return position < d.cached.length ? page(position) : k + row(position) * D;
  }
  __device__ const T* value(std::int32_t position) const {
    if (position >= d.cached.length) return v + row(position) * D_V;
    if (d.cached.values == CachedValues::inside_keys) return page(position);
    return static_cast<const T*>(page_of(d.cached, position)) + H_KV * kKeyTile * D +
           (head * kKeyTile + position % kKeyTile) * D_V;
  }
};

template <class T, int Parts>
__global__ void __launch_bounds__(kTileThreads)
    attend(const CachedTile* tiles, AttentionShape shape, ScoreArgs s, const T* q, const T* k, const T* v,
           float* o_part, float* lse_part) {
  extern __shared__ float memory[];
  const int D = static_cast<int>(shape.D), D_V = static_cast<int>(shape.D_V);
  const int G = static_cast<int>(shape.H_Q / shape.H_KV);
  float *const qs = memory, *const ks = qs + kTileRows * leading(D), *const vs = ks + kTileRows * leading(D);
  const CachedTile t = tiles[blockIdx.x];
  const AttentionDocument& d = t.document;
  const int rows = min(d.query_count * G - t.row_begin, kTileRows);
  const int lane = threadIdx.x % 32, own = threadIdx.x / 32 * kOwn;
  const auto token = [&](int r) { return (t.row_begin + r) / G; };
  const auto at = [&](int r) {
    return (static_cast<std::int64_t>(d.query_row) + token(r)) * shape.H_Q + blockIdx.y * G + (t.row_begin + r) % G;
  };
  stage_rows(qs, D, rows, [&](int r) { return q + at(r) * D; });

  PortableSoftmax<Parts> softmax;
  softmax.start(-INFINITY);
  const KeyRows<T> keys{d, k, v, shape.H_KV, D, D_V, static_cast<std::int64_t>(blockIdx.y)};
  const int first = d.query_position + token(0), last = d.query_position + token(rows - 1);
  const int part_begin = static_cast<int>(blockIdx.z) * t.part_keys;
  const int end = min(min(part_begin + t.part_keys, d.key_position + d.key_count), last + 1);
  for (int position = part_begin; position < end; position += kTileRows) {
    if (position >= s.sight.sinks && position + kTileRows - 1 <= first - s.sight.window) continue;
    const int count = min(kTileRows, end - position);
    // A ring has dropped what no query sees: such keys are not read.
    const auto seen = [&](int r, int j) {
      return own + r < rows && j < count && s.sight.sees(d.query_position + token(own + r), position + j);
    };
    const auto kept = [&](int j) { return position + j < s.sight.sinks || position + j > first - s.sight.window; };
    __syncthreads();
    stage_rows(ks, D, count, [&](int j) { return keys.key(kept(j) ? position + j : d.key_position); });
    stage_rows(vs, D_V, count, [&](int j) { return keys.value(kept(j) ? position + j : d.key_position); });
    __syncthreads();
    float p[kOwn];
    products(p, qs, ks, D);
    softmax.add(p, vs, D_V, s, [&](int r) { return seen(r, lane); });
  }
  const std::int64_t part = static_cast<std::int64_t>(blockIdx.z) * shape.T * shape.H_Q;
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    if (own + r >= rows) continue;
    const float inverse = softmax.inverse(r);
#pragma unroll
    for (int c = 0; c < Parts; ++c) {
      if (c * 32 + lane < D_V) o_part[(part + at(own + r)) * D_V + c * 32 + lane] = softmax.sum[r][c] * inverse;
    }
    if (lane == 0) lse_part[part + at(own + r)] = softmax.lse(r);
  }
}

constexpr int kMergeThreads = 128;

// One block a row.
template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    merge_parts(int parts, std::int64_t rows, int H_Q, int D_V, const float* o_part, const float* lse_part,
                const float* sink_logit, T* o, float* lse) {
  const std::int64_t row = blockIdx.x;
  const float sink = sink_logit == nullptr ? -INFINITY : sink_logit[row % H_Q];
  float top = sink;
  for (int i = 0; i < parts; ++i) top = fmaxf(top, lse_part[i * rows + row]);
  const float origin = top == -INFINITY ? 0.0f : top;
  float mass = expf(sink - origin);
  for (int i = 0; i < parts; ++i) mass += expf(lse_part[i * rows + row] - origin);
  for (int c = threadIdx.x; c < D_V; c += kMergeThreads) {
    float sum = 0.0f;
    for (int i = 0; i < parts; ++i) {
      sum += expf(lse_part[i * rows + row] - origin) * o_part[(i * rows + row) * D_V + c];
    }
    o[row * D_V + c] = from_float<T>(mass == 0.0f ? 0.0f : sum / mass);
  }
  if (threadIdx.x == 0) lse[row] = mass == 0.0f ? -INFINITY : top + logf(mass);
}

// One block a new token.
template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    append_rows(CachedKeys cache, int H_KV, int D, int D_V, const T* k, const T* v) {
  const std::int32_t position = cache.length + static_cast<std::int32_t>(blockIdx.x);
  // Later tokens of this call take the page's slot.
  const std::int32_t last_page = (cache.length + static_cast<std::int32_t>(gridDim.x) - 1) / kKeyTile;
  if (position / kKeyTile >= cache.pinned && position / kKeyTile <= last_page - cache.ring) return;
  T* const page = static_cast<T*>(const_cast<void*>(page_of(cache, position)));
  const std::int64_t token = blockIdx.x;
  for (int i = threadIdx.x; i < H_KV * D; i += kMergeThreads) {
    page[(i / D * kKeyTile + position % kKeyTile) * D + i % D] = k[token * H_KV * D + i];
  }
  if (cache.values == CachedValues::inside_keys) return;
  T* const values = page + static_cast<std::int64_t>(H_KV) * kKeyTile * D;
  for (int i = threadIdx.x; i < H_KV * D_V; i += kMergeThreads) {
    values[(i / D_V * kKeyTile + position % kKeyTile) * D_V + i % D_V] = v[token * H_KV * D_V + i];
  }
}

}  // namespace

std::size_t attention_cached_workspace(const AttentionForward& a) {
  return CachedWorkspace(a, Plan(a), nullptr).bytes;
}

void attention_cached(const AttentionForward& a, const Launch& launch) {
  if (a.shape.D > kWidestCached || a.shape.D_V > kWidestCachedValue) {
    config_error("attention over a cache: heads of width {} and {}; on CUDA at most {} and {}", a.shape.D, a.shape.D_V,
                 kWidestCached, kWidestCachedValue);
  }
  const Plan plan(a);
  if (plan.tiles.empty()) return;
  const cudaStream_t stream = cuda_stream(launch.stream);
  const CachedWorkspace w(a, plan, launch.workspace);
  const int D = static_cast<int>(a.shape.D), D_V = static_cast<int>(a.shape.D_V);
  // Pageable memory: the copy has been taken when this returns. A graph would read it again at each replay, so no graph
  // may hold this: steps of one token a sequence, which are captured, take attention_decode.cu.
  WEFT_CUDA_CALL(cudaMemcpyAsync(w.tiles, plan.tiles.data(), plan.tiles.size() * sizeof(CachedTile),
                                 cudaMemcpyHostToDevice, stream));
  const std::size_t bytes = static_cast<std::size_t>(kTileRows * (2 * leading(D) + leading(D_V))) * sizeof(float);
  const dim3 grid(static_cast<unsigned>(plan.tiles.size()), static_cast<unsigned>(a.shape.H_KV),
                  static_cast<unsigned>(plan.parts));
  const std::int64_t rows = a.shape.T * a.shape.H_Q;
  dispatch_cuda(a.dtype, "attention", [&]<class T>() {
    const auto kernel = D_V <= kWidest ? &attend<T, kWidest / 32> : &attend<T, kWidestCachedValue / 32>;
    WEFT_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
    kernel<<<grid, kTileThreads, bytes, stream>>>(w.tiles, a.shape, score_args(a.shape, a.options),
                                                  static_cast<const T*>(a.q), static_cast<const T*>(a.k),
                                                  static_cast<const T*>(a.v), w.o, w.lse);
    WEFT_CHECK_LAUNCH();
    merge_parts<T><<<static_cast<unsigned>(rows), kMergeThreads, 0, stream>>>(
        plan.parts, rows, static_cast<int>(a.shape.H_Q), D_V, w.o, w.lse, static_cast<const float*>(a.sink_logit),
        static_cast<T*>(a.o), static_cast<float*>(a.lse));
    WEFT_CHECK_LAUNCH();
  });
}

}  // namespace weft::attention_cuda

namespace weft {

void append_to_pages_cuda(const CacheAppend& a, const Launch& launch) {
  if (a.tokens == 0) return;
  dispatch_cuda(a.dtype, "key-value cache", [&]<class T>() {
    attention_cuda::append_rows<T>
        <<<static_cast<unsigned>(a.tokens), attention_cuda::kMergeThreads, 0, cuda_stream(launch.stream)>>>(
            a.cache, static_cast<int>(a.H_KV), static_cast<int>(a.D), static_cast<int>(a.D_V),
            static_cast<const T*>(a.k), static_cast<const T*>(a.v));
  });
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft
