// Launchers of gated_linear_row.cuh: the recurrence and its gradients as walks over three of its tensors, and the
// gradient of decays per token from what the walks sum up on their way.
#include <cstdlib>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_target.h"
#include "autograd/cuda/pieces.h"
#include "modules/families/gated_linear/gated_linear_channels.cuh"
#include "modules/families/gated_linear/gated_linear_row.cuh"

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

// Whether a document of so many tokens is the other kernel's.
__host__ __device__ constexpr bool left_to_segments(std::int64_t length) {
  return length > kFewTokens && length <= kChunk;
}

// The chunks of the documents that are walked here, and those of the others; their index becomes the place in the
// problem's table. One block.
constexpr int kPartThreads = 1024;
__global__ void __launch_bounds__(kPartThreads)
    part_documents(const Chunk* chunks, const std::int32_t* chunk_count, const std::int32_t* cu_seqlens, Chunk* own,
                   Chunk* left, std::int32_t* counts) {
  __shared__ int warps[kPartThreads / 32];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int count = *chunk_count;
  int left_count = 0;
  for (int first = 0; first < count; first += kPartThreads) {
    const int at = first + thread;
    Chunk chunk{};
    bool leave = false;
    if (at < count) {
      chunk = chunks[at];
      chunk.index = at;
      leave = left_to_segments(cu_seqlens[chunk.document + 1] - cu_seqlens[chunk.document]);
    }
    const unsigned votes = __ballot_sync(0xffffffffu, leave);
    if (lane == 0) warps[warp] = __popc(votes);
    __syncthreads();
    int before = left_count + __popc(votes & ((1u << lane) - 1));
    for (int w = 0; w < kPartThreads / 32; ++w) {
      left_count += warps[w];
      before += w < warp ? warps[w] : 0;
    }
    if (at < count) (leave ? left[before] : own[at - before]) = chunk;
    __syncthreads();
  }
  if (thread == 0) counts[0] = count - left_count, counts[1] = left_count;
}

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
  if (p.after == nullptr || a.N == 0 || (a.N == 1 && a.T > 0)) return;
  const dim3 documents(static_cast<unsigned>(a.N), static_cast<unsigned>(a.H));
  pass_empty_documents<<<documents, 256, 0, stream>>>(a.d_k * a.d_v, a.cu_seqlens, p.before, p.after, p.write_after);
  WEFT_CHECK_LAUNCH();
}

// Which documents this kernel walks and which it leaves to the one that walks segments, which reads documents of one
// segment only once. It is a question of a document's length alone.
class Division {
 public:
  Division(const GatedLinearProblem& a, Pieces& pieces)
      : any_own(a.N != 1 || !left_to_segments(a.T)),
        any_left(a.N != 1 ? a.T > kFewTokens : left_to_segments(a.T)),
        chosen_(any_own && any_left) {
    if (!chosen_) return;
    own_ = pieces.take<Chunk>(a.chunk_count);
    left_ = pieces.take<Chunk>(a.chunk_count);
    counts_ = pieces.take<std::int32_t>(2);
  }
  void divide(const GatedLinearProblem& a, cudaStream_t stream) const {
    if (!chosen_ || a.chunk_count == 0) return;
    part_documents<<<1, kPartThreads, 0, stream>>>(a.chunks, a.document_offset + a.N, a.cu_seqlens, own_, left_,
                                                   counts_);
    WEFT_CHECK_LAUNCH();
  }
  void give_own(const GatedLinearProblem& a, RowProblem& p) const {
    p.chosen = chosen_;
    p.chunks = chosen_ ? own_ : a.chunks;
    p.chunk_count = chosen_ ? counts_ : a.document_offset + a.N;
  }
  walk::ShortDocuments::Table left(const GatedLinearProblem& a) const {
    if (!chosen_) return {a.chunks, a.document_offset + a.N};
    return {left_, counts_ + 1};
  }

  const bool any_own, any_left;  // that there may be

 private:
  const bool chosen_;  // on the device; a single document's length is known here
  Chunk *own_ = nullptr, *left_ = nullptr;
  std::int32_t* counts_ = nullptr;
};

// With WEFT_PLAIN_STORES=1 in the environment nothing is written by tensor copies, which initcheck does not see.
bool plain_stores() {
  const char* wish = std::getenv("WEFT_PLAIN_STORES");
  return wish != nullptr && wish[0] == '1';
}

// What is cut into blocks of columns.
void map_columns(RowProblem& p, std::int64_t T, RowMaps& maps) {
  maps.z = tile::make_narrow_map<R>(p.z.data, T, p.z.heads, p.z.width);
  p.copy_out = p.out != nullptr && !p.out_f32 && p.write == Write::overwrite && !plain_stores();
  if (p.copy_out) maps.out = tile::make_narrow_map<16>(p.out, T, p.H, p.z.width);
}

