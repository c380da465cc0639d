// The general CUDA kernels of gated_linear.h: every width, element type, decay and feature map, in fp32 on the ordinary
// pipeline. Chunks of C = 64 tokens: what each adds to the state, the states between them, then outputs or gradients of
// all chunks at once. README.md derives the chunked forms.
//
// c chunk of the table, h head, i, j tokens of the chunk (n of them), x key channel, y value channel. G_i is the
// inclusive sum of the log decays of the chunk, in fp64 because one fast gate makes sums large whose differences are
// small.
#include "autograd/cuda/cuda_check.cuh"
#include "modules/families/gated_linear/gated_linear_cuda.h"
#include "modules/families/gated_linear/gated_linear_device.cuh"
#include "modules/families/gated_linear/gated_linear_features.cuh"

namespace weft::general {
namespace {

constexpr int C = static_cast<int>(kChunk);
constexpr int kThreads = 256;  // 16 x 16, each with 4 x 4 elements of a 64 x 64 tile
constexpr int kSlice = 16;     // of the contraction

struct Problem {
  DecayKind kind;
  std::int64_t N, H, d_k, d_v;
  std::int64_t heads_per_key;
  float scale;
  DeviceRows q, k, v, d_o;
  const float* g;
  const double* sums;  // G: [T, H] or [T, H, d_k]; unused for a constant decay
  const std::int32_t* cu_seqlens;
  const Chunk* chunks;
  const std::int32_t* document_offset;
  float *S, *dS;   // [chunks, H, d_k, d_v]
  float *P, *dP;   // [chunks, H, C, C]
  float *ab, *cd;  // [T, H, d_k] what the gradient of the decay sums up
  double* pairs;   // [T, H] the same of the pairs inside a chunk, for one decay a token

  __device__ double G(const Chunk& chunk, int i, std::int64_t h, std::int64_t x) const {
    if (kind == DecayKind::constant) return (i + 1) * static_cast<double>(g[h]);
    const std::int64_t row = (chunk.begin + i) * H + h;
    return kind == DecayKind::scalar ? sums[row] : sums[row * d_k + x];
  }
  __device__ double total(const Chunk& chunk, std::int64_t h, std::int64_t x) const {
    return G(chunk, chunk.end - chunk.begin - 1, h, x);
  }
  __device__ float between(const Chunk& chunk, int i, int j, std::int64_t h, std::int64_t x) const {
    return expf(static_cast<float>(G(chunk, i, h, x) - G(chunk, j, h, x)));
  }
  __device__ std::int64_t state(std::int64_t c, std::int64_t h) const { return (c * H + h) * d_k * d_v; }
  __device__ std::int64_t scores(std::int64_t c, std::int64_t h) const { return (c * H + h) * C * C; }
};

// Which index of an operand is contiguous in memory: neighbouring threads load along it.
enum class Along : std::uint8_t { contraction, tile };

// acc[r][s] += sum over k < K of a(i, k) b(k, j) w(i, j, k), i = ty + 16 r, j = tx + 16 s. a and b return 0 where there
// is no element.
struct Tile {
  float acc[4][4] = {};

  template <Along kA, Along kB, class A, class B, class W>
  __device__ void add(std::int64_t K, A&& a, B&& b, W&& w) {
    __shared__ float As[kSlice][64 + 1], Bs[kSlice][64 + 1];
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    for (std::int64_t k0 = 0; k0 < K; k0 += kSlice) {
      __syncthreads();
      for (int e = threadIdx.x; e < kSlice * 64; e += kThreads) {
        const int kA_at = kA == Along::tile ? e / 64 : e % kSlice, i = kA == Along::tile ? e % 64 : e / kSlice;
        const int kB_at = kB == Along::tile ? e / 64 : e % kSlice, j = kB == Along::tile ? e % 64 : e / kSlice;
        As[kA_at][i] = k0 + kA_at < K ? a(i, k0 + kA_at) : 0.0f;
        Bs[kB_at][j] = k0 + kB_at < K ? b(k0 + kB_at, j) : 0.0f;
      }
      __syncthreads();
      for (int k = 0; k < kSlice && k0 + k < K; ++k) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int s = 0; s < 4; ++s) {
            acc[r][s] = fmaf(As[k][ty + 16 * r] * w(ty + 16 * r, tx + 16 * s, k0 + k), Bs[k][tx + 16 * s], acc[r][s]);
          }
        }
      }
    }
  }
  template <Along kA, Along kB, class A, class B>
  __device__ void add(std::int64_t K, A&& a, B&& b) {
    add<kA, kB>(K, a, b, [](int, int, std::int64_t) { return 1.0f; });
  }
  template <class F>
  __device__ void for_each(F&& f) {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int s = 0; s < 4; ++s) f(ty + 16 * r, tx + 16 * s, acc[r][s]);
    }
  }
};

