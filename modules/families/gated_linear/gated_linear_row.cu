// Launchers of gated_linear_row.cuh: the recurrence and its gradients as walks over three of its tensors, and the
// gradient of decays per token from what the walks sum up on their way.
#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_target.h"
#include "modules/families/gated_linear/gated_linear_channels.cuh"
#include "modules/families/gated_linear/gated_linear_features.cuh"
#include "modules/families/gated_linear/gated_linear_row.cuh"
#include "modules/families/gated_linear/gated_linear_workspace.h"

namespace weft::row {
namespace {

// `to` takes the states before documents that have no tokens.
__global__ void pass_empty_documents(std::int64_t size, const std::int32_t* cu_seqlens, const float* from, float* to,
                                     Write write) {
  if (cu_seqlens[blockIdx.x] < cu_seqlens[blockIdx.x + 1]) return;
  const std::int64_t base = (static_cast<std::int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * size;
  for (std::int64_t e = threadIdx.x; e < size; e += blockDim.x) {
    const float value = from == nullptr ? 0.0f : from[base + e];
    to[base + e] = write == Write::accumulate ? to[base + e] + value : value;
  }
}

// dg_t = <S, dS> at the segment's end + sum over i >= t in it of (q dq - k dk)_i without the pairs j = i. A warp for
// each segment and head; sums come in `blocks` and `parts`.
__global__ void sum_dots(const Chunk* chunks, std::int64_t H, int blocks, const float* dots_q, const float* dots_k,
                         int parts, const float* alive, float* dg, Write write) {
  const Chunk chunk = chunks[blockIdx.x];
  const std::int64_t h = blockIdx.y;
  const int lane = threadIdx.x, n = chunk.end - chunk.begin;
  if (n <= 0) return;
  const auto sum_of = [](const float* parts, int count) {
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum += parts[i];
    return sum;
  };
  double carried = sum_of(alive + (blockIdx.x * H + h) * parts, parts);
  for (int last = (n + 31) / 32 * 32; last > 0; last -= 32) {  // 32 tokens at a time, from the end
    const int i = last - 1 - lane;
    const std::int64_t row = (chunk.begin + i) * H + h;
    double sum = 0.0;
    if (i < n) sum = sum_of(dots_q + row * blocks, blocks) - sum_of(dots_k + row * blocks, blocks);
    for (int step = 1; step < 32; step *= 2) {
      const double other = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += other;
    }
    sum += carried;
    carried = __shfl_sync(0xffffffffu, sum, 31);
    if (i < n) dg[row] = static_cast<float>(write == Write::accumulate ? dg[row] + sum : sum);
  }
}

// The states [N, H, d_k, d_v] before and after documents, seen in the walk's direction; null: zero, not wanted.
struct Ends {
  const void* from = nullptr;
  void* to = nullptr;
  Write write = Write::overwrite;
  bool transposed = false;  // rows are columns of z
};

template <int DX, Form kForm>
void launch_kernel(const RowProblem& p, const RowMaps& maps, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared<DX, kForm>);
  static_assert(kBytes <= 227 * 1024, "fits into shared memory");
  const auto kernel = row_kernel<DX, kForm>;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kCluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kCluster);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  static const int resident = [&] {
    int clusters = 0;
    WEFT_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    WEFT_CUDA_CALL(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
    return clusters;
  }();
  config.gridDim.x *= static_cast<unsigned>(std::min(p.H * p.blocks / kCluster, resident));
  WEFT_CUDA_CALL(cudaLaunchKernelEx(&config, kernel, p, maps));
}

void pass_states(const RowProblem& p, const GatedLinearProblem& a, cudaStream_t stream) {
  if (p.after == nullptr || a.N == 0) return;
  const dim3 documents(static_cast<unsigned>(a.N), static_cast<unsigned>(a.H));
  pass_empty_documents<<<documents, 256, 0, stream>>>(a.d_k * a.d_v, a.cu_seqlens, p.before, p.after, p.write_after);
  WEFT_CHECK_LAUNCH();
}

void launch(RowProblem p, const GatedLinearProblem& a, const Ends& ends, bool dots, cudaStream_t stream) {
  if (a.H == 0) return;
  p.per_token = a.kind == DecayKind::scalar;
  p.g = static_cast<const float*>(a.g);
  p.H = static_cast<int>(a.H);
  p.blocks = p.z.width / kColumns;
  p.chunks = a.chunks;
  p.chunk_count = a.document_offset + a.N;
  p.before = static_cast<const float*>(ends.from);
  p.after = static_cast<float*>(ends.to);
  p.write_after = ends.write;
  p.row_stride = ends.transposed ? 1 : p.z.width;
  p.column_stride = ends.transposed ? p.x.width : 1;
  if (a.chunk_count > 0 && a.T > 0) {
    const auto map = [&](const HeadRows& rows) {
      return tile::make_head_map<R>(rows.data, a.T, rows.heads, rows.width);
    };
    const RowMaps maps{map(p.x), map(p.y), map(p.z), {}};
    const auto walk = [&]<int DX>() {
      dots ? launch_kernel<DX, Form::dots>(p, maps, stream) : launch_kernel<DX, Form::plain>(p, maps, stream);
    };
    p.x.width == 128 ? walk.template operator()<128>() : walk.template operator()<64>();
  }
  pass_states(p, a, stream);
}

void launch_channels(RowProblem p, const GatedLinearProblem& a, const channels::Records& from,
                     const channels::StateWalk& walk, cudaStream_t stream) {
  p.backwards = walk.backwards;
  p.z = {static_cast<const bf16*>(walk.z), static_cast<int>(a.H), static_cast<int>(a.d_v), 1};
  p.H = static_cast<int>(a.H);
  p.blocks = static_cast<int>(a.d_v) / kColumns;
  p.chunks = a.chunks;
  p.chunk_count = a.document_offset + a.N;
  p.out = walk.out;
  p.write = walk.write;
  p.before = static_cast<const float*>(walk.before);
  p.after = static_cast<float*>(walk.after);
  p.write_after = walk.write_after;
  p.row_stride = static_cast<int>(a.d_v);
  p.column_stride = 1;
  p.totals = from.totals;
  p.entries = walk.kept;
  if (a.chunk_count > 0 && a.T > 0) {
    const auto map = [&](const bf16* records, std::int64_t width) {
      return tile::make_tile_map<R>(
          tile::TensorView<3>{records, {width, R, a.chunk_count * a.H}, {1, width, R * width}});
    };
    const RowMaps maps{map(walk.backwards ? from.k_exit : from.q_entry, a.d_k),
                       map(walk.backwards ? from.q_entry : from.k_exit, a.d_k),
                       tile::make_head_map<R>(walk.z, a.T, a.H, a.d_v), map(from.P, R)};
    a.d_k == 128 ? launch_kernel<128, Form::channels>(p, maps, stream)
                 : launch_kernel<64, Form::channels>(p, maps, stream);
  }
  pass_states(p, a, stream);
}

HeadRows rows(const void* data, std::int64_t heads, std::int64_t width, std::int64_t H) {
  return {static_cast<const bf16*>(data), static_cast<int>(heads), static_cast<int>(width),
          static_cast<int>(H / heads)};
}

// The tensors of a problem as walks take them.
struct Rows {
  explicit Rows(const GatedLinearProblem& a)
      : q(rows(a.q, a.key_heads(), a.d_k, a.H)),
        k(rows(a.k, a.key_heads(), a.d_k, a.H)),
        v(rows(a.v, a.H, a.d_v, a.H)) {}
  HeadRows q, k, v;
};

struct BackwardPlan {
  BackwardPlan(const GatedLinearBackward& a, void* workspace) : pieces(workspace), dots(a.kind == DecayKind::scalar) {
    const std::int64_t keys = a.T * a.H * a.d_k, state = a.H * a.d_k * a.d_v;
    const bool shared = a.heads_per_key() > 1;
    if (shared && a.dq != nullptr) dq = pieces.take<float>(keys);
    if (shared && a.dk != nullptr) dk = pieces.take<float>(keys);
    if (a.dg == nullptr) return;
    dots_q = pieces.take<float>(keys / kColumns);
    dots_k = pieces.take<float>(keys / kColumns);
    alive = pieces.take<float>(a.chunk_count * a.H * a.d_k / kColumns);
    meeting = pieces.take<float>((a.T + kChunk - 1) / kChunk * state);
    if (a.dst != nullptr) meeting_final = pieces.take<float>(a.N * state);
  }

