// The delta rule backwards on CUDA for any widths, in fp32.
//
// pairs and walk:  P, B, the entry states and prediction errors again, as forwards.
// retreat:         the gradient of the states, in delta_general_retreat.cu.
// gradients:       parallel over chunks and key heads, what needs all value columns.
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/tile/reduce.cuh"
#include "modules/families/delta_rule/delta_general.cuh"

namespace weft {
namespace delta_general {
namespace {

// Shared memory of gradients_kernel.
struct GradientTiles {
  static constexpr int kFactors = kLevels + 2;  // the levels, from the entry, to the exit
  float factors[kFactors * kTile];
  float dP[kSquare], dB[kSquare];        // gradients of P and A
  float q[kTile], k[kTile];              // a slice of channels
  float dO[kTile], U[kTile], dR[kTile];  // a block of value columns; between the products, a slice of channels
  float S[kSlice * kLd], dS[kSlice * kLd];
  float beta[kRows], diagonal[kRows], dg[kRows];
};

// Rows of value columns [first, first + kColumns): what arrives at the outputs, the updates and the value gradients.
template <class T>
__device__ void load_columns(const DeltaRuleBackward& a, const Intermediates& kept, const ChunkRows& chunk, int first,
                             GradientTiles& at) {
  const int d_v = static_cast<int>(a.d_v);
  load_slice(static_cast<const T*>(a.d_o) + chunk.value, chunk.ld_value, chunk.n, d_v, first, at.dO);
  load_slice(kept.W + chunk.value, chunk.ld_value, chunk.n, d_v, first, at.U);
  load_slice(kept.Y + chunk.value, chunk.ld_value, chunk.n, d_v, first, at.dR);
  __syncthreads();
  for (int e = threadIdx.x; e < kRows * kColumns; e += kThreads) {
    const int i = e / kColumns, y = e % kColumns;
    at.U[i * kLd + y] *= at.beta[i];
    at.dR[i * kLd + y] *= at.beta[i];
  }
}

// dP = scale tril(dO U^T), dB = -stril(dR U^T), and the diagonal of dP.
template <class T>
__device__ void score_gradients(const DeltaRuleBackward& a, const Intermediates& kept, const ChunkRows& chunk,
                                GradientTiles& at) {
  const int thread = static_cast<int>(threadIdx.x), I = thread / 16 * 4, J = thread % 16 * 4;
  float sum_P[4][4] = {}, sum_B[4][4] = {};
  for (int first = 0; first < a.d_v; first += kColumns) {
    __syncthreads();
    load_columns<T>(a, kept, chunk, first, at);
    __syncthreads();
    if (I < J) continue;
    for (int y = 0; y < kColumns; ++y) {
      float outputs[4], values[4], updates[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        outputs[e] = at.dO[(I + e) * kLd + y];
        values[e] = at.dR[(I + e) * kLd + y];
        updates[e] = at.U[(J + e) * kLd + y];
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          sum_P[r][c] += outputs[r] * updates[c];
          sum_B[r][c] += values[r] * updates[c];
        }
      }
    }
  }
  const auto scale = static_cast<float>(a.scale);
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int i = I + r, j = J + c;
      at.dP[i * kSquareLd + j] = i >= j ? scale * sum_P[r][c] : 0.0f;
      at.dB[i * kSquareLd + j] = i > j ? -sum_B[r][c] : 0.0f;
      if (i == j) at.diagonal[i] = scale * sum_P[r][c];
    }
  }
}

// What the pairs of a chunk give to queries, keys as rows, keys as columns: one channel, the warp's rows.
__device__ void pair_gradients(const GradientTiles& at, WarpRows& queries, WarpRows& readers, WarpRows& writers) {
  const int x = own_column();
#pragma unroll
  for (int r = 0; r < kRowsPerWarp; ++r) {
    const int i = own_row(r);
    for (int level = 0; level < kLevels; ++level) {
      const int block = 1 << level, start = i & -block;
      const float* f = at.factors + level * kTile;
      if ((i & block) != 0) {
        float query = 0.0f, reader = 0.0f;
        for (int j = start - block; j < start; ++j) {
          const float column = at.k[j * kLd + x] * f[j * kLd + x];
          query += at.dP[i * kSquareLd + j] * column;
          reader += at.dB[i * kSquareLd + j] * column;
        }
        queries[r] += f[i * kLd + x] * query;
        readers[r] += f[i * kLd + x] * reader;
      } else {
        float writer = 0.0f;
        for (int m = start + block; m < start + 2 * block; ++m) {
          const float decay = f[m * kLd + x];
          writer +=
              (at.dP[m * kSquareLd + i] * at.q[m * kLd + x] + at.dB[m * kSquareLd + i] * at.k[m * kLd + x]) * decay;
        }
        writers[r] += f[i * kLd + x] * writer;
      }
    }
  }
}

