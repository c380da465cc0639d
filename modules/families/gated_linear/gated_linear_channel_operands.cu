// What a chunk with decays per key channel makes before the states are known: decayed queries and keys, and the scores
// of its pairs. Parallel over chunks and heads.
#include "autograd/cuda/cuda_check.cuh"
#include "modules/families/gated_linear/gated_linear_channels.cuh"

namespace weft::channels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

template <int D>
struct Shared {
  LevelTiles<D> tiles;
  BlockDecays<D> decays;
};

// One block [16 x 16] of the scores, by a warp; blocks above the diagonal are zero.
template <int D>
__device__ __forceinline__ void score_block(const LevelTiles<D>& tiles, int I, int J, bool transposed, bf16* P) {
  FragmentC sums[2] = {};
  if (J <= I) {
    constexpr int kLd = LevelTiles<D>::kLd;
    const bool middle = I >= 2 && J < 2;
    const SharedMatrix rows(I == J ? tiles.diagonal[I][0] : middle ? tiles.q32 : tiles.q16, kLd);
    const SharedMatrix columns(I == J ? tiles.diagonal[I][1] : middle ? tiles.k32 : tiles.k16, kLd);
    const int row = I == J ? 0 : middle ? (I - 2) * kBlock : I / 2 * kBlock;
    const int column = I == J ? 0 : middle ? J * kBlock : J / 2 * kBlock;
#pragma unroll
    for (int x = 0; x < D; x += 16) {
      const FragmentA a = load_a(rows, row, x);
      FragmentB b[2];
      load_b_transposed(b, columns, column, x);
      mma(sums[0], a, b[0]);
      mma(sums[1], a, b[1]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      const int i = I * kBlock + fragment_row(e), j = J * kBlock + half * 8 + fragment_column();
      const float2 pair{i >= j ? sums[half].x[e] : 0.0f, i >= j + 1 ? sums[half].x[e + 1] : 0.0f};
      if (transposed) {
        P[j * kC + i] = __float2bfloat16_rn(pair.x);
        P[(j + 1) * kC + i] = __float2bfloat16_rn(pair.y);
      } else {
        store_pair(&P[i * kC + j], pair);
      }
    }
  }
}

// The pairs of a block whose decays have no common reference, one by one, by two warps.
template <int D>
__device__ void single_pairs(const ChunkRows<D>& chunk, float scale, const float* sums, int block, int part,
                             bool transposed, bf16* P) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int pair = part; pair < kBlock * kBlock; pair += 2) {
    const int r = pair / kBlock, c = pair % kBlock, i = block * kBlock + r, j = block * kBlock + c;
    float sum = 0.0f;
    if (c <= r && i < chunk.n) {
      for (int x = lane; x < D; x += 32) {
        const float decay = tile::exp2_fast(sums[r * D + x] - sums[c * D + x]);
        sum += tile::to_float(chunk.q[i * chunk.stride + x]) * tile::to_float(chunk.k[j * chunk.stride + x]) * decay;
      }
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    if (lane == 0) P[transposed ? j * kC + i : i * kC + j] = __float2bfloat16_rn(scale * sum);
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 2) operands_kernel(GatedLinearProblem p, bool transposed, Records to) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared<D>& shared = *reinterpret_cast<Shared<D>*>(memory);
  const Chunk entry = p.chunks[blockIdx.x];
  if (entry.begin >= entry.end) return;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const ChunkRows<D> chunk(p, entry, static_cast<int>(blockIdx.y));
  const std::int64_t record = blockIdx.x * p.H + blockIdx.y;
  const auto scale = static_cast<float>(p.scale);
  if (thread < kBlocks) shared.decays.unbounded[thread] = 0;
  __syncthreads();
  make_levels<D, kC * D / 2 / kThreads>(chunk, scale, shared.tiles, shared.decays, nullptr, 0,
                                        to.q_entry + record * kC * D, to.k_exit + record * kC * D);
  __syncthreads();
  if (thread < D) {
    float sum = 0.0f;
    for (int b = 0; b < kBlocks; ++b) sum += shared.decays.log_total[b][thread];
    to.totals[record * D + thread] = tile::exp2_fast(sum);
  }
  bf16* P = to.P + record * kC * kC;
#pragma unroll 1
  for (int index = warp; index < kBlocks * kBlocks; index += kWarps) {
    const int I = index / kBlocks, J = (index + I) % kBlocks;  // a warp has blocks on both sides of the diagonal
    if (I != J || shared.decays.unbounded[I] == 0) score_block(shared.tiles, I, J, transposed, P);
  }
  if (shared.decays.unbounded[warp / 2] != 0) {
    single_pairs(chunk, scale, shared.tiles.sums(warp / 2), warp / 2, warp % 2, transposed, P);
  }
}

template <int D>
void launch(const GatedLinearProblem& p, bool transposed, const Records& to, cudaStream_t stream) {
  const auto kernel = operands_kernel<D>;
  WEFT_CUDA_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<D>)));
  const dim3 grid(static_cast<unsigned>(p.chunk_count), static_cast<unsigned>(p.H));
  kernel<<<grid, kThreads, sizeof(Shared<D>), stream>>>(p, transposed, to);
  WEFT_CHECK_LAUNCH();
}

}  // namespace

void make_operands(const GatedLinearProblem& p, bool transposed, const Records& to, const Launch& launch_on) {
  if (p.chunk_count == 0 || p.H == 0) return;
  cudaStream_t stream = cuda_stream(launch_on.stream);
  p.d_k == 128 ? launch<128>(p, transposed, to, stream) : launch<64>(p, transposed, to, stream);
}

}  // namespace weft::channels
