// CUDA kernels of rms_norm.h: one pass over the rows, held in registers.
#include "autograd/cuda/row_reduce.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/ops/rms_norm/rms_norm.h"

namespace weft {
namespace {

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads) rms_norm_forward_kernel(RmsNormForward a) {
  constexpr int kN = Tile::kN;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * Tile::kRows + Tile::row_of_block();
  const Tile tile(i < a.R ? a.D : 0);
  const std::int64_t at = i * a.D;
  typename Tile::template Held<T> x;
  tile.load(static_cast<const T*>(a.x) + at, x);
  if (a.residual != nullptr) {
    typename Tile::template Held<T> residual;
    tile.load(static_cast<const T*>(a.residual) + at, residual);
#pragma unroll
    for (int p = 0; p < Tile::kPacks; ++p) {
      // What is normalised is the sum as it is stored, from which the backward starts.
      float sum[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) sum[c] = x[p][c] + residual[p][c];
      x[p] = HeldPack<T, kN>::rounded(sum);
      if (tile.holds(p)) x[p].store(static_cast<T*>(a.sum) + at + tile.column(p));
    }
  }
  float squares = 0.0f;
#pragma unroll
  for (int p = 0; p < Tile::kPacks; ++p) {
#pragma unroll
    for (int c = 0; c < kN; ++c) squares += x[p][c] * x[p][c];
  }
  squares = Tile::sum(squares);
  const float r = rsqrtf(squares / static_cast<float>(a.D) + static_cast<float>(a.eps));
  if (tile.leads()) static_cast<float*>(a.rstd)[i] = r;
  const std::int64_t head = a.H == 1 ? 0 : static_cast<std::uint32_t>(i) % static_cast<std::uint32_t>(a.H);
  const float* weight = static_cast<const float*>(a.weight) + head * a.D;
#pragma unroll
  for (int p = 0; p < Tile::kPacks; ++p) {
    if (!tile.holds(p)) continue;
    float y[kN];
    load_pack(weight + tile.column(p), y);
#pragma unroll
    for (int c = 0; c < kN; ++c) y[c] *= x[p][c] * r;
    store_pack(static_cast<T*>(a.y) + at + tile.column(p), y);
  }
}

// Groups of threads walk rows of one head each, token by token, and keep what those add to the weight's gradient.
struct Walk {
  std::int64_t tokens;  // R / H
  std::int64_t slots;   // groups of each head
  std::int64_t blocks;
  std::int64_t lines;  // of the weight's gradient
};

// The number of groups depends on the shape alone; it is what an H100 holds at once.
template <class Tile>
Walk walk(std::int64_t R, std::int64_t H) {
  constexpr std::int64_t kBlocks = 132 * Tile::kResidentBlocks;
  constexpr std::int64_t kFewestTokens = 4;
  Walk w{.tokens = R / H, .slots = 0, .blocks = 0, .lines = 0};
  w.slots = std::clamp<std::int64_t>(kBlocks * Tile::kRows / H, 1,
                                     std::max<std::int64_t>(1, (w.tokens + kFewestTokens - 1) / kFewestTokens));
  w.blocks = (w.slots * H + Tile::kRows - 1) / Tile::kRows;
  w.lines = H == 1 ? w.blocks : w.slots;
  return w;
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResidentBlocks)
    rms_norm_backward_kernel(RmsNormBackward a, Walk w, float* lines) {
  constexpr int kN = Tile::kN, kPacks = Tile::kPacks;
  using Packs = typename Tile::template Held<T>;
  const std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * Tile::kRows + Tile::row_of_block();
  const std::int64_t slot = group / a.H, head = group % a.H;
  const bool present = slot < w.slots;
  const Tile whole(present ? a.D : 0);
  const float per_width = 1.0f / static_cast<float>(a.D);
  float weight[kPacks][kN] = {}, dweight[kPacks][kN] = {};
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    if (whole.holds(p)) load_pack(static_cast<const float*>(a.weight) + head * a.D + whole.column(p), weight[p]);
  }

