// The kernel of head_linear_gradients.h: dx_h = dy_h W_h and dW_h = dy_h^T x_h, bound by the bytes of dy, x and dx.
//
// A block keeps the matrix of one head in shared memory and takes every splits-th tile of R tokens. One warp loads;
// four make dx of a tile, which the copy engine stores; four keep dW in registers. The sums of the splits are added in
// order by a second kernel.
//
// I input width, O output width of a head.
#include <algorithm>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_target.h"
#include "autograd/cuda/pack.cuh"
#include "autograd/ops/head_linear/head_linear_gradients.h"
#include "autograd/tile/async_copy.cuh"
#include "autograd/tile/tma.cuh"
#include "autograd/tile/wgmma.cuh"

namespace weft {
namespace {

using tile::Accumulator;
using tile::bf16;
using tile::SharedTile;

constexpr int R = 64;
constexpr int kGroup = 128;                // threads
constexpr int kThreads = 2 * kGroup + 32;  // dx, dW, loader
constexpr int kStages = 4;
constexpr std::int64_t kBlocks = 132;  // that are wanted

struct Problem {
  std::int64_t T;
  int H, tiles, splits;
  bf16* dx;
  Write write_dx;
  float* parts;  // [splits, H, O, I]
};

template <int O>
struct Maps {
  tile::TileMap<R, 3> x, dy, dx;
  tile::TileMap<O, 3> weight;
};

template <int I, int O>
struct Shared {
  struct Stage {
    SharedTile<R, I> x;
    SharedTile<R, O> dy;
  };
  Stage stages[kStages];
  SharedTile<O, I> weight;
  SharedTile<R, I> dx[2];  // on their way
  tile::Barrier full[kStages], empty[kStages], weight_full;
};

template <int I, int O>
class Gradients {
 public:
  using Memory = Shared<I, O>;

  __device__ Gradients(const Problem& problem, const Maps<O>& tensors, Memory& memory)
      : p(problem),
        maps(tensors),
        m(memory),
        h(static_cast<int>(blockIdx.x) % problem.H),
        split(static_cast<int>(blockIdx.x) / problem.H),
        thread(static_cast<int>(threadIdx.x) % kGroup) {}

  __device__ void run() {
    if (threadIdx.x == 0) {
      for (int s = 0; s < kStages; ++s) {
        m.full[s].init(1);
        m.empty[s].init(2 * kGroup / 32);
      }
      m.weight_full.init(1);
      tile::fence_barrier_init();
    }
    __syncthreads();
    const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kGroup, 0);
    if (group == 0) {
      make_dx();
    } else if (group == 1) {
      make_dweight();
    } else if (tile::elect_one()) {
      load_tiles();
    }
  }