// Where a block of the grid (chunk, head, tile) works.
struct Place {
  std::int64_t c, h, hk;
  Chunk chunk;
  int n;

  __device__ explicit Place(const Problem& p)
      : c(blockIdx.x), h(blockIdx.y), hk(h / p.heads_per_key), chunk(p.chunks[c]), n(chunk.end - chunk.begin) {}
};

// G of every token: a thread for each chunk, head and channel.
__global__ void sum_decays(Problem p, std::int64_t channels, double* sums) {
  const Chunk chunk = p.chunks[blockIdx.x];
  const std::int64_t width = p.H * channels;
  for (std::int64_t x = threadIdx.x + blockIdx.y * blockDim.x; x < width; x += gridDim.y * blockDim.x) {
    double G = 0.0;
    for (std::int64_t t = chunk.begin; t < chunk.end; ++t) sums[t * width + x] = G += p.g[t * width + x];
  }
}

// What a chunk adds to the state, U = (K e^{G_n - G})^T V, or with kGradient to its gradient, s (Q e^G)^T dO.
template <bool kGradient>
__global__ void __launch_bounds__(kThreads) contributions(Problem p, float* U) {
  const Place at(p);
  if (at.n <= 0) return;
  const std::int64_t tiles_y = (p.d_v + 63) / 64;
  const std::int64_t x0 = blockIdx.z / tiles_y * 64, y0 = blockIdx.z % tiles_y * 64;
  Tile tile;
  tile.add<Along::tile, Along::tile>(
      at.n,
      [&](int i, std::int64_t k) {
        const std::int64_t x = x0 + i;
        if (x >= p.d_k) return 0.0f;
        const int t = static_cast<int>(k);
        const double G = p.G(at.chunk, t, at.h, x);
        return kGradient
                   ? p.scale * p.q.at(at.chunk.begin + t, at.hk, x) * expf(static_cast<float>(G))
                   : p.k.at(at.chunk.begin + t, at.hk, x) * expf(static_cast<float>(p.total(at.chunk, at.h, x) - G));
      },
      [&](std::int64_t k, int j) {
        if (y0 + j >= p.d_v) return 0.0f;
        return (kGradient ? p.d_o : p.v).at(at.chunk.begin + k, at.h, y0 + j);
      });
  tile.for_each([&](int i, int j, float value) {
    if (x0 + i < p.d_k && y0 + j < p.d_v) U[p.state(at.c, at.h) + (x0 + i) * p.d_v + y0 + j] = value;
  });
}

// A thread for each element of a state: `states` holds what the chunks add and becomes the state at their entry, or
// with kReverse the gradient of the state at their exit. `from` may be null (zero), `to` too (not wanted).
template <bool kReverse>
__global__ void scan(Problem p, float* states, const float* from, float* to, Write write) {
  const std::int64_t size = p.d_k * p.d_v;
  const std::int64_t blocks = (size + blockDim.x - 1) / blockDim.x;
  const std::int64_t n = blockIdx.x / blocks, h = blockIdx.y;
  const std::int64_t e = blockIdx.x % blocks * blockDim.x + threadIdx.x;
  if (e >= size) return;
  const std::int64_t boundary = (n * p.H + h) * size + e;
  float S = from == nullptr ? 0.0f : from[boundary];
  const std::int32_t first = p.document_offset[n], last = p.document_offset[n + 1];
  const bool any = p.cu_seqlens[n] < p.cu_seqlens[n + 1];
  for (std::int32_t i = first; any && i < last; ++i) {
    const std::int32_t c = kReverse ? first + last - 1 - i : i;
    float& at = states[p.state(c, h) + e];
    const float before = S;
    S = DeviceStateDecay(static_cast<float>(p.total(p.chunks[c], h, e / p.d_v))).advance(S, at);
    at = before;
  }
  if (to != nullptr) to[boundary] = write == Write::accumulate ? to[boundary] + S : S;
}