  // A row is asked for while the one before it is worked on.
  Packs next_x, next_dy, next_dsum;
  float next_r = 0.0f;
  const auto fetch = [&](std::int64_t t) {
    const bool valid = present && t < w.tokens;
    const Tile tile(valid ? a.D : 0);
    const std::int64_t i = t * a.H + head, at = i * a.D;
    tile.load(static_cast<const T*>(a.x) + at, next_x);
    tile.load(static_cast<const T*>(a.dy) + at, next_dy);
    if (a.dsum != nullptr) tile.load(static_cast<const T*>(a.dsum) + at, next_dsum);
    next_r = valid ? static_cast<const float*>(a.rstd)[i] : 0.0f;
  };
  fetch(slot);
  // Every thread of a block takes the same number of turns: sums over a row are joint work.
  for (std::int64_t first = 0; first < w.tokens; first += w.slots) {
    const std::int64_t t = first + slot;
    const Tile tile(present && t < w.tokens ? a.D : 0);
    const std::int64_t at = (t * a.H + head) * a.D;
    Packs x, dy, dsum;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      x[p] = next_x[p];
      dy[p] = next_dy[p];
      dsum[p] = next_dsum[p];
    }
    const float r = next_r;
    fetch(t + w.slots);
    float dot = 0.0f;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        const float product = x[p][c] * dy[p][c];
        dot = fmaf(product, weight[p][c], dot);
        dweight[p][c] = fmaf(product, r, dweight[p][c]);
      }
    }
    if (a.dx == nullptr) continue;
    const float k = Tile::sum(dot) * r * r * per_width;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (!tile.holds(p)) continue;
      float dx[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        dx[c] = r * (dy[p][c] * weight[p][c] - x[p][c] * k);
        if (a.dsum != nullptr) dx[c] += dsum[p][c];
      }
      store_pack(static_cast<T*>(a.dx) + at + tile.column(p), dx, a.write_dx);
    }
  }
  if (lines == nullptr) return;
  if (a.H > 1 || Tile::kRows == 1) {
    float* line = lines + (slot * a.H + head) * a.D;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (whole.holds(p)) store_pack(line + whole.column(p), dweight[p]);
    }
    return;
  }
  // One head: the groups of a block make one line, in their order.
  __shared__ float sums[Tile::kRows == 1 ? 1 : Tile::kWidth];
  for (int turn = 0; turn < Tile::kRows; ++turn) {
    if (turn == Tile::row_of_block()) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          float& sum = sums[Tile::column(p) + c];
          sum = turn == 0 ? dweight[p][c] : sum + dweight[p][c];
        }
      }
    }
    __syncthreads();
  }
  for (int c = threadIdx.x; c < a.D; c += Tile::kThreads) lines[blockIdx.x * a.D + c] = sums[c];
}

template <class T>
bool fits(const void* data, std::int64_t D) {
  return packs_fit<16 / sizeof(T)>(static_cast<const T*>(data), D);
}

template <class T>
bool aligned(const RmsNormBackward& a) {
  return fits<T>(a.x, a.D) && fits<T>(a.dy, a.D) && fits<T>(a.dsum, a.D) && fits<T>(a.dx, a.D) &&
         packs_fit<16 / sizeof(T)>(static_cast<const float*>(a.weight), a.D);
}

}  // namespace

void rms_norm_forward_cuda(const RmsNormForward& a, const Launch& launch) {
  if (a.R == 0) return;
  dispatch_cuda(a.dtype, "rms_norm", [&]<class T>() {
    const bool fit = fits<T>(a.x, a.D) && fits<T>(a.residual, a.D) && fits<T>(a.sum, a.D) && fits<T>(a.y, a.D) &&
                     packs_fit<16 / sizeof(T)>(static_cast<const float*>(a.weight), a.D);
    dispatch_row_tile<T>("rms_norm", a.D, fit, [&]<class Tile>() {
      const auto blocks = static_cast<unsigned>((a.R + Tile::kRows - 1) / Tile::kRows);
      rms_norm_forward_kernel<T, Tile><<<blocks, Tile::kThreads, 0, cuda_stream(launch.stream)>>>(a);
    });
  });
  WEFT_CHECK_LAUNCH();
}

std::size_t rms_norm_backward_cuda_workspace(const RmsNormBackward& a) {
  if (a.dweight == nullptr) return 0;
  std::int64_t lines = 0;
  dispatch_cuda(a.dtype, "rms_norm", [&]<class T>() {
    dispatch_row_tile<T>("rms_norm", a.D, aligned<T>(a), [&]<class Tile>() { lines = walk<Tile>(a.R, a.H).lines; });
  });
  return static_cast<std::size_t>(lines * a.H * a.D) * sizeof(float);
}

void rms_norm_backward_cuda(const RmsNormBackward& a, const Launch& launch) {
  if (a.D == 0) return;
  auto* lines = a.dweight == nullptr ? nullptr : static_cast<float*>(launch.workspace);
  std::int64_t count = 0;
  dispatch_cuda(a.dtype, "rms_norm", [&]<class T>() {
    dispatch_row_tile<T>("rms_norm", a.D, aligned<T>(a), [&]<class Tile>() {
      const Walk w = walk<Tile>(a.R, a.H);
      count = w.lines;
      rms_norm_backward_kernel<T, Tile>
          <<<static_cast<unsigned>(w.blocks), Tile::kThreads, 0, cuda_stream(launch.stream)>>>(a, w, lines);
    });
  });
  WEFT_CHECK_LAUNCH();
  if (lines == nullptr) return;
  add_lines(launch, lines, count, a.H * a.D, PutTotal{static_cast<float*>(a.dweight), a.write_dweight});
}

}  // namespace weft
