// The gradient of the states of the delta rule on CUDA for any widths, in fp32: in reverse order of the chunks, blocks
// as in the walk forwards.
#include "autograd/cuda/map_cuda.cuh"
#include "modules/families/delta_rule/delta_general.cuh"

namespace weft::delta_general {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads) retreat_kernel(DeltaRuleBackward a, Intermediates kept) {
  extern __shared__ float shared[];
  const int D = static_cast<int>(a.d_k), d_v = static_cast<int>(a.d_v), thread = static_cast<int>(threadIdx.x);
  float *dS = shared, *rows = dS + D * kLd, *total = rows + kRows * (D + 1), *dO = total + D, *dR = dO + kTile,
        *B = dR + kTile, *P = B + kSquare, *beta = P + kSquare;
  const int h = static_cast<int>(blockIdx.y);
  const std::int64_t n_document = blockIdx.x, first = blockIdx.z * kColumns;
  const std::int64_t state = (n_document * a.H + h) * D * a.d_v;
  const int y = own_column();
  const bool column_is_there = first + y < d_v;
  load_state(a.dst == nullptr ? nullptr : static_cast<const float*>(a.dst) + state, D, d_v, first, dS);
  for (std::int64_t c = a.document_offset[n_document + 1] - 1; c >= a.document_offset[n_document]; --c) {
    const ChunkRows chunk(a, a.chunks[c], h);
    const int n = chunk.n;
    const auto* keys = static_cast<const T*>(a.k) + chunk.key;
    __syncthreads();
    save_state(dS, D, d_v, first, kept.dexits + (c * a.H + h) * D * a.d_v, Write::overwrite);
    load_square(kept.pairs.B + kept.pairs.at(c, a.H, h), B);
    load_square(kept.pairs.P + kept.pairs.at(c, a.H, h), P);
    if (thread < kRows) {
      beta[thread] = thread < n ? static_cast<const float*>(a.beta)[chunk.head + thread * chunk.ld_head] : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int i = own_row(r);
      dO[i * kLd + y] = i < n && column_is_there
                            ? to_float(static_cast<const T*>(a.d_o)[chunk.value + i * chunk.ld_value + first + y])
                            : 0.0f;
    }
    decayed_rows(chunk, D, keys, Reach::to_exit, 1.0f, rows, total);
    __syncthreads();
    // dU = K_out dS' + P^T dO; Y = dU - B^T (beta dU); dR = beta Y.
    WarpRows Y = {};
    add_product(rows, dS, D, 1.0f, Y);
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int i = own_row(r);
#pragma unroll 2
      for (int j = i; j < kRows; ++j) Y[r] += P[j * kSquareLd + i] * dO[j * kLd + y];
      dR[i * kLd + y] = beta[i] * Y[r];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int i = own_row(r);
      float sum = 0.0f;
#pragma unroll 2
      for (int j = i + 1; j < kRows; ++j) sum += B[j * kSquareLd + i] * dR[j * kLd + y];
      Y[r] -= sum;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRowsPerWarp; ++r) {
      const int i = own_row(r);
      const float gradient = beta[i] * Y[r];
      dR[i * kLd + y] = gradient;
      if (i >= n || !column_is_there) continue;
      const std::int64_t at = chunk.value + i * chunk.ld_value + first + y;
      kept.Y[at] = Y[r];
      if (a.dv == nullptr) continue;
      const float value[1] = {gradient};
      store_pack(static_cast<T*>(a.dv) + at, value, a.write_dv);
    }
    decayed_rows(chunk, D, static_cast<const T*>(a.q) + chunk.key, Reach::from_entry, static_cast<float>(a.scale), rows,
                 nullptr);
    __syncthreads();
    add_outer_product(rows, dO, n, D, 1.0f, total, dS);
    __syncthreads();
    decayed_rows(chunk, D, keys, Reach::from_entry, 1.0f, rows, nullptr);
    __syncthreads();
    add_outer_product(rows, dR, n, D, -1.0f, nullptr, dS);
  }
  __syncthreads();
  if (a.ds0 != nullptr) save_state(dS, D, d_v, first, static_cast<float*>(a.ds0) + state, a.write_ds0);
}

}  // namespace

void retreat(const DeltaRuleBackward& a, const Intermediates& kept, const Launch& launch) {
  dispatch_cuda(a.dtype, "delta_rule", [&]<class T>() {
    launch_kernel(retreat_kernel<T>, walk_grid(a), walk_floats(a) * sizeof(float), launch, a, kept);
  });
}

}  // namespace weft::delta_general
