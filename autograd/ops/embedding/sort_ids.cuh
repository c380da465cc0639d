// Tokens in the order of their ids, and of their own among equal ones: a radix sort for the few bits and the moderate
// numbers of a row's tokens, in one kernel for each digit and one before them.
//
// T tokens, cut into at most kTiles tiles of whole chunks. Blocks own a tile. Offsets of a tile's digits follow from
// the histograms of all tiles, which each block adds up for itself.
#pragma once

#include <algorithm>
#include <bit>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/early_launch.cuh"

namespace weft {

inline constexpr int kDigitBits = 9, kDigits = 1 << kDigitBits;
inline constexpr int kChunk = 1024;  // tokens that a block sorts at once
static_assert(kChunk == 2 * kDigits);
inline constexpr std::int64_t kTiles = 64;

struct SortedIds {
  std::int32_t* ids;    // [T]
  std::int32_t* order;  // [T] where each of them stood
};

// One digit's pass. histograms [tiles, kDigits] of the tokens as they come.
struct DigitPass {
  std::int64_t T, tile;  // tokens, those of a tile
  int tiles, shift;
  const std::int32_t* from_ids;
  const std::int32_t* from_order;  // null: they come in order
  SortedIds to;
  const std::int32_t* histograms;
  std::int32_t* next_histograms;  // of the next digit, as this pass leaves the tokens; null after the last one
};

__device__ inline int digit_of(std::int32_t id, int shift) {
  return static_cast<int>((static_cast<std::uint32_t>(id) >> shift) % kDigits);
}

// histograms [passes, tiles, kDigits]: those of the first digit, and zeros.
__global__ void __launch_bounds__(kChunk) digit_histograms_kernel(std::int64_t T, std::int64_t tile, int passes,
                                                                  const std::int32_t* ids, std::int32_t* histograms) {
  let_next_kernel_start();
  __shared__ std::int32_t counts[kDigits];
  if (threadIdx.x < kDigits) counts[threadIdx.x] = 0;
  __syncthreads();
  const std::int64_t end = min((blockIdx.x + 1) * tile, T);
  for (std::int64_t t = blockIdx.x * tile + threadIdx.x; t < end; t += kChunk) {
    atomicAdd(&counts[digit_of(ids[t], 0)], 1);
  }
  __syncthreads();
  if (threadIdx.x >= kDigits) return;
  for (int pass = 0; pass < passes; ++pass) {
    histograms[(pass * gridDim.x + blockIdx.x) * kDigits + threadIdx.x] = pass == 0 ? counts[threadIdx.x] : 0;
  }
}

__global__ void __launch_bounds__(kChunk) sort_digit_kernel(DigitPass a) {
  constexpr int kWarps = kChunk / 32;
  __shared__ std::int32_t offsets[kDigits];  // where the tile's next token of a digit goes
  __shared__ std::int32_t warp_sums[kDigits / 32];
  alignas(4) __shared__ std::uint16_t counts[kWarps][kDigits];  // of a chunk; then of the warps before
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  let_next_kernel_start();
  wait_for_earlier_kernels();

  // The thread's next token: of the first chunk, it is on its way while offsets are found.
  const std::int64_t begin = blockIdx.x * a.tile, end = min(begin + a.tile, a.T);
  std::int32_t id = 0, token = 0;
  const auto fetch = [&](std::int64_t t) {
    if (t >= end) return;
    id = a.from_ids[t];
    token = a.from_order == nullptr ? static_cast<std::int32_t>(t) : a.from_order[t];
  };
  fetch(begin + thread);

  // Of digit `thread`, in earlier tiles and in all. Two threads share out the tiles of a digit.
  int before = 0, total = 0;
#pragma unroll 16
  for (int t = thread / kDigits; t < a.tiles; t += kChunk / kDigits) {
    const int n = a.histograms[t * kDigits + thread % kDigits];
    total += n;
    before += t < static_cast<int>(blockIdx.x) ? n : 0;
  }
  __shared__ std::int32_t odd_before[kDigits], odd_total[kDigits];
  if (thread >= kDigits) odd_before[thread - kDigits] = before, odd_total[thread - kDigits] = total;
  __syncthreads();
  if (thread < kDigits) {
    before += odd_before[thread];
    total += odd_total[thread];
    int sum = total;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(0xffffffffu, sum, step);
      sum += lane >= step ? left : 0;
    }
    if (lane == 31) warp_sums[warp] = sum;
    before += sum - total;
  }
  __syncthreads();
  if (thread < kDigits) {
    for (int w = 0; w < warp; ++w) before += warp_sums[w];
    offsets[thread] = before;
  }

