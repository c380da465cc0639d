#include <cstdlib>
#include <string_view>

#include "modules/families/attention/attention_forward_hopper.cuh"
#include "modules/families/attention/attention_hopper.cuh"

namespace weft::attention_cuda {
namespace {

// With WEFT_PLAIN_STORES=1 in the environment nothing is written by tensor copies, which initcheck does not see.
bool plain_stores() {
  const char* wish = std::getenv("WEFT_PLAIN_STORES");
  return wish != nullptr && std::string_view(wish) == "1";
}

template <int D, int D_V, bool Cap>
void launch(const AttentionForward& a, const ForwardArgs& args, cudaStream_t stream) {
  const auto q_map = tile::make_head_map<kForwardRows>(a.q, a.shape.T, a.shape.H_Q, a.shape.D);
  const auto k_map = tile::make_head_map<ForwardPolicy<D, D_V>::kKeys>(a.k, a.shape.S, a.shape.H_KV, a.shape.D);
  const auto v_map = tile::make_head_map<ForwardPolicy<D, D_V>::kKeys>(a.v, a.shape.S, a.shape.H_KV, a.shape.D_V);
  const auto o_map = tile::make_head_map<64>(args.o, a.shape.T, a.shape.H_Q, a.shape.D_V);
  const auto kernel = &forward_kernel<D, D_V, Cap>;
  constexpr int kBytes = sizeof(ForwardMemory<D, D_V>);
  static_assert(kBytes <= 227 * 1024, "a block has 227 KiB of shared memory");
  WEFT_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  int device = 0, processors = 0;
  WEFT_CUDA_CALL(cudaGetDevice(&device));
  WEFT_CUDA_CALL(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  WEFT_CUDA_CALL(cudaMemsetAsync(args.counter, 0, sizeof(int), stream));
  kernel<<<static_cast<unsigned>(processors), kForwardThreads, kBytes, stream>>>(q_map, k_map, v_map, o_map, args);
  WEFT_CHECK_LAUNCH();
}

}  // namespace

void attention_forward_hopper(const AttentionForward& a, const AttentionQueryTile* tiles, int* counter,
                              cudaStream_t stream) {
  const double scale = logit_scale(a.shape, a.options), cap = a.options.soft_cap;
  const ForwardArgs args{.tiles = tiles,
                         .tile_count = static_cast<std::int32_t>(a.row.long_tiles.count),
                         .H_Q = static_cast<std::int32_t>(a.shape.H_Q),
                         .H_KV = static_cast<std::int32_t>(a.shape.H_KV),
                         .D_V = static_cast<std::int32_t>(a.shape.D_V),
                         .sight = Sight(a.options),
                         .transform = static_cast<float>(cap > 0.0 ? scale / cap : 1.0),
                         .unit = static_cast<float>((cap > 0.0 ? cap : scale) * tile::kLog2e),
                         .sink_logit = static_cast<const float*>(a.sink_logit),
                         .o = static_cast<tile::bf16*>(a.o),
                         .lse = static_cast<float*>(a.lse),
                         .counter = counter,
                         .copy_out = !plain_stores()};
  const auto run = [&]<int D, int D_V>() {
    cap > 0.0 ? launch<D, D_V, true>(a, args, stream) : launch<D, D_V, false>(a, args, stream);
  };
  if (a.shape.D <= 64 && a.shape.D_V <= 64) {
    run.template operator()<64, 64>();
  } else if (a.shape.D <= 128 && a.shape.D_V <= 128) {
    run.template operator()<128, 128>();
  } else if (a.shape.D <= 192 && a.shape.D_V <= 128) {
    run.template operator()<192, 128>();
  } else {
    run.template operator()<256, 256>();
  }
}

}  // namespace weft::attention_cuda