void launch(RowProblem p, const GatedLinearProblem& a, const Division& division, const Ends& ends, bool dots,
            cudaStream_t stream) {
  if (a.H == 0) return;
  p.before = static_cast<const float*>(ends.from);
  p.after = static_cast<float*>(ends.to);
  p.write_after = ends.write;
  pass_states(p, a, stream);
  if (a.chunk_count == 0 || a.T == 0) return;
  division.give_own(a, p);
  p.g = static_cast<const float*>(a.g);
  p.H = static_cast<int>(a.H);
  p.blocks = p.z.width / kColumns;
  p.row_stride = ends.transposed ? 1 : p.z.width;
  p.column_stride = ends.transposed ? p.x.width : 1;
  const auto map = [&](const HeadRows& rows) { return tile::make_head_map<R>(rows.data, a.T, rows.heads, rows.width); };
  RowMaps maps{};
  maps.x = map(p.x), maps.y = map(p.y);
  map_columns(p, a.T, maps);
  const auto walk = [&]<int DX>() {
    if (a.kind == DecayKind::constant) return launch_kernel<DX, Form::constant>(p, maps, stream);
    dots ? launch_kernel<DX, Form::dots>(p, maps, stream) : launch_kernel<DX, Form::plain>(p, maps, stream);
  };
  p.x.width == 128 ? walk.template operator()<128>() : walk.template operator()<64>();
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
    RowMaps maps{};
    maps.x = map(walk.backwards ? from.k_exit : from.q_entry, a.d_k);
    maps.y = map(walk.backwards ? from.q_entry : from.k_exit, a.d_k);
    maps.scores = map(from.P, R);
    map_columns(p, a.T, maps);
    a.d_k == 128 ? launch_kernel<128, Form::channels>(p, maps, stream)
                 : launch_kernel<64, Form::channels>(p, maps, stream);
  }
  pass_states(p, a, stream);
}

struct ForwardPlan {
  ForwardPlan(const GatedLinearForward& a, void* workspace)
      : pieces(workspace), division(a, pieces), shorter(a, division.any_left, pieces) {}

  Pieces pieces;
  Division division;
  walk::ShortDocuments shorter;
};

struct BackwardPlan {
  BackwardPlan(const GatedLinearBackward& a, void* workspace)
      : pieces(workspace),
        division(a, pieces),
        shorter(a, division.any_left, pieces),
        dots(a.kind == DecayKind::scalar) {
    const std::int64_t keys = a.T * a.H * a.d_k, state = a.H * a.d_k * a.d_v;
    const bool shared = a.heads_per_key() > 1;
    if (shared && a.dq != nullptr) room.dq = pieces.take<float>(keys);
    if (shared && a.dk != nullptr) room.dk = pieces.take<float>(keys);
    if (a.dg == nullptr) return;
    room.dots_q = pieces.take<float>(keys / kColumns);
    room.dots_k = pieces.take<float>(keys / kColumns);
    alive = pieces.take<float>(a.chunk_count * a.H * a.d_k / kColumns);
    if (!division.any_own) return;
    meeting = pieces.take<float>((a.T + kChunk - 1) / kChunk * state);
    if (a.dst != nullptr) meeting_final = pieces.take<float>(a.N * state);
  }

  Pieces pieces;
  Division division;
  walk::ShortDocuments shorter;
  // Decays per token take their share from both walks, whether or not their gradient is wanted: the others' bits do not
  // depend on that.
  bool dots;
  walks::BackwardRoom room;
  float *alive = nullptr, *meeting = nullptr, *meeting_final = nullptr;
};

}  // namespace

bool serves(const GatedLinearProblem& p) {
  const auto fits = [](std::int64_t width) { return width == 64 || width == 128; };
  return hopper_kernels() && p.dtype == DType::bf16 && p.map == FeatureMap::identity && fits(p.d_k) && fits(p.d_v);
}

std::size_t forward_workspace(const GatedLinearForward& args) {
  return ForwardPlan(args, nullptr).pieces.bytes();
}

std::size_t backward_workspace(const GatedLinearBackward& args) {
  return BackwardPlan(args, nullptr).pieces.bytes();
}

void forward(const GatedLinearForward& args, const Launch& launch_on) {
  cudaStream_t stream = cuda_stream(launch_on.stream);
  const ForwardPlan plan(args, launch_on.workspace);
  plan.division.divide(args, stream);
  if (plan.division.any_own) {
    launch(walks::output_walk<RowProblem>(args), args, plan.division, {.from = args.s0, .to = args.st}, false, stream);
  }
  if (plan.division.any_left) plan.shorter.forward(args, plan.division.left(args), stream);
}

void backward(const GatedLinearBackward& args, const Launch& launch_on) {
  cudaStream_t stream = cuda_stream(launch_on.stream);
  const BackwardPlan plan(args, launch_on.workspace);
  plan.division.divide(args, stream);
  const auto blocks = static_cast<int>(args.d_k / kColumns);
  if (plan.division.any_own) {
    walks::gradient_walks<RowProblem>(args, plan.room, [&](Gradient gradient, RowProblem p, const Ends& ends) {
      if (gradient != Gradient::v) p.meeting = plan.meeting, p.meeting_final = plan.meeting_final;
      if (gradient == Gradient::k) p.alive = plan.alive;
      launch(p, args, plan.division, ends, gradient != Gradient::v && plan.dots, stream);
    });
  }
  if (plan.division.any_left) {
    plan.shorter.backward(args, plan.division.left(args), plan.room, plan.alive, blocks, stream);
  }
  walks::sum_dots(args, plan.room, blocks, plan.alive, blocks, stream);
  walks::sum_heads(args, plan.room, stream);
}

}  // namespace weft::row

namespace weft::channels {

void walk_states(const GatedLinearProblem& p, const Records& from, const StateWalk& walk, const Launch& launch) {
  if (p.H > 0) row::launch_channels({}, p, from, walk, cuda_stream(launch.stream));
}

}  // namespace weft::channels
