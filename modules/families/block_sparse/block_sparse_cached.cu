#include <cmath>

#include "modules/families/attention/cached_rows.cuh"
#include "modules/families/block_sparse/block_choice_cuda.cuh"
#include "modules/families/block_sparse/block_sparse_cached.h"

namespace weft {
namespace block_sparse {
namespace {

constexpr int kWarps = 8;
constexpr int kSummaries = 64;  // of a block of threads
constexpr int kHeads = 8;       // at once

// Every key that the query sees.
struct SpanKeys {
  KeySpan span;

  struct List {
    int keys;
    __device__ int count() const { return keys; }
    __device__ int position(int i) const { return i; }
  };
  __device__ List at(int, int, int position) const { return {span_count(span, position + 1)}; }
};

// Those of the chosen blocks.
struct ChosenKeys {
  Selection selection;

  struct List {
    Choices choices;
    __device__ int count() const { return choices.n * choices.block; }
    __device__ int position(int i) const {
      const int key = choices.first(i / choices.block) + i % choices.block;
      return key < choices.visible ? key : -1;
    }
  };
  __device__ List at(int token, int head, int position) const { return {selection.of(token, head, position + 1)}; }
};

cached_rows::Rows rows_of(const CachedQueries& in, std::int64_t D_V) {
  return {.q = in.q,
          .H_Q = static_cast<int>(in.H_Q),
          .H_KV = static_cast<int>(in.H_KV),
          .D = static_cast<int>(in.D),
          .D_V = static_cast<int>(D_V),
          .N = static_cast<int>(in.N),
          .cu_seqlens = in.cu_seqlens,
          .positions = in.positions,
          .cache = in.keys,
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(in.D))),
          .cap = 0.0f,
          .most_parts = 1,
          .packs_k = false,
          .packs_v = false,
          .sink_logit = nullptr,
          .T = in.T};
}

std::int64_t most_keys(const CachedBlockAttention& a) {
  return a.idx == nullptr ? a.in.most_keys : a.n * a.block;
}

// What the summaries of a query weigh: [T, lists, most] the product (logits), or [T, H_KV, most] the probabilities of
// the group's heads, summed.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    weigh(const cached_rows::Rows rows, const ChoiceArguments a, KeySpan span, int most, float* weights) {
  extern __shared__ float q[];  // [kHeads][width]
  const int token = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, width = (a.D + 3) / 4 * 4;
  const int position = rows.positions[token], visible = span_count(span, position + 1);
  const int begin = static_cast<int>(blockIdx.z) * kSummaries, end = min(begin + kSummaries, visible);
  if (begin >= end || a.takes_all(position)) return;
  const cached_rows::PageRows<T> keys(rows, rows.document(token), kv_head);
  const std::int64_t first = static_cast<std::int64_t>(token) * a.H_Q + kv_head * a.G;
  const bool logits = a.score == BlockScore::logit;
  for (int g = 0; g < a.G; g += kHeads) {
    const int heads = min(kHeads, a.G - g);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kHeads * width; i += kWarps * kWarp) {
      const int c = i % width;
      q[i] =
          i < heads * width && c < a.D ? to_float(static_cast<const T*>(a.q)[(first + g + i / width) * a.D + c]) : 0.0f;
    }
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < kSummaries / kWarps; ++i) {
      const int key = begin + warp + i * kWarps;
      if (key >= end) break;
      const T* const k = keys.key(key);
      float* const weight = weights + (static_cast<std::int64_t>(token) * a.H_KV + kv_head) * most + key;
      float sum = logits || g == 0 ? 0.0f : *weight;
      float dot[kHeads] = {};
      for (int c = lane * 4; c < a.D; c += 4 * kWarp) {
        float x[4];
        cached_rows::load_four(k, c, a.D, rows.packs_k, x);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          const float4 y = *reinterpret_cast<const float4*>(q + h * width + c);
          dot[h] += x[0] * y.x + x[1] * y.y + x[2] * y.z + x[3] * y.w;
        }
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) dot[h] = tile::reduce_lanes<tile::Sum>(dot[h]);
      if (lane != 0) continue;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        if (h >= heads) continue;
        if (logits) {
          weights[(first + g + h) * most + key] = dot[h];
        } else {
          sum += tile::exp2_fast(dot[h] * a.unit - a.lse[first + g + h] * tile::kLog2e);
        }
      }
      if (!logits) *weight = sum;
    }
  }
}

// A warp for each row of idx.
__global__ void __launch_bounds__(kWarps* kWarp)
    take(const ChoiceArguments a, const std::int32_t* positions, KeySpan span, int most, const float* weights) {
  const int lane = threadIdx.x % kWarp;
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int token = static_cast<int>(item / a.lists), list = static_cast<int>(item % a.lists);
  if (token >= a.end) return;
  const int position = positions[token], visible = span_count(span, position + 1);
  if (!a.takes_all(position)) {
    const float* const own = weights + item * most;
    float* const scores = a.score_row(token, list);
    for (int j = lane; j <= position / a.block; j += kWarp) {
      float value = 0.0f;
      if (a.score == BlockScore::logit) {
        if (j < visible) value = own[j];
      } else {
        const int first = max(0, j * a.per_block - (a.strides - 1)), end = min((j + 1) * a.per_block, visible);
        for (int i = first; i < end; ++i) {
          const int shared = min(i + a.strides, (j + 1) * a.per_block) - max(i, j * a.per_block);
          value =
              a.score == BlockScore::overlap_max ? fmaxf(value, own[i]) : value + static_cast<float>(shared) * own[i];
        }
      }
      scores[j] = value;
    }
    __syncwarp();
  }
  take_best_of_row(a, token, list, position, lane);
}

