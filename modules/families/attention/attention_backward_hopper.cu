#include "autograd/tile/reduce.cuh"
#include "modules/families/attention/attention_backward_steps.cuh"
#include "modules/families/attention/attention_hopper.cuh"

namespace weft::attention_cuda {
namespace {

constexpr int kPrepareThreads = 256;

// stats of one tile of one head. Sixteen lanes take a row of up to 128 channels.
__global__ void __launch_bounds__(kPrepareThreads)
    prepare(const AttentionQueryTile* tiles, int H_Q, int D_V, const tile::bf16* o, const tile::bf16* d_o,
            const float* lse, const float* dlse, float* stats) {
  const AttentionQueryTile t = tiles[blockIdx.x];
  if (t.count <= 0) return;
  const int head = blockIdx.y, part = threadIdx.x % 16;
  float* const to = stats + (static_cast<std::int64_t>(head) * gridDim.x + blockIdx.x) * 2 * kQueries;
#pragma unroll
  for (int i = 0; i < kQueries * 16 / kPrepareThreads; ++i) {
    const int row = i * (kPrepareThreads / 16) + static_cast<int>(threadIdx.x) / 16;
    const bool valid = row < t.count;
    const std::int64_t at = (static_cast<std::int64_t>(t.row) + row) * H_Q + head;
    const bool in = valid && part * 8 < D_V;
    const auto x = tile::load16_if(in, o + at * D_V + part * 8);
    const auto y = tile::load16_if(in, d_o + at * D_V + part * 8);
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < 8; ++c) sum += x.get(c) * y.get(c);
    sum = tile::reduce_lanes<tile::Sum, 16>(sum);
    if (part != 0) continue;
    const float own = valid ? lse[at] : -INFINITY;
    // A row that is not there, or sees nothing, has no probabilities: 2^(s - infinity) = 0.
    to[row] = own == -INFINITY ? INFINITY : own * tile::kLog2e;
    to[kQueries + row] = valid ? (dlse == nullptr ? sum : sum - dlse[at]) : 0.0f;
  }
}

template <int D, int D_V, Makes kMakes, bool Cap>
void launch(const AttentionBackward& a, const BackwardArgs& args, cudaStream_t stream) {
  const auto k_map = tile::make_head_map<kKeyRows>(a.k, a.shape.S, a.shape.H_KV, a.shape.D);
  const auto v_map = tile::make_head_map<kKeyRows>(a.v, a.shape.S, a.shape.H_KV, a.shape.D_V);
  const auto q_map = tile::make_head_map<kQueries>(a.q, a.shape.T, a.shape.H_Q, a.shape.D);
  const auto d_o_map = tile::make_head_map<kQueries>(a.d_o, a.shape.T, a.shape.H_Q, a.shape.D_V);
  const auto kernel = &backward_kernel<D, D_V, kMakes, Cap>;
  constexpr int kBytes = sizeof(BackwardMemory<D, D_V, kMakes>);
  static_assert(kBytes <= 227 * 1024, "a block has 227 KiB of shared memory");
  WEFT_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  int device = 0, processors = 0;
  WEFT_CUDA_CALL(cudaGetDevice(&device));
  WEFT_CUDA_CALL(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  kernel<<<static_cast<unsigned>(processors), kBackwardThreads, kBytes, stream>>>(k_map, v_map, q_map, d_o_map, args);
  WEFT_CHECK_LAUNCH();
}

// Calls f.operator()<D, D_V>() with the widths that the kernel pads heads to.
template <class F>
decltype(auto) with_widths(const AttentionShape& shape, F&& f) {
  if (shape.D <= 64 && shape.D_V <= 64) return f.template operator()<64, 64>();
  if (shape.D <= 128) return f.template operator()<128, 128>();
  return f.template operator()<192, 128>();
}

}  // namespace

HopperBackwardSizes hopper_backward_sizes(const AttentionShape& shape, std::int64_t query_tiles) {
  const std::int64_t tiles = shape.H_Q * query_tiles;
  const int piece = with_widths(shape, [&]<int D, int D_V>() { return kPiece<D>; });
  return {.stats = tiles * 2 * kQueries, .dq_sum = tiles * 2 * piece, .turns = tiles + 2};
}

void attention_backward_hopper(const AttentionBackward& a, const HopperBackwardBuffers& w, cudaStream_t stream) {
  const int H_Q = static_cast<int>(a.shape.H_Q);
  const dim3 grid(static_cast<unsigned>(w.query_count), static_cast<unsigned>(H_Q));
  const HopperBackwardSizes sizes = hopper_backward_sizes(a.shape, w.query_count);
  WEFT_CUDA_CALL(cudaMemsetAsync(w.turns, 0, static_cast<std::size_t>(sizes.turns) * sizeof(int), stream));
  prepare<<<grid, kPrepareThreads, 0, stream>>>(w.query_tiles, H_Q, static_cast<int>(a.shape.D_V),
                                                static_cast<const tile::bf16*>(a.o),
                                                static_cast<const tile::bf16*>(a.d_o), static_cast<const float*>(a.lse),
                                                static_cast<const float*>(a.dlse), w.stats);
  WEFT_CHECK_LAUNCH();
  const double scale = logit_scale(a.shape, a.options), cap = a.options.soft_cap;
  BackwardArgs args{.key_tiles = w.key_tiles,
                    .query_tiles = w.query_tiles,
                    .key_count = static_cast<std::int32_t>(a.row.long_tiles.count),
                    .query_count = static_cast<std::int32_t>(w.query_count),
                    .H_Q = H_Q,
                    .H_KV = static_cast<std::int32_t>(a.shape.H_KV),
                    .D = static_cast<std::int32_t>(a.shape.D),
                    .D_V = static_cast<std::int32_t>(a.shape.D_V),
                    .sight = Sight(a.options),
                    .transform = static_cast<float>(cap > 0.0 ? scale / cap : 1.0),
                    .unit = static_cast<float>((cap > 0.0 ? cap : scale) * tile::kLog2e),
                    .scale = static_cast<float>(scale),
                    .stats = w.stats,
                    .dq_sum = w.dq_sum,
                    .turns = w.turns,
                    .counter = w.turns + (sizes.turns - 2),
                    .dq = static_cast<tile::bf16*>(a.dq),
                    .dk = static_cast<tile::bf16*>(a.dk),
                    .dv = static_cast<tile::bf16*>(a.dv),
                    .write_dq = a.write_dq,
                    .write_dk = a.write_dk,
                    .write_dv = a.write_dv};
  with_widths(a.shape, [&]<int D, int D_V>() {
    const auto pass = [&]<Makes kMakes>() {
      cap > 0.0 ? launch<D, D_V, kMakes, true>(a, args, stream) : launch<D, D_V, kMakes, false>(a, args, stream);
    };
    if constexpr (D <= 128) {
      pass.template operator()<Makes::everything>();
    } else {
      if (a.dk != nullptr || a.dq != nullptr) pass.template operator()<Makes::keys_and_queries>();
      ++args.counter;
      if (a.dv != nullptr) pass.template operator()<Makes::values>();
    }
  });
}

}  // namespace weft::attention_cuda