  for (std::int64_t first = begin; first < end; first += kChunk) {
    for (int i = thread; i < kWarps * kDigits / 2; i += kChunk) reinterpret_cast<std::uint32_t*>(counts)[i] = 0;
    const bool valid = first + thread < end;
    const int digit = valid ? digit_of(id, a.shift) : kDigits;
    const unsigned peers = __match_any_sync(0xffffffffu, digit);
    const int rank = __popc(peers & ((1u << lane) - 1));
    __syncthreads();
    if (valid && rank == 0) counts[warp][digit] = static_cast<std::uint16_t>(__popc(peers));
    __syncthreads();
    int chunk_total = 0;
    if (thread < kDigits) {
#pragma unroll 8
      for (int w = 0; w < kWarps; ++w) {
        const int n = counts[w][thread];
        counts[w][thread] = static_cast<std::uint16_t>(chunk_total);
        chunk_total += n;
      }
    }
    __syncthreads();
    if (valid) {
      const std::int64_t to = offsets[digit] + counts[warp][digit] + rank;
      a.to.ids[to] = id;
      a.to.order[to] = token;
      if (a.next_histograms != nullptr) {
        atomicAdd(&a.next_histograms[to / a.tile * kDigits + digit_of(id, a.shift + kDigitBits)], 1);
      }
    }
    fetch(first + kChunk + thread);
    __syncthreads();
    if (thread < kDigits) offsets[thread] += chunk_total;
  }
}

// The sort of T ids in [0, V).
class IdSort {
 public:
  IdSort(std::int64_t T, std::int64_t V) : T_(T) {
    const int bits = std::bit_width(static_cast<std::uint64_t>(std::max<std::int64_t>(V - 1, 1)));
    passes_ = (bits + kDigitBits - 1) / kDigitBits;
    const std::int64_t chunks = (T + kChunk - 1) / kChunk;
    tile_ = (chunks + kTiles - 1) / kTiles * kChunk;
    tiles_ = (T + tile_ - 1) / tile_;
  }
  std::size_t bytes() const { return histogram_bytes() + 2 * static_cast<std::size_t>(T_) * sizeof(std::int32_t); }

  // memory [bytes()]: histograms, then ids and order of every other pass. The next kernel may be launched early.
  void run(const std::int32_t* tokens, const SortedIds& to, void* memory, cudaStream_t stream) const {
    auto* histograms = static_cast<std::int32_t*>(memory);
    auto* const other = reinterpret_cast<std::int32_t*>(static_cast<std::byte*>(memory) + histogram_bytes());
    const auto blocks = static_cast<unsigned>(tiles_);
    digit_histograms_kernel<<<blocks, kChunk, 0, stream>>>(T_, tile_, passes_, tokens, histograms);
    WEFT_CHECK_LAUNCH();
    SortedIds from{.ids = nullptr, .order = nullptr};
    for (int pass = 0; pass < passes_; ++pass, histograms += tiles_ * kDigits) {
      const bool last = pass + 1 == passes_;
      const SortedIds into = (passes_ - pass) % 2 == 1 ? to : SortedIds{.ids = other, .order = other + T_};
      launch_early(sort_digit_kernel, blocks, kChunk, stream,
                   DigitPass{.T = T_,
                             .tile = tile_,
                             .tiles = static_cast<int>(tiles_),
                             .shift = pass * kDigitBits,
                             .from_ids = pass == 0 ? tokens : from.ids,
                             .from_order = from.order,
                             .to = into,
                             .histograms = histograms,
                             .next_histograms = last ? nullptr : histograms + tiles_ * kDigits});
      from = into;
    }
  }

 private:
  std::size_t histogram_bytes() const {
    return static_cast<std::size_t>(passes_ * tiles_ * kDigits) * sizeof(std::int32_t);
  }

  std::int64_t T_, tile_ = 0, tiles_ = 0;
  int passes_ = 0;
};

}  // namespace weft