struct ChoicePlan {
  bool scores, denominators;
  std::int64_t lists, most;

  explicit ChoicePlan(const CachedBlockChoice& a)
      : scores(a.in.most_keys > 0 && !a.rule.takes_all(a.blocks * a.rule.block - 1)),
        denominators(scores && a.lse == nullptr && a.score != BlockScore::logit),
        lists(a.score == BlockScore::logit ? a.in.H_Q : a.in.H_KV),
        most(std::max<std::int64_t>(1, a.in.most_keys)) {}
};

struct ChoiceArrays {
  float *weights, *scores, *lse, *parts;

  ChoiceArrays(DeviceCarver& carver, const CachedBlockChoice& a, const ChoicePlan& p)
      : weights(carver.take<float>(p.scores ? a.in.T * p.lists * p.most : 0)),
        scores(carver.take<float>(a.in.T * p.lists * a.blocks)),
        lse(carver.take<float>(p.denominators ? a.in.T * a.in.H_Q : 0)),
        parts(carver.take<float>(
            p.denominators
                ? static_cast<std::int64_t>(cached_rows::workspace(a.in.T, a.in.H_Q, 0, p.most) / sizeof(float))
                : 0)) {}
};

}  // namespace
}  // namespace block_sparse

using namespace block_sparse;

std::size_t cached_block_attention_cuda_workspace(const CachedBlockAttention& a) {
  return cached_rows::workspace(a.in.T, a.in.H_Q, a.D_V, most_keys(a));
}

void cached_block_attention_cuda(const CachedBlockAttention& a, const Launch& launch) {
  const cached_rows::Rows rows = rows_of(a.in, a.D_V);
  auto* const lse = static_cast<float*>(a.lse);
  dispatch_cuda(a.in.dtype, "block-sparse attention from a cache", [&]<class T>() {
    if (a.idx == nullptr) {
      cached_rows::run<T>(rows, SpanKeys{a.in.span}, most_keys(a), false, a.o, lse, launch);
      return;
    }
    const ChosenKeys keys{{.idx = a.idx,
                           .lists = static_cast<int>(a.H_sel),
                           .n = static_cast<int>(a.n),
                           .block = static_cast<int>(a.block),
                           .H_Q = rows.H_Q,
                           .H_KV = rows.H_KV}};
    cached_rows::run<T>(rows, keys, most_keys(a), a.H_sel > a.in.H_KV, a.o, lse, launch);
  });
}

std::size_t cached_block_choice_cuda_workspace(const CachedBlockChoice& a) {
  DeviceCarver carver(nullptr);
  ChoiceArrays(carver, a, ChoicePlan(a));
  return carver.used();
}

void cached_block_choice_cuda(const CachedBlockChoice& a, const Launch& launch) {
  if (a.in.T == 0) return;
  const ChoicePlan plan(a);
  DeviceCarver carver(launch.workspace);
  const ChoiceArrays arrays(carver, a, plan);
  const auto small = [](std::int64_t x) { return static_cast<int>(std::min<std::int64_t>(x, 1 << 30)); };
  const int most = static_cast<int>(plan.most);
  const ChoiceArguments args{
      .row = {},
      .score = a.score,
      .begin = 0,
      .end = static_cast<int>(a.in.T),
      .H_Q = static_cast<int>(a.in.H_Q),
      .H_KV = static_cast<int>(a.in.H_KV),
      .D = static_cast<int>(a.in.D),
      .G = static_cast<int>(a.in.H_Q / a.in.H_KV),
      .lists = static_cast<int>(plan.lists),
      .block = static_cast<int>(a.rule.block),
      .selected = small(a.rule.selected),
      .first = small(a.rule.first),
      .local = small(a.rule.local),
      .slots = static_cast<int>(a.rule.slots()),
      .dense = a.rule.dense,
      .strides = a.in.span.length / a.in.span.stride,
      .per_block = static_cast<int>(a.rule.block) / a.in.span.stride,
      .blocks = static_cast<int>(a.blocks),
      .unit = static_cast<float>(static_cast<double>(tile::kLog2e) / std::sqrt(static_cast<double>(a.in.D))),
      .packs = false,
      .q = a.in.q,
      .k = nullptr,
      .lse = plan.denominators ? arrays.lse : static_cast<const float*>(a.lse),
      .scores = arrays.scores,
      .idx = a.idx};
  const cudaStream_t stream = cuda_stream(launch.stream);
  cached_rows::Rows rows = rows_of(a.in, 0);
  dispatch_cuda(a.in.dtype, "block choice from a cache", [&]<class T>() {
    if (plan.denominators) {
      cached_rows::run<T>(rows, SpanKeys{a.in.span}, plan.most, false, nullptr, arrays.lse,
                          {.stream = launch.stream, .workspace = arrays.parts});
    }
    if (plan.scores) {
      rows.packs_k = a.in.D * static_cast<std::int64_t>(sizeof(T)) % 16 == 0;
      const dim3 grid(static_cast<unsigned>(a.in.T), static_cast<unsigned>(a.in.H_KV),
                      blocks_for(plan.most, kSummaries));
      const auto bytes = static_cast<std::size_t>(kHeads * ((a.in.D + 3) / 4 * 4)) * sizeof(float);
      weigh<T><<<grid, kWarps * kWarp, bytes, stream>>>(rows, args, a.in.span, most, arrays.weights);
      WEFT_CHECK_LAUNCH();
    }
  });
  take<<<blocks_for(a.in.T * plan.lists, kWarps), kWarps * kWarp, 0, stream>>>(args, a.in.positions, a.in.span, most,
                                                                               arrays.weights);
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft
