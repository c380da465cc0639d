// CUDA kernels of embedding.h.
//
// The backward sorts the tokens by id, keeping their order, and cuts the sorted row into windows of kWindow. A window
// sums the runs of equal ids in it. A run that lies in one window goes straight to the table; the parts of one that
// crosses windows go to lines of the workspace, which a second kernel adds up: each row of the table has one writer.
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/map_rows.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/ops/embedding/embedding.h"

namespace weft {
namespace {

constexpr int kWindow = 32;
constexpr int kThreads = 128;

template <class T>
struct Gather {
  EmbeddingForward a;

  template <int kN>
  __device__ void at(std::int64_t row, std::int64_t column) const {
    const std::int32_t token = a.tokens[row];
    T* to = static_cast<T*>(a.y) + row * a.D + column;
    float values[kN];
    if (token >= 0 && token < a.V) {
      load_pack(static_cast<const T*>(a.table) + token * a.D + column, values);
    } else {
#pragma unroll
      for (int i = 0; i < kN; ++i) values[i] = NAN;  // rows are checked where they are made
    }
    store_pack(to, values);
  }
};

__global__ void count_up_kernel(std::int32_t* indices, std::int64_t n) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) indices[i] = static_cast<std::int32_t>(i);
}

// ids [T] sorted, order [T] where each of them stood, parts [windows, 2, D]: sums of the run that began before the
// window, and of the one that begins in it and goes on after it.
struct Runs {
  std::int64_t T, V, D;
  const std::int32_t* ids;
  const std::int32_t* order;
  float* parts;
  float* dtable;
};

template <class T, int kN>
__global__ void __launch_bounds__(kThreads) sum_windows_kernel(Runs a, const T* dy) {
  __shared__ std::int32_t ids[kWindow + 2], rows[kWindow];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kWindow;
  const int n = static_cast<int>(a.T - begin < kWindow ? a.T - begin : kWindow);
  // ids[i + 1] is that of entry i; -1 beyond either end of the row.
  for (int i = threadIdx.x; i < kWindow + 2; i += kThreads) {
    const std::int64_t at = begin + i - 1;
    ids[i] = at >= 0 && at < a.T ? a.ids[at] : -1;
    if (i < n) rows[i] = a.order[begin + i];
  }
  __syncthreads();
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kN;
  if (column >= a.D) return;
  constexpr int kAhead = 8;
  float sum[kN] = {};
  bool began_before = ids[0] == ids[1];
  for (int first = 0; first < n; first += kAhead) {
    HeldPack<T, kN> ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      ahead[i] = first + i < n ? HeldPack<T, kN>::load(dy + rows[first + i] * a.D + column) : HeldPack<T, kN>::zero();
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int at = first + i;
      if (at >= n) break;
#pragma unroll
      for (int c = 0; c < kN; ++c) sum[c] += ahead[i][c];
      const std::int32_t id = ids[at + 1];
      const bool goes_on = ids[at + 2] == id;
      if (goes_on && at + 1 < n) continue;
      if (began_before || goes_on) {
        store_pack(a.parts + (blockIdx.x * std::int64_t{2} + (began_before ? 0 : 1)) * a.D + column, sum);
      } else if (id >= 0 && id < a.V) {
        store_pack(a.dtable + id * a.D + column, sum, Write::accumulate);
      }
      began_before = false;
#pragma unroll
      for (int c = 0; c < kN; ++c) sum[c] = 0.0f;
    }
  }
}

// The block of the window where a crossing run begins adds its parts: kParts threads a column share them out.
template <int kN>
__global__ void __launch_bounds__(256) join_windows_kernel(Runs a) {
  constexpr int kParts = 8;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kWindow, end = begin + kWindow;
  if (end >= a.T) return;
  const std::int32_t id = a.ids[end - 1];
  const bool began_before = begin > 0 && a.ids[begin] == id && a.ids[begin - 1] == id;
  if (a.ids[end] != id || began_before || id < 0 || id >= a.V) return;
  std::int64_t low = end, high = a.T;  // the run's end is in (low, high]
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (a.ids[middle] == id ? low : high) = middle;
  }
  const std::int64_t last = (high - 1) / kWindow;
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.y) * 32 + lane) * kN;
  float sum[kN] = {};
  if (column < a.D) {
    if (part == 0) load_pack(a.parts + (blockIdx.x * std::int64_t{2} + 1) * a.D + column, sum);
#pragma unroll 4
    for (std::int64_t w = blockIdx.x + 1 + part; w <= last; w += kParts) {
      float values[kN];
      load_pack(a.parts + 2 * w * a.D + column, values);
#pragma unroll
      for (int c = 0; c < kN; ++c) sum[c] += values[c];
    }
  }
  __shared__ float shared[kParts][kN][32];
#pragma unroll
  for (int c = 0; c < kN; ++c) shared[part][c][lane] = sum[c];
  __syncthreads();
  if (part > 0 || column >= a.D) return;