  Pieces pieces;
  // Decays per token take their share from both walks, whether or not their gradient is wanted: the others' bits do not
  // depend on that.
  bool dots;
  float *dq = nullptr, *dk = nullptr;  // for each head, where heads share keys
  float *dots_q = nullptr, *dots_k = nullptr, *alive = nullptr, *meeting = nullptr, *meeting_final = nullptr;
};

}  // namespace

bool serves(const GatedLinearProblem& p) {
  const auto fits = [](std::int64_t width) { return width == 64 || width == 128; };
  return hopper_kernels() && p.dtype == DType::bf16 && p.map == FeatureMap::identity && fits(p.d_k) && fits(p.d_v);
}

std::size_t forward_workspace(const GatedLinearForward&) {
  return 0;
}

std::size_t backward_workspace(const GatedLinearBackward& args) {
  return BackwardPlan(args, nullptr).pieces.bytes();
}

void forward(const GatedLinearForward& args, const Launch& launch_on) {
  cudaStream_t stream = cuda_stream(launch_on.stream);
  const Rows in(args);
  RowProblem p{};
  p.x = in.q, p.y = in.k, p.z = in.v;
  p.pair_scale = p.x_scale = static_cast<float>(args.scale);
  p.y_scale = 1.0f;
  p.out = args.o;
  launch(p, args, {.from = args.s0, .to = args.st}, false, stream);
}

void backward(const GatedLinearBackward& args, const Launch& launch_on) {
  cudaStream_t stream = cuda_stream(launch_on.stream);
  const BackwardPlan plan(args, launch_on.workspace);
  const Rows in(args);
  const HeadRows d_o = rows(args.d_o, args.H, args.d_v, args.H);
  const auto scale = static_cast<float>(args.scale);
  const auto target = [&](RowProblem& p, void* gradient, Write write, float* staged) {
    p.out = staged != nullptr ? staged : gradient;
    p.out_f32 = staged != nullptr;
    p.write = staged != nullptr ? Write::overwrite : write;
  };

  // dq_i = s sum_{j <= i} <dO_i, v_j> e^{G_i - G_j} k_j
  if (args.dq != nullptr || args.dg != nullptr) {
    RowProblem p{};
    p.x = d_o, p.y = in.v, p.z = in.k;
    p.pair_scale = p.x_scale = scale;
    p.y_scale = 1.0f;
    target(p, args.dq, args.write_dq, plan.dq);
    p.w = in.q, p.dots = plan.dots_q;
    p.meeting = plan.meeting, p.meeting_final = plan.meeting_final;
    launch(p, args, {.from = args.s0, .transposed = true}, plan.dots, stream);
  }
  // dk_j = s sum_{i >= j} <v_j, dO_i> e^{G_i - G_j} q_i
  if (args.dk != nullptr || args.dg != nullptr) {
    RowProblem p{};
    p.x = in.v, p.y = d_o, p.z = in.q;
    p.backwards = true;
    p.pair_scale = p.y_scale = scale;
    p.x_scale = 1.0f;
    target(p, args.dk, args.write_dk, plan.dk);
    p.w = in.k, p.dots = plan.dots_k;
    p.meeting = plan.meeting, p.meeting_final = plan.meeting_final, p.alive = plan.alive;
    launch(p, args, {.from = args.dst, .transposed = true}, plan.dots, stream);
  }
  // dv_j = s sum_{i >= j} <k_j, q_i> e^{G_i - G_j} dO_i, and what it leaves at the start
  if (args.dv != nullptr || args.ds0 != nullptr) {
    RowProblem p{};
    p.x = in.k, p.y = in.q, p.z = d_o;
    p.backwards = true;
    p.pair_scale = p.y_scale = scale;
    p.x_scale = 1.0f;
    p.out = args.dv, p.write = args.write_dv;
    launch(p, args, {.from = args.dst, .to = args.ds0, .write = args.write_ds0}, false, stream);
  }

  if (args.dg != nullptr && args.chunk_count > 0 && args.H > 0) {
    const auto blocks = static_cast<int>(args.d_k / kColumns);
    sum_dots<<<dim3(static_cast<unsigned>(args.chunk_count), static_cast<unsigned>(args.H)), 32, 0, stream>>>(
        args.chunks, args.H, blocks, plan.dots_q, plan.dots_k, blocks, plan.alive, static_cast<float*>(args.dg),
        args.write_dg);
    WEFT_CHECK_LAUNCH();
  }
  const auto add_heads = [&](const float* staged, void* gradient, Write write) {
    if (staged == nullptr || args.T == 0) return;
    const DeviceRows to = device_rows(gradient, args.dtype, args.key_heads(), args.d_k);
    feature_rows_backward_cuda(FeatureMap::identity, args.T * args.key_heads(), args.heads_per_key(), args.d_k, to,
                               nullptr, staged, to, write, stream);
  };
  add_heads(plan.dq, args.dq, args.write_dq);
  add_heads(plan.dk, args.dk, args.write_dk);
}

}  // namespace weft::row

namespace weft::channels {

void walk_states(const GatedLinearProblem& p, const Records& from, const StateWalk& walk, const Launch& launch) {
  if (p.H > 0) row::launch_channels({}, p, from, walk, cuda_stream(launch.stream));
}

}  // namespace weft::channels
