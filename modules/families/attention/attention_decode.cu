#include "autograd/cuda/map_cuda.cuh"
#include "modules/families/attention/attention_portable.cuh"
#include "modules/families/attention/cached_rows.cuh"
#include "modules/families/attention/portable_tiles.cuh"

namespace weft {
namespace {

constexpr int kAppendThreads = 128;

// The keys of a window and the sink tokens before it, in order.
struct SeenKeys {
  attention_cuda::Sight sight;

  struct List {
    int sinks, begin, end;
    __device__ int count() const { return sinks + end - begin; }
    __device__ int position(int i) const { return i < sinks ? i : begin + i - sinks; }
  };
  __device__ List at(int, int, int position) const {
    const int begin = max(0, position - sight.window + 1);
    return {min(sight.sinks, begin), begin, position + 1};
  }
};

// One block a token.
template <class T>
__global__ void __launch_bounds__(kAppendThreads)
    append(CachedTable cache, const std::int32_t* positions, int H_KV, int D, int D_V, const T* k, const T* v) {
  const std::int64_t n = blockIdx.x;
  const int position = positions[n], t = position / kKeyTile, slot = position % kKeyTile;
  const int at = t < cache.pinned ? t : cache.pinned + (t - cache.pinned) % cache.ring;
  T* const page = static_cast<T*>(const_cast<void*>(cache.pages[n * cache.capacity + at]));
  for (int i = static_cast<int>(threadIdx.x); i < H_KV * D; i += kAppendThreads) {
    page[(i / D * kKeyTile + slot) * D + i % D] = k[n * H_KV * D + i];
  }
  if (cache.values == CachedValues::inside_keys) return;
  T* const values = page + static_cast<std::int64_t>(H_KV) * kKeyTile * D;
  for (int i = static_cast<int>(threadIdx.x); i < H_KV * D_V; i += kAppendThreads) {
    values[(i / D_V * kKeyTile + slot) * D_V + i % D_V] = v[n * H_KV * D_V + i];
  }
}

}  // namespace

std::size_t attention_decode_cuda_workspace(const AttentionDecode& a) {
  return cached_rows::workspace(a.N, a.H_Q, a.D_V, a.most_keys);
}

void attention_decode_cuda(const AttentionDecode& a, const Launch& launch) {
  if (a.N == 0) return;
  if (a.D_V > kWidestDecodedValue) {
    config_error("attention over a cache: values of width {}; on CUDA at most {}", a.D_V, kWidestDecodedValue);
  }
  const AttentionShape shape{.T = a.N, .S = a.N, .H_Q = a.H_Q, .H_KV = a.H_KV, .D = a.D, .D_V = a.D_V};
  const attention_cuda::ScoreArgs score = attention_cuda::score_args(shape, a.options);
  const cached_rows::Rows rows{.q = a.q,
                               .H_Q = static_cast<int>(a.H_Q),
                               .H_KV = static_cast<int>(a.H_KV),
                               .D = static_cast<int>(a.D),
                               .D_V = static_cast<int>(a.D_V),
                               .N = static_cast<int>(a.N),
                               .cu_seqlens = a.cu_seqlens,
                               .positions = a.positions,
                               .cache = a.cache,
                               .scale = score.scale,
                               .cap = score.cap,
                               .most_parts = 1,
                               .packs_k = false,
                               .packs_v = false,
                               .sink_logit = static_cast<const float*>(a.sink_logit),
                               .T = a.N};
  dispatch_cuda(a.dtype, "attention", [&]<class T>() {
    append<T><<<static_cast<unsigned>(a.N), kAppendThreads, 0, cuda_stream(launch.stream)>>>(
        a.cache, a.positions, rows.H_KV, rows.D, rows.D_V, static_cast<const T*>(a.k), static_cast<const T*>(a.v));
    WEFT_CHECK_LAUNCH();
    cached_rows::run<T>(rows, SeenKeys{score.sight}, a.most_keys, false, a.o, nullptr, launch);
  });
}

}  // namespace weft