// What pairs j < i of a chunk give to the gradient of its decays: each is rounded once, added at i and taken away at j,
// so that it is exactly nothing for the tokens on one side of both. value(r, s) is <dO_i, V_j>, P has the rest.
template <class Value>
__device__ void add_pairs(const Problem& p, const Place& at, Value&& value) {
  __shared__ double rows[C], columns[kThreads / 32][C];
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, warp = threadIdx.x / 32;
  const float* P = p.P + p.scores(at.c, at.h);
  double column[4] = {};
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int i = ty + 16 * r;
    double row = 0.0;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const int j = tx + 16 * s;
      const float pair = j < i && i < at.n ? P[i * C + j] * value(r, s) : 0.0f;
      row += pair;
      column[s] += pair;
    }
    for (int d = 8; d > 0; d /= 2) row += __shfl_xor_sync(0xffffffffu, row, d);
    if (tx == 0) rows[i] = row;
  }
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    column[s] += __shfl_xor_sync(0xffffffffu, column[s], 16);
    if (threadIdx.x % 32 < 16) columns[warp][tx + 16 * s] = column[s];
  }
  __syncthreads();
  const int t = threadIdx.x;
  if (t >= at.n) return;
  double sum = rows[t];
  for (int w = 0; w < kThreads / 32; ++w) sum -= columns[w][t];
  p.pairs[(at.chunk.begin + t) * p.H + at.h] = sum;
}

// P = s sum_x Q_ix K_jx e^{G_ix - G_jx} for j <= i, or with kGradient s <dO_i, V_j>, which has the decay too unless it
// differs between channels.
template <bool kGradient>
__global__ void __launch_bounds__(kThreads) scores(Problem p, float* P) {
  const Place at(p);
  if (at.n <= 0) return;
  const DeviceRows a = kGradient ? p.d_o : p.q, b = kGradient ? p.v : p.k;
  const std::int64_t ha = kGradient ? at.h : at.hk;
  const auto left = [&](int i, std::int64_t x) { return i < at.n ? a.at(at.chunk.begin + i, ha, x) : 0.0f; };
  const auto right = [&](std::int64_t x, int j) { return j < at.n ? b.at(at.chunk.begin + j, ha, x) : 0.0f; };
  const bool per_channel = p.kind == DecayKind::vector;
  Tile tile;
  if (per_channel && !kGradient) {
    tile.add<Along::contraction, Along::contraction>(p.d_k, left, right, [&](int i, int j, std::int64_t x) {
      return j < i && i < at.n ? p.between(at.chunk, i, j, at.h, x) : 1.0f;
    });
  } else {
    tile.add<Along::contraction, Along::contraction>(kGradient ? p.d_v : p.d_k, left, right);
  }
  tile.for_each([&](int i, int j, float value) {
    if (i >= at.n) return;
    const float decay = per_channel || j >= i ? 1.0f : p.between(at.chunk, i, j, at.h, 0);
    P[p.scores(at.c, at.h) + i * C + j] = j <= i ? p.scale * value * decay : 0.0f;
  });
  if constexpr (kGradient) {
    if (p.pairs != nullptr) add_pairs(p, at, [&](int r, int s) { return tile.acc[r][s]; });
  }
}

