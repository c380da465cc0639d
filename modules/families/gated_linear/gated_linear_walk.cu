// Launchers of gated_linear_walk.cuh: the recurrence and its gradients as walks over three of its tensors, and the
// gradient of decays per token from what the walks sum up on their way.
#include <limits>

#include "autograd/cuda/cuda_check.cuh"
#include "modules/families/gated_linear/gated_linear_cuda.h"
#include "modules/families/gated_linear/gated_linear_walk.cuh"

namespace weft::walk {
namespace {

// A state [x, z] of a document, or transposed [z, x], and the same in the order of registers (StateSlots).
template <int DX, int DZ>
__device__ std::int64_t document_element(int e, int width_z, bool transposed) {
  int x, z;
  StateSlots<DX, DZ>::place(e, x, z);
  return transposed ? z * DX + x : x * width_z + z;
}

// Documents that a launch is for, by their tokens; the states of others are left alone.
struct Lengths {
  int least, most;
  __device__ bool include(int length) const { return length >= least && length <= most; }
};

template <int DX, int DZ>
__global__ void load_states(int width_z, bool transposed, const std::int32_t* cu_seqlens, Lengths lengths,
                            const float* from, float* initial) {
  if (!lengths.include(cu_seqlens[blockIdx.x + 1] - cu_seqlens[blockIdx.x])) return;
  const std::int64_t base = (static_cast<std::int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * DX * width_z;
  for (int e = threadIdx.x; e < DX * width_z; e += blockDim.x) {
    initial[base + e] = from[base + document_element<DX, DZ>(e, width_z, transposed)];
  }
}

// `to` takes the state after each document; that of a document without tokens is the one before it.
template <int DX, int DZ>
__global__ void store_states(int width_z, bool transposed, const std::int32_t* cu_seqlens, Lengths lengths,
                             const float* final, const float* from, float* to, Write write) {
  const int length = cu_seqlens[blockIdx.x + 1] - cu_seqlens[blockIdx.x];
  if (!lengths.include(length)) return;
  const std::int64_t base = (static_cast<std::int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * DX * width_z;
  const bool any = length > 0;
  for (int e = threadIdx.x; e < DX * width_z; e += blockDim.x) {
    const std::int64_t at = base + document_element<DX, DZ>(e, width_z, transposed);
    const float value = any ? final[base + e] : from == nullptr ? 0.0f : from[at];
    to[at] = write == Write::accumulate ? to[at] + value : value;
  }
}

// Columns of z that a block takes.
int block_of(std::int64_t width_z) {
  return width_z % 128 == 0 ? 128 : 64;
}
// Blocks times owners of the states of a walk over x and z (StateSlots).
int parts_of(std::int64_t width_x, std::int64_t width_z) {
  const int block = block_of(width_z);
  return static_cast<int>(width_z / block) * (width_x == 128 || block == 128 ? 2 : 1);
}

// What one walk needs besides its tensors.
struct Room {
  Room(float* initial_states, float* final_states) : initial(initial_states), final(final_states) {}
  Room(const GatedLinearProblem& a, bool starts, bool ends, Pieces& pieces)
      : slots((a.T + kSegment - 1) / kSegment),
        flag_count(slots * a.H * (a.d_k + a.d_v) / 64),
        flags(pieces.take<int>(flag_count)),
        states(pieces.take<float>(slots * a.H * a.d_k * a.d_v)),
        initial(starts ? document_states(a, pieces) : nullptr),
        final(ends ? document_states(a, pieces) : nullptr) {}
  static float* document_states(const GatedLinearProblem& a, Pieces& pieces) {
    return pieces.take<float>(a.N * a.H * a.d_k * a.d_v);
  }

  // Between segments.
  std::int64_t slots = 0, flag_count = 0;
  int* flags = nullptr;
  float* states = nullptr;
  // Of documents.
  float *initial, *final;
};

template <int DX, int DZ, bool kDots>
void launch_kernel(const WalkProblem& p, std::int64_t T, std::int64_t chunks, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared<DX, DZ>);
  static_assert(kBytes <= 227 * 1024, "fits into shared memory");
  const auto kernel = walk_kernel<DX, DZ, kDots>;
  static const int resident = [&] {
    int device = 0, processors = 0, blocks = 0;
    WEFT_CUDA_CALL(cudaGetDevice(&device));
    WEFT_CUDA_CALL(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    WEFT_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    WEFT_CUDA_CALL(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, kBytes));
    return processors * blocks;
  }();
  const auto map = [&](const HeadRows& rows) { return tile::make_head_map<R>(rows.data, T, rows.heads, rows.width); };
  const WalkMaps maps{map(p.x), map(p.y), map(p.z)};
  const std::int64_t items = chunks * p.H * p.blocks;
  kernel<<<static_cast<unsigned>(std::min<std::int64_t>(items, resident)), kThreads, kBytes, stream>>>(p, maps);
  WEFT_CHECK_LAUNCH();
}

template <int DX, int DZ>
void launch_walk(WalkProblem& p, const GatedLinearProblem& a, const Room& room, const Ends& ends, bool keep_final,
                 bool dots, cudaStream_t stream) {
  const dim3 documents(static_cast<unsigned>(a.N), static_cast<unsigned>(a.H));
  const Lengths lengths = p.short_documents ? Lengths{static_cast<int>(row::kFewTokens) + 1, static_cast<int>(kSegment)}
                                            : Lengths{0, std::numeric_limits<int>::max()};
  p.blocks = p.z.width / DZ;
  if (ends.from != nullptr && a.N > 0) {
    p.initial = room.initial;
    load_states<DX, DZ><<<documents, 256, 0, stream>>>(p.z.width, ends.transposed, a.cu_seqlens, lengths,
                                                       static_cast<const float*>(ends.from), room.initial);
    WEFT_CHECK_LAUNCH();
  }
  if (a.chunk_count > 0 && a.T > 0) {
    if (room.flag_count > 0) {
      WEFT_CUDA_CALL(cudaMemsetAsync(room.flags, 0, static_cast<std::size_t>(room.flag_count) * sizeof(int), stream));
    }
    if (ends.to != nullptr || keep_final) p.final = room.final;
    dots ? launch_kernel<DX, DZ, true>(p, a.T, a.chunk_count, stream)
         : launch_kernel<DX, DZ, false>(p, a.T, a.chunk_count, stream);
  }
  if (ends.to != nullptr && a.N > 0) {
    store_states<DX, DZ><<<documents, 256, 0, stream>>>(p.z.width, ends.transposed, a.cu_seqlens, lengths, room.final,
                                                        static_cast<const float*>(ends.from),
                                                        static_cast<float*>(ends.to), ends.write);
    WEFT_CHECK_LAUNCH();
  }
}

using Table = ShortDocuments::Table;

// keep_final: the states after documents stay in the room. Without a table, all chunks are walked.
void launch(WalkProblem p, const GatedLinearProblem& a, const Table& table, const Room& room, const Ends& ends,
            bool keep_final, bool dots, cudaStream_t stream) {
  if (a.H == 0) return;
  p.per_token = a.kind == DecayKind::scalar;
  p.g = static_cast<const float*>(a.g);
  p.H = static_cast<int>(a.H);
  p.short_documents = table.chunks != nullptr;
  p.chunks = p.short_documents ? table.chunks : a.chunks;
  p.chunk_count = p.short_documents ? table.count : a.document_offset + a.N;
  p.flags = room.flags;
  p.states = room.states;
  const auto walk = [&]<int DX, int DZ>() { launch_walk<DX, DZ>(p, a, room, ends, keep_final, dots, stream); };
  if (p.x.width == 128) {
    block_of(p.z.width) == 128 ? walk.template operator()<128, 128>() : walk.template operator()<128, 64>();
  } else {
    block_of(p.z.width) == 128 ? walk.template operator()<64, 128>() : walk.template operator()<64, 64>();
  }
}

bool keeps_dots(const GatedLinearBackward& a) {
  return a.kind == DecayKind::scalar;
}
// Which states of documents a backward walk needs in the order of registers.
bool needs_initial(const GatedLinearBackward& a) {
  return a.s0 != nullptr || a.dst != nullptr;
}
bool needs_final(const GatedLinearBackward& a) {
  return a.ds0 != nullptr || (keeps_dots(a) && a.dst != nullptr);
}

// `other`: of the walk for keys, which meets what the one for queries left in `room`.
void walk_back(const GatedLinearBackward& args, const Table& table, const Room& room, const Room& other,
               const walks::BackwardRoom& gradients, int dot_parts, float* alive, int alive_parts,
               cudaStream_t stream) {
  const bool dots = keeps_dots(args);
  walks::gradient_walks<WalkProblem>(args, gradients, [&](Gradient gradient, WalkProblem p, const Ends& ends) {
    const bool keep_final = gradient == Gradient::q && dots && args.dst != nullptr;
    p.dot_parts = dot_parts;
    if (gradient == Gradient::k) {
      p.other_states = room.states, p.other_final = room.final, p.alive = alive, p.alive_parts = alive_parts;
    }
    launch(p, args, table, gradient == Gradient::k ? other : room, ends, keep_final, gradient != Gradient::v && dots,
           stream);
  });
}

struct BackwardPlan {
  BackwardPlan(const GatedLinearBackward& a, void* workspace)
      : pieces(workspace),
        room(a, needs_initial(a), needs_final(a), pieces),
        other(keeps_dots(a) ? Room(a, a.dst != nullptr, false, pieces) : room) {
    const std::int64_t keys = a.T * a.H * a.d_k;
    const bool shared = a.heads_per_key() > 1;
    if (shared && a.dq != nullptr) gradients.dq = pieces.take<float>(keys);
    if (shared && a.dk != nullptr) gradients.dk = pieces.take<float>(keys);
    // Decays per token take their share from both walks, whether or not their gradient is wanted: the others' bits do
    // not depend on that.
    if (!keeps_dots(a)) return;
    gradients.dots_q = pieces.take<float>(keys / block_of(a.d_k));
    gradients.dots_k = pieces.take<float>(keys / block_of(a.d_k));
    alive = pieces.take<float>(a.chunk_count * a.H * parts_of(a.d_v, a.d_k));
  }

  Pieces pieces;
  Room room, other;
  walks::BackwardRoom gradients;
  float* alive = nullptr;
};

}  // namespace

std::size_t forward_workspace(const GatedLinearForward& args) {
  Pieces pieces(nullptr);
  Room room(args, args.s0 != nullptr, args.st != nullptr, pieces);
  return pieces.bytes();
}

std::size_t backward_workspace(const GatedLinearBackward& args) {
  return BackwardPlan(args, nullptr).pieces.bytes();
}

void forward(const GatedLinearForward& args, const Launch& launch_on) {
  Pieces pieces(launch_on.workspace);
  const Room room(args, args.s0 != nullptr, args.st != nullptr, pieces);
  launch(walks::output_walk<WalkProblem>(args), args, {}, room, {.from = args.s0, .to = args.st}, false, false,
         cuda_stream(launch_on.stream));
}

void backward(const GatedLinearBackward& args, const Launch& launch_on) {
  cudaStream_t stream = cuda_stream(launch_on.stream);
  const BackwardPlan plan(args, launch_on.workspace);
  const auto blocks = static_cast<int>(args.d_k / block_of(args.d_k));
  const int parts = parts_of(args.d_v, args.d_k);
  walk_back(args, {}, plan.room, plan.other, plan.gradients, blocks, plan.alive, parts, stream);
  walks::sum_dots(args, plan.gradients, blocks, plan.alive, parts, stream);
  walks::sum_heads(args, plan.gradients, stream);
}

ShortDocuments::ShortDocuments(const GatedLinearForward& a, bool any, Pieces& pieces) {
  if (!any) return;
  if (a.s0 != nullptr) initial_ = Room::document_states(a, pieces);
  if (a.st != nullptr) final_ = Room::document_states(a, pieces);
}

ShortDocuments::ShortDocuments(const GatedLinearBackward& a, bool any, Pieces& pieces) {
  if (!any) return;
  if (needs_initial(a)) initial_ = Room::document_states(a, pieces);
  if (needs_final(a)) final_ = Room::document_states(a, pieces);
  other_initial_ = keeps_dots(a) && a.dst != nullptr ? Room::document_states(a, pieces) : initial_;
}

void ShortDocuments::forward(const GatedLinearForward& args, const Table& table, cudaStream_t stream) const {
  launch(walks::output_walk<WalkProblem>(args), args, table, Room(initial_, final_), {.from = args.s0, .to = args.st},
         false, false, stream);
}

void ShortDocuments::backward(const GatedLinearBackward& args, const Table& table, const walks::BackwardRoom& gradients,
                              float* alive, int parts, cudaStream_t stream) const {
  walk_back(args, table, Room(initial_, final_), Room(other_initial_, nullptr), gradients, parts, alive, parts, stream);
}

}  // namespace weft::walk