 private:
  __device__ void load_tiles() {
    m.weight_full.arrive_expect(sizeof(m.weight));
    tile::load_tile(m.weight, maps.weight, m.weight_full, 0, 0, h);
    tile::PipelineState<kStages> at;
    for (int t = split; t < p.tiles; t += p.splits, at.advance()) {
      auto& stage = m.stages[at.stage];
      tile::Barrier& full = m.full[at.stage];
      m.empty[at.stage].wait(at.parity() ^ 1);
      full.arrive_expect(sizeof(stage));
      tile::load_tile(stage.dy, maps.dy, full, 0, t * R, h);  // beyond the last token: zero
      tile::load_tile(stage.x, maps.x, full, 0, t * R, h);
    }
  }
  // The calling warp has read the stage.
  __device__ void release(int stage) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) m.empty[stage].arrive();
  }

  __device__ void make_dx() {
    const bool adds = p.write_dx == Write::accumulate;
    const auto weight = tile::along_rows(m.weight);
    m.weight_full.wait(0);
    tile::PipelineState<kStages> at;
    int buffer = 0;
    for (int t = split; t < p.tiles; t += p.splits, at.advance(), buffer ^= 1) {
      auto& out = m.dx[buffer];
      if (thread == 0) tile::wait_stores_read<1>();
      tile::barrier_sync<kGroup>(1);  // what was there before has left
      if (adds) fetch(out, t);
      m.full[at.stage].wait(at.parity());
      Accumulator<I> dx;
      tile::wgmma_fence();
      tile::multiply(dx, tile::along_columns(m.stages[at.stage].dy), weight);
      tile::wgmma_commit();
      tile::wgmma_wait<0>(dx);
      release(at.stage);
      if (adds) add(dx, out);
      tile::store_rounded(dx, out, 0, 0, thread);
      tile::fence_async_shared();
      tile::barrier_sync<kGroup>(1);
      if (thread == 0) {
        tile::store_tile(maps.dx, out, 0, t * R, h);
        tile::commit_stores();
      }
    }
    if (thread == 0) tile::wait_stores_read<0>();
  }
  // What dx holds is on its way to where it is added to.
  __device__ void fetch(SharedTile<R, I>& out, int t) const {
    constexpr int kChunks = I / 8;
    const std::int64_t stride = static_cast<std::int64_t>(p.H) * I, first = static_cast<std::int64_t>(t) * R;
    const int rows = static_cast<int>(min(p.T - first, std::int64_t{R}));
    const bf16* from = p.dx + first * stride + h * I;
#pragma unroll
    for (int i = thread; i < R * kChunks; i += kGroup) {
      const int r = i / kChunks, c = i % kChunks * 8;
      tile::copy16_async(&out.chunk(r, c), from + (r < rows ? r : 0) * stride + c, r < rows);
    }
    tile::commit_copies();
  }
  __device__ void add(Accumulator<I>& dx, const SharedTile<R, I>& out) const {
    tile::wait_copies<0>();
    tile::barrier_sync<kGroup>(1);
#pragma unroll
    for (int i = 0; i < dx.kSize; i += 2) {
      const int r = Accumulator<I>::row(thread, i), c = Accumulator<I>::column(thread, i);
      const float2 before = tile::unpack(*reinterpret_cast<const std::uint32_t*>(&out.at(r, c)));
      dx.x[i] += before.x;
      dx.x[i + 1] += before.y;
    }
    __syncwarp();  // a warp has rows of its own
  }

  __device__ void make_dweight() {
    constexpr int kHalves = O / 64;
    Accumulator<I> sum[kHalves];
#pragma unroll
    for (auto& half : sum) half.fill(0.0f);
    tile::PipelineState<kStages> at;
    for (int t = split; t < p.tiles; t += p.splits, at.advance()) {
      m.full[at.stage].wait(at.parity());
      const auto dy = tile::along_rows(m.stages[at.stage].dy);
      const auto x = tile::along_rows(m.stages[at.stage].x);
#pragma unroll
      for (auto& half : sum) tile::detail::pin(half);
      tile::wgmma_fence();
#pragma unroll
      for (int half = 0; half < kHalves; ++half) tile::multiply_add(sum[half], dy.template part_at<64>(half), x);
      tile::wgmma_commit();
      tile::wgmma_wait<0>();
#pragma unroll
      for (auto& half : sum) tile::detail::pin(half);
      release(at.stage);
    }
    float* part = p.parts + (static_cast<std::int64_t>(split) * p.H + h) * O * I;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < sum[half].kSize; i += 2) {
        const int o = 64 * half + Accumulator<I>::row(thread, i), c = Accumulator<I>::column(thread, i);
        *reinterpret_cast<float2*>(part + o * I + c) = {sum[half].x[i], sum[half].x[i + 1]};
      }
    }
  }

  const Problem& p;
  const Maps<O>& maps;
  Memory& m;
  const int h, split, thread;
};

template <int I, int O>
__global__ void __launch_bounds__(kThreads, 1)
    gradients_kernel(const __grid_constant__ Problem p, const __grid_constant__ Maps<O> maps) {
#ifdef WEFT_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  Gradients<I, O>(p, maps, *reinterpret_cast<Shared<I, O>*>(memory)).run();
#else
  tile::unavailable();
#endif
}