// O = s (Q e^G) S + P V.
__global__ void __launch_bounds__(kThreads) outputs(Problem p, DeviceRows o) {
  const Place at(p);
  if (at.n <= 0) return;
  const std::int64_t y0 = blockIdx.z * 64;
  const float* S = p.S + p.state(at.c, at.h);
  const float* P = p.P + p.scores(at.c, at.h);
  Tile tile;
  tile.add<Along::contraction, Along::tile>(
      p.d_k,
      [&](int i, std::int64_t x) {
        if (i >= at.n) return 0.0f;
        return p.scale * p.q.at(at.chunk.begin + i, at.hk, x) * expf(static_cast<float>(p.G(at.chunk, i, at.h, x)));
      },
      [&](std::int64_t x, int j) { return y0 + j < p.d_v ? S[x * p.d_v + y0 + j] : 0.0f; });
  tile.add<Along::contraction, Along::tile>(
      at.n, [&](int i, std::int64_t j) { return i < at.n ? P[i * C + j] : 0.0f; },
      [&](std::int64_t t, int j) { return y0 + j < p.d_v ? p.v.at(at.chunk.begin + t, at.h, y0 + j) : 0.0f; });
  tile.for_each([&](int i, int j, float value) {
    if (i < at.n && y0 + j < p.d_v) o.put(at.chunk.begin + i, at.h, y0 + j, value, Write::overwrite);
  });
}

// dQ = s (dO S^T) e^G + sum_{j<=i} dP_ij K_j e^{G_i - G_j}; for the gradient of the decay, `ab` takes q dq without the
// pairs j = i, and without all pairs if `pairs` has them.
__global__ void __launch_bounds__(kThreads, 2) query_gradients(Problem p, DeviceRows dq, Write write) {
  const Place at(p);
  if (at.n <= 0) return;
  const std::int64_t x0 = blockIdx.z * 64;
  const float* S = p.S + p.state(at.c, at.h);
  const float* dP = p.dP + p.scores(at.c, at.h);
  Tile tile;
  tile.add<Along::contraction, Along::contraction>(
      p.d_v, [&](int i, std::int64_t y) { return i < at.n ? p.d_o.at(at.chunk.begin + i, at.h, y) : 0.0f; },
      [&](std::int64_t y, int j) { return x0 + j < p.d_k ? S[(x0 + j) * p.d_v + y] : 0.0f; });
  {
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const int i = ty + 16 * r;
        const std::int64_t x = x0 + tx + 16 * s;
        const bool inside = i < at.n && x < p.d_k;
        tile.acc[r][s] *= inside ? p.scale * expf(static_cast<float>(p.G(at.chunk, i, at.h, x))) : 0.0f;
        if (inside && p.pairs != nullptr) {
          const std::int64_t t = at.chunk.begin + i;
          p.ab[(t * p.H + at.h) * p.d_k + x] = p.q.at(t, at.hk, x) * tile.acc[r][s];
        }
      }
    }
  }
  const auto left = [&](int i, std::int64_t j) { return j < i && i < at.n ? dP[i * C + j] : 0.0f; };
  const auto right = [&](std::int64_t t, int j) {
    return x0 + j < p.d_k ? p.k.at(at.chunk.begin + t, at.hk, x0 + j) : 0.0f;
  };
  if (p.kind == DecayKind::vector) {
    tile.add<Along::contraction, Along::tile>(at.n, left, right, [&](int i, int x, std::int64_t j) {
      return j < i && i < at.n && x0 + x < p.d_k ? p.between(at.chunk, i, static_cast<int>(j), at.h, x0 + x) : 0.0f;
    });
  } else {
    tile.add<Along::contraction, Along::tile>(at.n, left, right);
  }
  tile.for_each([&](int i, int j, float value) {
    const std::int64_t x = x0 + j, t = at.chunk.begin + i;
    if (i >= at.n || x >= p.d_k) return;
    if (p.ab != nullptr && p.pairs == nullptr) p.ab[(t * p.H + at.h) * p.d_k + x] = p.q.at(t, at.hk, x) * value;
    if (dq.data != nullptr) dq.put(t, at.h, x, value + dP[i * C + i] * p.k.at(t, at.hk, x), write);
  });
}

