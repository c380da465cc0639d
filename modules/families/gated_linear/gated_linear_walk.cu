// Launchers of gated_linear_walk.cuh: the recurrence and its gradients as walks over three of its tensors, and the
// gradient of decays per token from what the walks sum up on their way.
#include "autograd/cuda/cuda_check.cuh"
#include "modules/families/gated_linear/gated_linear_cuda.h"
#include "modules/families/gated_linear/gated_linear_features.cuh"
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

template <int DX, int DZ>
__global__ void load_states(int width_z, bool transposed, const float* from, float* initial) {
  const std::int64_t base = static_cast<std::int64_t>(blockIdx.x) * DX * width_z;
  for (int e = threadIdx.x; e < DX * width_z; e += blockDim.x) {
    initial[base + e] = from[base + document_element<DX, DZ>(e, width_z, transposed)];
  }
}

// `to` takes the state after each document; that of a document without tokens is the one before it.
template <int DX, int DZ>
__global__ void store_states(int width_z, bool transposed, const std::int32_t* cu_seqlens, const float* final,
                             const float* from, float* to, Write write) {
  const std::int64_t base = (static_cast<std::int64_t>(blockIdx.x) * gridDim.y + blockIdx.y) * DX * width_z;
  const bool any = cu_seqlens[blockIdx.x] < cu_seqlens[blockIdx.x + 1];
  for (int e = threadIdx.x; e < DX * width_z; e += blockDim.x) {
    const std::int64_t at = base + document_element<DX, DZ>(e, width_z, transposed);
    const float value = any ? final[base + e] : from == nullptr ? 0.0f : from[at];
    to[at] = write == Write::accumulate ? to[at] + value : value;
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

// Cuts the workspace.
class Pieces {
 public:
  explicit Pieces(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <class T>
  T* take(std::int64_t elements) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (static_cast<std::size_t>(elements) * sizeof(T) + 255) / 256 * 256;
    return piece;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  std::size_t bytes_ = 0;
};

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
  Room(const GatedLinearProblem& a, bool starts, bool ends, Pieces& pieces)
      : slots((a.T + kSegment - 1) / kSegment),
        flag_count(slots * a.H * (a.d_k + a.d_v) / 64),
        flags(pieces.take<int>(flag_count)),
        states(pieces.take<float>(slots * a.H * a.d_k * a.d_v)),
        initial(starts ? pieces.take<float>(a.N * a.H * a.d_k * a.d_v) : nullptr),
        final(ends ? pieces.take<float>(a.N * a.H * a.d_k * a.d_v) : nullptr) {}

  std::int64_t slots, flag_count;
  int* flags;
  float *states, *initial, *final;
};

// The states [N, H, d_k, d_v] before and after documents, seen in the walk's direction; null: zero, not wanted.
struct Ends {
  const void* from = nullptr;
  void* to = nullptr;
  Write write = Write::overwrite;
  bool transposed = false;  // rows are columns of z
  bool keep_final = false;  // in the room
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
void launch_walk(WalkProblem& p, const GatedLinearProblem& a, const Room& room, const Ends& ends, bool dots,
                 cudaStream_t stream) {
  const dim3 documents(static_cast<unsigned>(a.N), static_cast<unsigned>(a.H));
  p.blocks = p.z.width / DZ;
  if (ends.from != nullptr && a.N > 0) {
    p.initial = room.initial;
    load_states<DX, DZ><<<documents.x * documents.y, 256, 0, stream>>>(
        p.z.width, ends.transposed, static_cast<const float*>(ends.from), room.initial);
    WEFT_CHECK_LAUNCH();
  }
  if (a.chunk_count > 0 && a.T > 0) {
    WEFT_CUDA_CALL(cudaMemsetAsync(room.flags, 0, static_cast<std::size_t>(room.flag_count) * sizeof(int), stream));
    if (ends.to != nullptr || ends.keep_final) p.final = room.final;
    dots ? launch_kernel<DX, DZ, true>(p, a.T, a.chunk_count, stream)
         : launch_kernel<DX, DZ, false>(p, a.T, a.chunk_count, stream);
  }
  if (ends.to != nullptr && a.N > 0) {
    store_states<DX, DZ><<<documents, 256, 0, stream>>>(p.z.width, ends.transposed, a.cu_seqlens, room.final,
                                                        static_cast<const float*>(ends.from),
                                                        static_cast<float*>(ends.to), ends.write);
    WEFT_CHECK_LAUNCH();
  }
}

void launch(WalkProblem p, const GatedLinearProblem& a, const Room& room, const Ends& ends, bool dots,
            cudaStream_t stream) {
  if (a.H == 0) return;
  p.per_token = a.kind == DecayKind::scalar;
  p.g = static_cast<const float*>(a.g);
  p.H = static_cast<int>(a.H);
  p.chunks = a.chunks;
  p.chunk_count = a.document_offset + a.N;
  p.flags = room.flags;
  p.states = room.states;
  const auto walk = [&]<int DX, int DZ>() { launch_walk<DX, DZ>(p, a, room, ends, dots, stream); };
  if (p.x.width == 128) {
    block_of(p.z.width) == 128 ? walk.template operator()<128, 128>() : walk.template operator()<128, 64>();
  } else {
    block_of(p.z.width) == 128 ? walk.template operator()<64, 128>() : walk.template operator()<64, 64>();
  }
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
  BackwardPlan(const GatedLinearBackward& a, void* workspace)
      : pieces(workspace),
        dots(a.kind == DecayKind::scalar),
        room(a, a.s0 != nullptr || a.dst != nullptr, a.ds0 != nullptr || (dots && a.dst != nullptr), pieces),
        other(dots ? Room(a, a.dst != nullptr, false, pieces) : room) {
    const std::int64_t keys = a.T * a.H * a.d_k;
    const bool shared = a.heads_per_key() > 1;
    if (shared && a.dq != nullptr) dq = pieces.take<float>(keys);
    if (shared && a.dk != nullptr) dk = pieces.take<float>(keys);
    if (!dots) return;
    dots_q = pieces.take<float>(keys / block_of(a.d_k));
    dots_k = pieces.take<float>(keys / block_of(a.d_k));
    alive = pieces.take<float>(a.chunk_count * a.H * parts_of(a.d_v, a.d_k));
  }

  Pieces pieces;
  // Decays per token take their share from both walks, whether or not their gradient is wanted: the others' bits do not
  // depend on that.
  bool dots;
  Room room, other;
  float *dq = nullptr, *dk = nullptr;  // for each head, where heads share keys
  float *dots_q = nullptr, *dots_k = nullptr, *alive = nullptr;
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
  cudaStream_t stream = cuda_stream(launch_on.stream);
  Pieces pieces(launch_on.workspace);
  const Room room(args, args.s0 != nullptr, args.st != nullptr, pieces);
  const Rows in(args);
  WalkProblem p{};
  p.x = in.q, p.y = in.k, p.z = in.v;
  p.pair_scale = p.x_scale = static_cast<float>(args.scale);
  p.y_scale = 1.0f;
  p.out = args.o;
  launch(p, args, room, {.from = args.s0, .to = args.st}, false, stream);
}

void backward(const GatedLinearBackward& args, const Launch& launch_on) {
  cudaStream_t stream = cuda_stream(launch_on.stream);
  const BackwardPlan plan(args, launch_on.workspace);
  const Rows in(args);
  const HeadRows d_o = rows(args.d_o, args.H, args.d_v, args.H);
  const auto scale = static_cast<float>(args.scale);
  const auto target = [&](WalkProblem& p, void* gradient, Write write, float* staged) {
    p.out = staged != nullptr ? staged : gradient;
    p.out_f32 = staged != nullptr;
    p.write = staged != nullptr ? Write::overwrite : write;
  };

  // dq_i = s sum_{j <= i} <dO_i, v_j> e^{G_i - G_j} k_j
  if (args.dq != nullptr || args.dg != nullptr) {
    WalkProblem p{};
    p.x = d_o, p.y = in.v, p.z = in.k;
    p.pair_scale = p.x_scale = scale;
    p.y_scale = 1.0f;
    target(p, args.dq, args.write_dq, plan.dq);
    p.w = in.q, p.dots = plan.dots_q;
    launch(p, args, plan.room, {.from = args.s0, .transposed = true, .keep_final = plan.dots && args.dst != nullptr},
           plan.dots, stream);
  }
  // dk_j = s sum_{i >= j} <v_j, dO_i> e^{G_i - G_j} q_i
  if (args.dk != nullptr || args.dg != nullptr) {
    WalkProblem p{};
    p.x = in.v, p.y = d_o, p.z = in.q;
    p.backwards = true;
    p.pair_scale = p.y_scale = scale;
    p.x_scale = 1.0f;
    target(p, args.dk, args.write_dk, plan.dk);
    p.w = in.k, p.dots = plan.dots_k;
    p.other_states = plan.room.states, p.other_final = plan.room.final, p.alive = plan.alive;
    launch(p, args, plan.other, {.from = args.dst, .transposed = true}, plan.dots, stream);
  }
  // dv_j = s sum_{i >= j} <k_j, q_i> e^{G_i - G_j} dO_i, and what it leaves at the start
  if (args.dv != nullptr || args.ds0 != nullptr) {
    WalkProblem p{};
    p.x = in.k, p.y = in.q, p.z = d_o;
    p.backwards = true;
    p.pair_scale = p.y_scale = scale;
    p.x_scale = 1.0f;
    p.out = args.dv, p.write = args.write_dv;
    launch(p, args, plan.room, {.from = args.dst, .to = args.ds0, .write = args.write_ds0}, false, stream);
  }

  if (args.dg != nullptr && args.chunk_count > 0 && args.H > 0) {
    const auto blocks = static_cast<int>(args.d_k / block_of(args.d_k));
    sum_dots<<<dim3(static_cast<unsigned>(args.chunk_count), static_cast<unsigned>(args.H)), 32, 0, stream>>>(
        args.chunks, args.H, blocks, plan.dots_q, plan.dots_k, parts_of(args.d_v, args.d_k), plan.alive,
        static_cast<float*>(args.dg), args.write_dg);
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

}  // namespace weft::walk
