// Which kernel takes a problem on CUDA, and the workspace of each.
#include <algorithm>

#include "autograd/cuda/cuda_target.h"
#include "autograd/cuda/pieces.h"
#include "modules/families/attention/attention_cached.cuh"
#include "modules/families/attention/attention_hopper.cuh"
#include "modules/families/attention/attention_portable.cuh"

namespace weft {
namespace attention_cuda {
namespace {

struct ForwardWorkspace {
  int* counter;
  AttentionQueryTile* tiles;
  std::size_t bytes;

  ForwardWorkspace(const AttentionForward& a, void* base) {
    Pieces pieces(base);
    counter = pieces.take<int>(1);
    tiles = pieces.take<AttentionQueryTile>(std::max(a.row.long_tiles.count, a.row.short_tiles.count));
    bytes = pieces.bytes();
  }
};

struct BackwardWorkspace {
  bool hopper;
  AttentionQueryTile* query_tiles;
  AttentionKeyTile* key_tiles;
  float* delta;  // portable kernels and sink logits
  float *stats, *dq_sum;
  int* turns;
  std::size_t bytes;

  BackwardWorkspace(const AttentionBackward& a, void* base) : hopper(hopper_takes(a)) {
    Pieces pieces(base);
    query_tiles = pieces.take<AttentionQueryTile>(a.row.short_tiles.count);
    key_tiles = pieces.take<AttentionKeyTile>(a.row.long_tiles.count);
    delta = pieces.take<float>(!hopper || a.dsink_logit != nullptr ? a.shape.T * a.shape.H_Q : 0);
    const HopperBackwardSizes sizes =
        hopper ? hopper_backward_sizes(a.shape, a.row.short_tiles.count) : HopperBackwardSizes{};
    stats = pieces.take<float>(sizes.stats);
    dq_sum = pieces.take<float>(sizes.dq_sum);
    turns = pieces.take<int>(sizes.turns);
    bytes = pieces.bytes();
  }
};

void check_widths(const AttentionShape& s) {
  if (s.D > kWidest || s.D_V > kWidest) {
    config_error("attention: heads of width {} and {}; on CUDA at most {}", s.D, s.D_V, kWidest);
  }
}

bool hopper_takes(DType dtype, const AttentionShape& s, const AttentionOptions& options, std::int64_t widest,
                  std::int64_t widest_value) {
  return dtype == DType::bf16 && s.D <= widest && s.D_V <= widest_value && s.D % 8 == 0 && s.D_V % 8 == 0 &&
         logit_scale(s, options) > 0.0 && hopper_kernels();
}

}  // namespace

bool hopper_takes(const AttentionForward& a) {
  return hopper_takes(a.dtype, a.shape, a.options, kWidest, kWidest);
}
bool hopper_takes(const AttentionBackward& a) {
  return hopper_takes(a.dtype, a.shape, a.options, 192, 128);
}

}  // namespace attention_cuda

using namespace attention_cuda;

std::size_t attention_forward_cuda_workspace(const AttentionForward& args) {
  if (args.row.cu_seqlens == nullptr) return attention_cached_workspace(args);
  return ForwardWorkspace(args, nullptr).bytes;
}

void attention_forward_cuda(const AttentionForward& args, const Launch& launch) {
  if (args.shape.T == 0) return;
  if (args.row.cu_seqlens == nullptr) return attention_cached(args, launch);
  check_widths(args.shape);
  const cudaStream_t stream = cuda_stream(launch.stream);
  const ForwardWorkspace w(args, launch.workspace);
  if (hopper_takes(args)) {
    make_query_tiles(args.row, args.row.long_tiles, kForwardRows, true, w.tiles, stream);
    attention_forward_hopper(args, w.tiles, w.counter, stream);
  } else {
    make_query_tiles(args.row, args.row.short_tiles, kBackwardRows, true, w.tiles, stream);
    attention_forward_portable(args, w.tiles, stream);
  }
}

std::size_t attention_backward_cuda_workspace(const AttentionBackward& args) {
  return BackwardWorkspace(args, nullptr).bytes;
}

void attention_backward_cuda(const AttentionBackward& args, const Launch& launch) {
  if (args.shape.T == 0) {
    if (args.dsink_logit != nullptr && args.write_dsink_logit == Write::overwrite) {
      WEFT_CUDA_CALL(cudaMemsetAsync(args.dsink_logit, 0, static_cast<std::size_t>(args.shape.H_Q) * sizeof(float),
                                     cuda_stream(launch.stream)));
    }
    return;
  }
  check_widths(args.shape);
  const cudaStream_t stream = cuda_stream(launch.stream);
  const BackwardWorkspace w(args, launch.workspace);
  if (!w.hopper || args.dsink_logit != nullptr) attention_delta(args, w.delta, stream);
  if (args.dsink_logit != nullptr) attention_sink_gradient(args, w.delta, stream);
  if (args.dq == nullptr && args.dk == nullptr && args.dv == nullptr) return;
  make_query_tiles(args.row, args.row.short_tiles, kBackwardRows, false, w.query_tiles, stream);
  make_key_tiles(args.row, args.row.long_tiles, kKeyRows, args.row.short_tiles, w.key_tiles, stream);
  if (w.hopper) {
    attention_backward_hopper(args,
                              {.query_tiles = w.query_tiles,
                               .key_tiles = w.key_tiles,
                               .query_count = args.row.short_tiles.count,
                               .stats = w.stats,
                               .dq_sum = w.dq_sum,
                               .turns = w.turns},
                              stream);
  } else {
    attention_backward_portable(args, w.query_tiles, w.key_tiles, w.delta, stream);
  }
}

}  // namespace weft