// dK = (V dS'^T) e^{G_n - G} + sum_{i>=j} dP_ij Q_i e^{G_i - G_j}; for the gradient of the decay, k times the second
// term without i = j is taken from `ab` unless `pairs` has it, and k times the first is `cd`.
__global__ void __launch_bounds__(kThreads) key_gradients(Problem p, DeviceRows dk, Write write) {
  const Place at(p);
  if (at.n <= 0) return;
  const std::int64_t x0 = blockIdx.z * 64;
  const float* dS = p.dS + p.state(at.c, at.h);
  const float* dP = p.dP + p.scores(at.c, at.h);
  Tile pairs, carried;
  carried.add<Along::contraction, Along::contraction>(
      p.d_v, [&](int i, std::int64_t y) { return i < at.n ? p.v.at(at.chunk.begin + i, at.h, y) : 0.0f; },
      [&](std::int64_t y, int j) { return x0 + j < p.d_k ? dS[(x0 + j) * p.d_v + y] : 0.0f; });
  const auto left = [&](int j, std::int64_t i) { return j < i && j < at.n ? dP[i * C + j] : 0.0f; };
  const auto right = [&](std::int64_t t, int j) {
    return x0 + j < p.d_k ? p.q.at(at.chunk.begin + t, at.hk, x0 + j) : 0.0f;
  };
  if (p.kind == DecayKind::vector) {
    pairs.add<Along::tile, Along::tile>(at.n, left, right, [&](int j, int x, std::int64_t i) {
      return j < i && x0 + x < p.d_k ? p.between(at.chunk, static_cast<int>(i), j, at.h, x0 + x) : 0.0f;
    });
  } else {
    pairs.add<Along::tile, Along::tile>(at.n, left, right);
  }
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const int j = ty + 16 * r;
      const std::int64_t x = x0 + tx + 16 * s, t = at.chunk.begin + j;
      if (j >= at.n || x >= p.d_k) continue;
      const float decay = p.between(at.chunk, at.n - 1, j, at.h, x);
      const float inside = pairs.acc[r][s], outside = carried.acc[r][s] * decay;
      if (p.ab != nullptr) {
        const std::int64_t e = (t * p.H + at.h) * p.d_k + x;
        const float k = p.k.at(t, at.hk, x);
        if (p.pairs == nullptr) p.ab[e] -= k * inside;
        p.cd[e] = k * outside;
      }
      if (dk.data != nullptr) dk.put(t, at.h, x, inside + outside + dP[j * C + j] * p.q.at(t, at.hk, x), write);
    }
  }
}

// dV = P^T dO + (K e^{G_n - G}) dS'.
__global__ void __launch_bounds__(kThreads) value_gradients(Problem p, DeviceRows dv, Write write) {
  const Place at(p);
  if (at.n <= 0) return;
  const std::int64_t y0 = blockIdx.z * 64;
  const float* dS = p.dS + p.state(at.c, at.h);
  const float* P = p.P + p.scores(at.c, at.h);
  Tile tile;
  tile.add<Along::contraction, Along::tile>(
      p.d_k,
      [&](int j, std::int64_t x) {
        if (j >= at.n) return 0.0f;
        return p.k.at(at.chunk.begin + j, at.hk, x) * p.between(at.chunk, at.n - 1, j, at.h, x);
      },
      [&](std::int64_t x, int j) { return y0 + j < p.d_v ? dS[x * p.d_v + y0 + j] : 0.0f; });
  tile.add<Along::tile, Along::tile>(
      at.n, [&](int j, std::int64_t i) { return j < at.n && j <= i ? P[i * C + j] : 0.0f; },
      [&](std::int64_t t, int j) { return y0 + j < p.d_v ? p.d_o.at(at.chunk.begin + t, at.h, y0 + j) : 0.0f; });
  tile.for_each([&](int i, int j, float value) {
    if (i < at.n && y0 + j < p.d_v) dv.put(at.chunk.begin + i, at.h, y0 + j, value, write);
  });
}

__device__ double warp_sum(double x) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}