// dg of a slice (README.md, "The gradient of the decay"): suffix sums of `from` (rows minus columns) and prefix sums of
// `until` (keys left in the exit state), both [kRows, kSlice]; the result replaces `from`.
__device__ void decay_gradient(float* from, const float* until, float alive) {
  const int x = own_column();
  if (threadIdx.x >= 32) return;
  float sum = alive;
#pragma unroll 8
  for (int t = kRows - 1; t >= 0; --t) from[t * kLd + x] = sum += from[t * kLd + x];
  sum = 0.0f;
#pragma unroll 8
  for (int t = 0; t < kRows; ++t) {
    from[t * kLd + x] += sum;
    sum += until[t * kLd + x];
  }
}

template <class T>
__device__ void store_one(T* to, float value, Write write) {
  const float values[1] = {value};
  store_pack(to, values, write);
}

template <class T>
__global__ void __launch_bounds__(kThreads) gradients_kernel(DeltaRuleBackward a, Intermediates kept) {
  extern __shared__ float shared[];
  GradientTiles& at = *reinterpret_cast<GradientTiles*>(shared);
  const Chunk entry = a.chunks[blockIdx.x];
  if (entry.begin >= entry.end) return;
  const int D = static_cast<int>(a.d_k), d_v = static_cast<int>(a.d_v), thread = static_cast<int>(threadIdx.x);
  const int group = static_cast<int>(a.H) / static_cast<int>(a.H_K), x = own_column();
  const auto scale = static_cast<float>(a.scale);
  for (int member = 0; member < group; ++member) {
    const int h = static_cast<int>(blockIdx.y) * group + member;
    const ChunkRows chunk(a, entry, h);
    const int n = chunk.n;
    const std::int64_t state = (blockIdx.x * a.H + h) * a.d_k * a.d_v;
    __syncthreads();
    if (thread < kRows) {
      at.beta[thread] = thread < n ? static_cast<const float*>(a.beta)[chunk.head + thread * chunk.ld_head] : 0.0f;
      at.dg[thread] = 0.0f;
    }
    if (a.dbeta != nullptr) {
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const int i = own_row(r);
        if (i >= n) break;
        float sum = 0.0f;
        for (int y = x; y < d_v; y += 32) {
          const std::int64_t e = chunk.value + i * chunk.ld_value + y;
          sum += kept.Y[e] * kept.W[e];
        }
        sum = tile::reduce_lanes<tile::Sum>(sum);
        if (x == 0) store_one(static_cast<float*>(a.dbeta) + chunk.head + i * chunk.ld_head, sum, a.write_dbeta);
      }
    }
    score_gradients<T>(a, kept, chunk, at);
    for (int first = 0; first < D; first += kSlice) {
      __syncthreads();
      load_slice(static_cast<const T*>(a.k) + chunk.key, chunk.ld_key, n, D, first, at.k);
      load_slice(static_cast<const T*>(a.q) + chunk.key, chunk.ld_key, n, D, first, at.q);
      float* g = at.dO;
      for (int e = thread; e < kRows * kSlice; e += kThreads) {
        const int i = e / kSlice, channel = first + e % kSlice;
        g[i * kLd + e % kSlice] = i < n && channel < D ? chunk.decay(i, channel) : 0.0f;
      }
      __syncthreads();
      level_factors(g, at.factors);
      float* from_entry = at.factors + kLevels * kTile;
      float* to_exit = from_entry + kTile;
      float total = 0.0f;
      if (thread < 2 * kSlice) {
        float sum = 0.0f;
#pragma unroll 8
        for (int step = 0; step < kRows; ++step) {
          const int i = thread < kSlice ? step : kRows - 1 - step;
          if (thread < kSlice) sum += g[i * kLd + x];
          (thread < kSlice ? from_entry : to_exit)[i * kLd + x] = expf(sum);
          if (thread >= kSlice) sum += g[i * kLd + x];
        }
        total = expf(sum);
      }
      WarpRows from_outputs = {}, from_values = {}, leavers = {};
      float alive = 0.0f;
      for (int column = 0; column < d_v; column += kColumns) {
        __syncthreads();
        load_columns<T>(a, kept, chunk, column, at);
        for (int e = thread; e < kSlice * kColumns; e += kThreads) {
          const int channel = first + e / kColumns, y = column + e % kColumns;
          const bool is_there = channel < D && y < d_v;
          const std::int64_t from = state + channel * a.d_v + y;
          at.S[e / kColumns * kLd + e % kColumns] = is_there ? kept.entries[from] : 0.0f;
          at.dS[e / kColumns * kLd + e % kColumns] = is_there ? kept.dexits[from] : 0.0f;
        }
        __syncthreads();
#pragma unroll 8
        for (int y = 0; y < kColumns; ++y) {
          const float s = at.S[x * kLd + y], ds = at.dS[x * kLd + y];
          alive += s * ds;
#pragma unroll
          for (int r = 0; r < kRowsPerWarp; ++r) {
            const int e = own_row(r) * kLd + y;
            from_outputs[r] += at.dO[e] * s;
            from_values[r] += at.dR[e] * s;
            leavers[r] += at.U[e] * ds;
          }
        }
      }
      WarpRows queries = {}, readers = {}, writers = {};
      pair_gradients(at, queries, readers, writers);
      __syncthreads();  // dO and U become rows of dg
      float *rows_of_dg = at.dO, *left = at.U;
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const int i = own_row(r), e = i * kLd + x;
        queries[r] += scale * from_outputs[r] * from_entry[e];
        readers[r] -= from_values[r] * from_entry[e];
        leavers[r] *= to_exit[e];
        rows_of_dg[e] = at.q[e] * queries[r] + at.k[e] * (readers[r] - writers[r]);
        left[e] = at.k[e] * leavers[r];
        if (i >= n || first + x >= D) continue;
        float dq = queries[r] + at.diagonal[i] * at.k[e];
        float dk = readers[r] + writers[r] + leavers[r] + at.diagonal[i] * at.q[e];
        const std::int64_t target = chunk.key + i * chunk.ld_key + first + x;
        if (member > 0) {
          dq += kept.sum_dq[target];
          dk += kept.sum_dk[target];
        }
        if (member + 1 < group) {
          kept.sum_dq[target] = dq;
          kept.sum_dk[target] = dk;
          continue;
        }
        if (a.dq != nullptr) store_one(static_cast<T*>(a.dq) + target, dq, a.write_dq);
        if (a.dk != nullptr) store_one(static_cast<T*>(a.dk) + target, dk, a.write_dk);
      }
      if (a.dg == nullptr) continue;
      __syncthreads();
      decay_gradient(rows_of_dg, left, alive * total);
      __syncthreads();
#pragma unroll
      for (int r = 0; r < kRowsPerWarp; ++r) {
        const int i = own_row(r);
        const float dg = rows_of_dg[i * kLd + x];
        if (a.decay == DeltaDecay::channel) {
          if (i >= n || first + x >= D) continue;
          store_one(static_cast<float*>(a.dg) + chunk.head * a.d_k + i * chunk.ld_g + first + x, dg, a.write_dg);
        } else {
          const float sum = tile::reduce_lanes<tile::Sum>(dg);
          if (x == 0) at.dg[i] += sum;
        }
      }
    }
    if (a.dg == nullptr || a.decay != DeltaDecay::scalar) continue;
    __syncthreads();
    if (thread < n) {
      store_one(static_cast<float*>(a.dg) + chunk.head + thread * chunk.ld_head, at.dg[thread], a.write_dg);
    }
  }
}

}  // namespace
}  // namespace delta_general

void delta_general_backward(const DeltaRuleBackward& args, const Launch& launch) {
  using namespace delta_general;
  const Intermediates kept(args, launch.workspace);
  make_pairs(args, kept.pairs, launch);
  make_entries(args, kept.pairs, kept.entries, kept.W, launch);
  retreat(args, kept, launch);
  dispatch_cuda(args.dtype, "delta_rule", [&]<class T>() {
    const dim3 grid(static_cast<unsigned>(args.chunk_count), static_cast<unsigned>(args.H_K));
    launch_kernel(gradients_kernel<T>, grid, sizeof(GradientTiles), launch, args, kept);
  });
}

std::size_t delta_general_backward_workspace(const DeltaRuleBackward& args) {
  return delta_general::Intermediates(args, nullptr).bytes;
}

}  // namespace weft