#pragma unroll
  for (int c = 0; c < kN; ++c) {
    sum[c] = 0.0f;
    for (int p = 0; p < kParts; ++p) sum[c] += shared[p][c][lane];
  }
  store_pack(a.dtable + id * a.D + column, sum, Write::accumulate);
}

std::int64_t windows_of(std::int64_t T) {
  return (T + kWindow - 1) / kWindow;
}

struct Scratch {
  Scratch(const EmbeddingBackward& a, void* workspace) {
    const auto take = [this, base = static_cast<std::byte*>(workspace)](std::size_t size) {
      std::byte* block = base + bytes;
      bytes += (size + 255) / 256 * 256;
      return block;
    };
    const auto T = static_cast<std::size_t>(a.T);
    bits =
        std::max(1, static_cast<int>(std::bit_width(static_cast<std::uint64_t>(std::max<std::int64_t>(a.V - 1, 1)))));
    WEFT_CUDA_CALL(cub::DeviceRadixSort::SortPairs(nullptr, sort_bytes, a.tokens, ids, indices, order,
                                                   static_cast<int>(a.T), 0, bits));
    ids = reinterpret_cast<std::int32_t*>(take(T * sizeof(std::int32_t)));
    order = reinterpret_cast<std::int32_t*>(take(T * sizeof(std::int32_t)));
    indices = reinterpret_cast<std::int32_t*>(take(T * sizeof(std::int32_t)));
    parts = reinterpret_cast<float*>(take(static_cast<std::size_t>(2 * windows_of(a.T) * a.D) * sizeof(float)));
    sort = take(sort_bytes);
  }

  int bits;  // of an id
  std::int32_t *ids = nullptr, *order = nullptr, *indices = nullptr;
  float* parts = nullptr;
  void* sort = nullptr;
  std::size_t sort_bytes = 0;
  std::size_t bytes = 0;
};

template <class T, int kN>
void sum_runs(const EmbeddingBackward& a, const Runs& runs, const Launch& launch) {
  const auto windows = static_cast<unsigned>(windows_of(a.T));
  const auto strips = [&](int threads) { return static_cast<unsigned>((a.D + threads * kN - 1) / (threads * kN)); };
  sum_windows_kernel<T, kN>
      <<<dim3(windows, strips(kThreads)), kThreads, 0, cuda_stream(launch.stream)>>>(runs, static_cast<const T*>(a.dy));
  WEFT_CHECK_LAUNCH();
  join_windows_kernel<kN><<<dim3(windows, strips(32)), 256, 0, cuda_stream(launch.stream)>>>(runs);
  WEFT_CHECK_LAUNCH();
}

}  // namespace

void embedding_forward_cuda(const EmbeddingForward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "embedding", [&]<class T>() {
    constexpr int kN = 16 / sizeof(T);
    const bool aligned = packs_fit<kN>(static_cast<const T*>(a.table), a.D) && packs_fit<kN>(static_cast<T*>(a.y), a.D);
    map_rows<kN>(launch, a.T, a.D, aligned, Gather<T>{a});
  });
}

std::size_t embedding_backward_cuda_workspace(const EmbeddingBackward& a) {
  return a.T == 0 ? 0 : Scratch(a, nullptr).bytes;
}

void embedding_backward_cuda(const EmbeddingBackward& a, const Launch& launch) {
  const cudaStream_t stream = cuda_stream(launch.stream);
  if (a.write_dtable == Write::overwrite) {
    WEFT_CUDA_CALL(cudaMemsetAsync(a.dtable, 0, static_cast<std::size_t>(a.V * a.D) * sizeof(float), stream));
  }
  if (a.T == 0 || a.D == 0) return;
  Scratch scratch(a, launch.workspace);
  count_up_kernel<<<static_cast<unsigned>((a.T + kThreads - 1) / kThreads), kThreads, 0, stream>>>(scratch.indices,
                                                                                                   a.T);
  WEFT_CHECK_LAUNCH();
  WEFT_CUDA_CALL(cub::DeviceRadixSort::SortPairs(scratch.sort, scratch.sort_bytes, a.tokens, scratch.ids,
                                                 scratch.indices, scratch.order, static_cast<int>(a.T), 0, scratch.bits,
                                                 stream));
  const Runs runs{.T = a.T,
                  .V = a.V,
                  .D = a.D,
                  .ids = scratch.ids,
                  .order = scratch.order,
                  .parts = scratch.parts,
                  .dtable = static_cast<float*>(a.dtable)};
  dispatch_cuda(a.dtype, "embedding", [&]<class T>() {
    constexpr int kN = 16 / sizeof(T);
    const bool aligned =
        packs_fit<kN>(static_cast<const T*>(a.dy), a.D) && packs_fit<kN>(static_cast<const float*>(a.dtable), a.D);
    if (aligned) {
      sum_runs<T, kN>(a, runs, launch);
    } else {
      sum_runs<T, 1>(a, runs, launch);
    }
  });
}

}  // namespace weft