// dg_t = e^{G_n} rowsum(S * dS') + sum_{i>=t} ab_i + sum_{j<t} cd_j, per channel or over all of them.
__global__ void __launch_bounds__(kThreads) decay_gradients(Problem p, float* dg, Write write) {
  extern __shared__ double alive[];  // [d_k]
  const Place at(p);
  if (at.n <= 0) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (std::int64_t x = warp; x < p.d_k; x += kThreads / 32) {
    const std::int64_t row = p.state(at.c, at.h) + x * p.d_v;
    double sum = 0.0;
    for (std::int64_t y = lane; y < p.d_v; y += 32) sum += static_cast<double>(p.S[row + y]) * p.dS[row + y];
    sum = warp_sum(sum);
    if (lane == 0) alive[x] = sum * expf(static_cast<float>(p.total(at.chunk, at.h, x)));
  }
  __syncthreads();
  const auto put = [&](std::int64_t e, double value) {
    dg[e] = static_cast<float>(write == Write::accumulate ? dg[e] + value : value);
  };
  const std::int64_t row0 = at.chunk.begin * p.H + at.h;
  if (p.kind == DecayKind::vector) {
    for (std::int64_t x = threadIdx.x; x < p.d_k; x += kThreads) {
      double before = 0.0, after = alive[x];
      for (int t = 0; t < at.n; ++t) after += p.ab[(row0 + t * p.H) * p.d_k + x];
      for (int t = 0; t < at.n; ++t) {
        const std::int64_t e = (row0 + t * p.H) * p.d_k + x;
        put(e, after + before);
        after -= p.ab[e];
        before += p.cd[e];
      }
    }
    return;
  }
  __shared__ double ab[C], cd[C];
  for (int t = warp; t < at.n; t += kThreads / 32) {
    double a = 0.0, b = 0.0;
    for (std::int64_t x = lane; x < p.d_k; x += 32) {
      const std::int64_t e = (row0 + t * p.H) * p.d_k + x;
      a += p.ab[e], b += p.cd[e];
    }
    a = warp_sum(a), b = warp_sum(b);
    if (lane == 0) ab[t] = a + p.pairs[row0 + t * p.H], cd[t] = b;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double sum = 0.0;
  for (std::int64_t x = 0; x < p.d_k; ++x) sum += alive[x];
  for (int t = at.n - 1; t >= 0; --t) ab[t] = sum += ab[t];
  sum = 0.0;
  for (int t = 0; t < at.n; sum += cd[t], ++t) put(row0 + t * p.H, ab[t] + sum);
}

// --- launching -------------------------------------------------------------------------------------------------------

// Queries and keys are staged as f32 features of every token where there is a map; their gradients, for each head,
// where there is one or heads share keys.
struct Plan {
  Plan(const GatedLinearProblem& a, const GatedLinearBackward* backward, void* workspace) : args(a) {
    base = static_cast<std::byte*>(workspace);
    const bool mapped = a.map != FeatureMap::identity;
    p = {.kind = a.kind,
         .N = a.N,
         .H = a.H,
         .d_k = a.d_k,
         .d_v = a.d_v,
         .heads_per_key = a.heads_per_key(),
         .scale = static_cast<float>(a.scale),
         .q = device_rows(a.q, a.dtype, a.key_heads(), a.d_k),
         .k = device_rows(a.k, a.dtype, a.key_heads(), a.d_k),
         .v = device_rows(a.v, a.dtype, a.H, a.d_v),
         .d_o = {},
         .g = static_cast<const float*>(a.g),
         .sums = nullptr,
         .cu_seqlens = a.cu_seqlens,
         .chunks = a.chunks,
         .document_offset = a.document_offset,
         .S = nullptr,
         .dS = nullptr,
         .P = nullptr,
         .dP = nullptr,
         .ab = nullptr,
         .cd = nullptr,
         .pairs = nullptr};
    const std::int64_t keys = a.T * a.H * a.d_k;
    if (a.kind != DecayKind::constant) {
      sums = take<double>(a.kind == DecayKind::scalar ? a.T * a.H : keys);
      p.sums = sums;
    }
    p.S = take<float>(a.chunk_count * a.H * a.d_k * a.d_v);
    p.P = take<float>(a.chunk_count * a.H * C * C);
    if (mapped) {
      const std::int64_t features = a.T * a.key_heads() * a.d_k;
      p.q = {take<float>(features), false, a.key_heads(), a.d_k};
      p.k = {take<float>(features), false, a.key_heads(), a.d_k};
    }
    if (backward == nullptr) return;
    p.d_o = device_rows(backward->d_o, a.dtype, a.H, a.d_v);
    p.dS = take<float>(a.chunk_count * a.H * a.d_k * a.d_v);
    p.dP = take<float>(a.chunk_count * a.H * C * C);
    if (backward->dg != nullptr) {
      p.ab = take<float>(keys);
      p.cd = take<float>(keys);
      if (a.kind == DecayKind::scalar) p.pairs = take<double>(a.T * a.H);
    }
    staged = mapped || a.heads_per_key() > 1;
    if (staged && backward->dq != nullptr) dq = take<float>(keys);
    if (staged && backward->dk != nullptr) dk = take<float>(keys);
  }

  template <class T>
  T* take(std::int64_t elements) {
    T* piece = base == nullptr ? nullptr : reinterpret_cast<T*>(base + bytes);
    bytes += (static_cast<std::size_t>(elements) * sizeof(T) + 255) / 256 * 256;
    return piece;
  }

  dim3 grid(std::int64_t tiles = 1) const {
    return dim3(static_cast<unsigned>(args.chunk_count), static_cast<unsigned>(args.H), static_cast<unsigned>(tiles));
  }
  std::int64_t key_tiles() const { return (args.d_k + 63) / 64; }
  std::int64_t value_tiles() const { return (args.d_v + 63) / 64; }
  bool empty() const { return args.chunk_count == 0 || args.H == 0; }

  // Features, sums of decays, the states at the entry of each chunk and the scores.
  void prepare(cudaStream_t stream, void* st) const {
    if (args.map != FeatureMap::identity && args.T > 0) {
      const auto rows = device_rows(args.q, args.dtype, args.key_heads(), args.D_x);
      feature_rows_cuda(args.map, args.T * args.key_heads(), rows, static_cast<float*>(p.q.data), stream);
      feature_rows_cuda(args.map, args.T * args.key_heads(),
                        device_rows(args.k, args.dtype, args.key_heads(), args.D_x), static_cast<float*>(p.k.data),
                        stream);
    }
    if (!empty() && sums != nullptr) {
      const std::int64_t channels = args.kind == DecayKind::scalar ? 1 : args.d_k;
      const std::int64_t blocks = std::min<std::int64_t>((args.H * channels + 127) / 128, 1024);
      sum_decays<<<dim3(static_cast<unsigned>(args.chunk_count), static_cast<unsigned>(blocks)), 128, 0, stream>>>(
          p, channels, sums);
      WEFT_CHECK_LAUNCH();
    }
    if (!empty()) {
      contributions<false><<<grid(key_tiles() * value_tiles()), kThreads, 0, stream>>>(p, p.S);
      WEFT_CHECK_LAUNCH();
    }
    scan_states<false>(stream, p.S, args.s0, st, Write::overwrite);
    if (!empty()) {
      scores<false><<<grid(), kThreads, 0, stream>>>(p, p.P);
      WEFT_CHECK_LAUNCH();
    }
  }

  template <bool kReverse>
  void scan_states(cudaStream_t stream, float* states, const void* from, void* to, Write write) const {
    if (args.N == 0 || args.H == 0) return;
    const std::int64_t blocks = (args.d_k * args.d_v + 127) / 128;
    scan<kReverse><<<dim3(static_cast<unsigned>(args.N * blocks), static_cast<unsigned>(args.H)), 128, 0, stream>>>(
        p, states, static_cast<const float*>(from), static_cast<float*>(to), write);
    WEFT_CHECK_LAUNCH();
  }

  const GatedLinearProblem& args;
  Problem p{};
  std::byte* base = nullptr;
  std::size_t bytes = 0;
  double* sums = nullptr;
  bool staged = false;
  float *dq = nullptr, *dk = nullptr;  // of features, for each head
};

}  // namespace