// Four neighbouring elements a thread.
constexpr int kSumThreads = 128;
__global__ void __launch_bounds__(kSumThreads)
    add_splits_kernel(const float* parts, int splits, std::int64_t size, float* dweight, Write write) {
  const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * kSumThreads + threadIdx.x) * 4;
  if (at >= size) return;
  float sum[4] = {};
#pragma unroll 8
  for (int s = 0; s < splits; ++s) {
    float part[4];
    load_pack(parts + s * size + at, part);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += part[i];
  }
  store_pack(dweight + at, sum, write);
}

int tiles_of(const HeadLinearBackward& a) {
  return static_cast<int>((a.T + R - 1) / R);
}
// A function of the shape alone, like the order of the sums.
int splits_of(const HeadLinearBackward& a) {
  constexpr int kFewestTiles = 2;
  return static_cast<int>(
      std::clamp<std::int64_t>(tiles_of(a) / kFewestTiles, 1, std::max<std::int64_t>(1, kBlocks / a.H)));
}

template <int I, int O>
void launch_kernel(const HeadLinearBackward& a, const Problem& p, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared<I, O>);
  static_assert(kBytes <= 227 * 1024, "fits into shared memory");
  const auto kernel = gradients_kernel<I, O>;
  [[maybe_unused]] static const bool allowed = [&] {
    WEFT_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    return true;
  }();
  const Maps<O> maps{tile::make_head_map<R>(a.x, a.T, a.H, I), tile::make_head_map<R>(a.dy, a.T, a.H, O),
                     tile::make_head_map<R>(a.dx, a.T, a.H, I),
                     tile::make_tile_map<O>(tile::TensorView<3>{a.weight, {I, O, a.H}, {1, I, O * I}})};
  kernel<<<static_cast<unsigned>(p.H * p.splits), kThreads, kBytes, stream>>>(p, maps);
  WEFT_CHECK_LAUNCH();
}

}  // namespace

bool head_linear_gradients_fit(const HeadLinearBackward& a) {
  const auto fits = [](std::int64_t width) { return width == 64 || width == 128; };
  const auto aligned = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; };
  return a.dtype == DType::bf16 && fits(a.I) && fits(a.O) && a.T > 0 && a.H > 0 && a.dx != nullptr &&
         a.dweight != nullptr && aligned(a.x) && aligned(a.weight) && aligned(a.dy) && aligned(a.dx) &&
         aligned(a.dweight) && hopper_kernels();
}

std::size_t head_linear_gradients_workspace(const HeadLinearBackward& a) {
  return static_cast<std::size_t>(splits_of(a) * a.H * a.O * a.I) * sizeof(float);
}

void head_linear_gradients(const HeadLinearBackward& a, const Launch& launch) {
  const cudaStream_t stream = cuda_stream(launch.stream);
  const Problem p{.T = a.T,
                  .H = static_cast<int>(a.H),
                  .tiles = tiles_of(a),
                  .splits = splits_of(a),
                  .dx = static_cast<bf16*>(a.dx),
                  .write_dx = a.write_dx,
                  .parts = static_cast<float*>(launch.workspace)};
  if (a.I == 128) {
    a.O == 128 ? launch_kernel<128, 128>(a, p, stream) : launch_kernel<128, 64>(a, p, stream);
  } else {
    a.O == 128 ? launch_kernel<64, 128>(a, p, stream) : launch_kernel<64, 64>(a, p, stream);
  }
  const std::int64_t size = a.H * a.O * a.I;
  add_splits_kernel<<<static_cast<unsigned>((size / 4 + kSumThreads - 1) / kSumThreads), kSumThreads, 0, stream>>>(
      p.parts, p.splits, size, static_cast<float*>(a.dweight), a.write_dweight);
  WEFT_CHECK_LAUNCH();
}

}  // namespace weft