std::size_t forward_workspace(const GatedLinearForward& args) {
  return Plan(args, nullptr, nullptr).bytes;
}

std::size_t backward_workspace(const GatedLinearBackward& args) {
  return Plan(args, &args, nullptr).bytes;
}

void forward(const GatedLinearForward& args, const Launch& launch) {
  const Plan plan(args, nullptr, launch.workspace);
  cudaStream_t stream = cuda_stream(launch.stream);
  plan.prepare(stream, args.st);
  if (plan.empty()) return;
  outputs<<<plan.grid(plan.value_tiles()), kThreads, 0, stream>>>(plan.p,
                                                                  device_rows(args.o, args.dtype, args.H, args.d_v));
  WEFT_CHECK_LAUNCH();
}

void backward(const GatedLinearBackward& args, const Launch& launch) {
  const Plan plan(args, &args, launch.workspace);
  const Problem& p = plan.p;
  cudaStream_t stream = cuda_stream(launch.stream);
  plan.prepare(stream, nullptr);
  if (!plan.empty()) {
    contributions<true><<<plan.grid(plan.key_tiles() * plan.value_tiles()), kThreads, 0, stream>>>(p, p.dS);
    WEFT_CHECK_LAUNCH();
  }
  plan.scan_states<true>(stream, p.dS, args.dst, args.ds0, args.write_ds0);
  if (plan.empty()) return;
  scores<true><<<plan.grid(), kThreads, 0, stream>>>(p, p.dP);
  WEFT_CHECK_LAUNCH();

  const auto target = [&](void* gradient, float* staged) {
    if (staged != nullptr) return DeviceRows{staged, false, args.H, args.d_k};
    return device_rows(gradient, args.dtype, args.H, args.d_k);
  };
  if (args.dq != nullptr || args.dg != nullptr) {
    query_gradients<<<plan.grid(plan.key_tiles()), kThreads, 0, stream>>>(
        p, target(args.dq, plan.dq), plan.dq != nullptr ? Write::overwrite : args.write_dq);
    WEFT_CHECK_LAUNCH();
  }
  if (args.dk != nullptr || args.dg != nullptr) {
    key_gradients<<<plan.grid(plan.key_tiles()), kThreads, 0, stream>>>(
        p, target(args.dk, plan.dk), plan.dk != nullptr ? Write::overwrite : args.write_dk);
    WEFT_CHECK_LAUNCH();
  }
  if (args.dv != nullptr) {
    value_gradients<<<plan.grid(plan.value_tiles()), kThreads, 0, stream>>>(
        p, device_rows(args.dv, args.dtype, args.H, args.d_v), args.write_dv);
    WEFT_CHECK_LAUNCH();
  }
  if (args.dg != nullptr) {
    decay_gradients<<<plan.grid(), kThreads, static_cast<std::size_t>(args.d_k) * sizeof(double), stream>>>(
        p, static_cast<float*>(args.dg), args.write_dg);
    WEFT_CHECK_LAUNCH();
  }
  const auto pull_back = [&](const void* x, void* dx, Write write, const float* features, const float* dfeatures) {
    if (dx == nullptr || dfeatures == nullptr || args.T == 0) return;
    const std::int64_t width = args.stored_key_width();
    feature_rows_backward_cuda(args.map, args.T * args.key_heads(), args.heads_per_key(), args.d_k,
                               device_rows(x, args.dtype, args.key_heads(), width), features, dfeatures,
                               device_rows(dx, args.dtype, args.key_heads(), width), write, stream);
  };
  pull_back(args.q, args.dq, args.write_dq, static_cast<const float*>(p.q.data), plan.dq);
  pull_back(args.k, args.dk, args.write_dk, static_cast<const float*>(p.k.data), plan.dk);
}

}  // namespace weft::general
