// CUDA kernels of embedding.h.
//
// The backward sorts the tokens by id, keeping their order, and cuts the sorted row into windows of kWindow. A window
// sums the runs of equal ids that begin in it, beyond its end if they end in the next one, and adds them to the table.
// The parts of a longer run, one of each window, go to lines of the workspace, which a second kernel adds up: each row
// of the table has one writer.
#include "autograd/cuda/early_launch.cuh"
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/cuda/map_rows.cuh"
#include "autograd/cuda/row_tile.cuh"
#include "autograd/ops/embedding/embedding.h"
#include "autograd/ops/embedding/sort_ids.cuh"

namespace weft {
namespace {

constexpr int kWindow = 64;
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

// ids [T] sorted, order [T] where each of them stood, parts [windows, 2, D]: sums of the long run that began before
// the window, and of the one that begins in it.
struct Runs {
  std::int64_t T, V, D;
  const std::int32_t* ids;
  const std::int32_t* order;
  float* parts;
  float* dtable;
};

template <class T, int kN>
__global__ void __launch_bounds__(kThreads) sum_windows_kernel(Runs a, const T* dy) {
  static_assert(kWindow <= kThreads);
  let_next_kernel_start();
  wait_for_earlier_kernels();
  __shared__ std::int32_t shared_ids[2 * kWindow + 2], rows[2 * kWindow];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.y) * kWindow;
  // Entries from `begin` on, of this window and the next; -1 beyond either end of the row.
  const std::int32_t* const ids = shared_ids + 1;
  for (int i = threadIdx.x; i < 2 * kWindow + 2; i += kThreads) {
    const std::int64_t at = begin + i - 1;
    shared_ids[i] = at >= 0 && at < a.T ? a.ids[at] : -1;
    if (i < 2 * kWindow) rows[i] = begin + i < a.T ? a.order[begin + i] : 0;
  }
  const std::int32_t before_last = begin > kWindow ? a.ids[begin - kWindow - 1] : -1;  // before the window before
  __syncthreads();
  const int n = static_cast<int>(a.T - begin < kWindow ? a.T - begin : kWindow);
  const std::int32_t front = ids[0], back = ids[n - 1];
  const int i = threadIdx.x;
  // The run that goes on from the window before belongs to that one if it is short.
  bool began_before = ids[-1] == front;
  const bool others = began_before && before_last != front && ids[kWindow] != front;
  const int first = __syncthreads_count(others && i < n && ids[i] == front);
  if (others) began_before = false;
  // The last run is followed into the next window if it ends there.
  const bool own = !(began_before && back == front) && first < n && ids[2 * kWindow] != back;
  const int end = n + __syncthreads_count(own && i < kWindow && ids[kWindow + i] == back);

  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kN;
  if (column >= a.D) return;
  // The rows of the table that runs of a few tokens end in are read along with these, not one after another.
  constexpr int kAhead = 8;
  float sum[kN] = {};
  for (int from = first; from < end; from += kAhead) {
    HeldPack<T, kN> ahead[kAhead];
    float target[kAhead][kN];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int at = from + k;
      ahead[k] = at < end ? HeldPack<T, kN>::load(dy + rows[at] * a.D + column) : HeldPack<T, kN>::zero();
      const std::int32_t id = at < end ? ids[at] : -1;
      if (id >= 0 && id < a.V && ids[at + 1] != id) load_pack(a.dtable + id * a.D + column, target[k]);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int at = from + k;
      if (at >= end) break;
#pragma unroll
      for (int c = 0; c < kN; ++c) sum[c] += ahead[k][c];
      const std::int32_t id = ids[at];
      const bool goes_on = ids[at + 1] == id;
      if (goes_on && at + 1 < end) continue;
      if (began_before || goes_on) {
        store_pack(a.parts + (blockIdx.y * std::int64_t{2} + (began_before ? 0 : 1)) * a.D + column, sum);
      } else if (id >= 0 && id < a.V) {
#pragma unroll
        for (int c = 0; c < kN; ++c) sum[c] += target[k][c];
        store_pack(a.dtable + id * a.D + column, sum);
      }
      began_before = false;
#pragma unroll
      for (int c = 0; c < kN; ++c) sum[c] = 0.0f;
    }
  }
}

// The window where the run of `id` ends that holds the first entry of window `low`. A warp probes 32 windows at a time:
// the nearest ones, then wider and narrower steps.
__device__ std::int64_t last_of_run(const Runs& a, std::int64_t low, std::int32_t id) {
  const int lane = threadIdx.x % 32;
  std::int64_t high = (a.T + kWindow - 1) / kWindow, step = 1;  // low is in the run, high is not
  while (high - low > 1) {
    const std::int64_t probe = low + (lane + 1) * step;
    const unsigned inside = __ballot_sync(0xffffffffu, probe < high && a.ids[probe * kWindow] == id);
    low += __popc(inside) * step;
    if (inside != 0xffffffffu) high = low + step < high ? low + step : high;
    step = (high - low + 31) / 32;
  }
  return low;
}

constexpr int kJoinWarps = 16;
constexpr int kAlone = 4;  // windows that a warp adds up by itself

// Each warp looks after one window: where a long run begins in it, the warp adds the parts of that run, or all warps of
// the block share them.
template <int kN>
__global__ void __launch_bounds__(32 * kJoinWarps) join_windows_kernel(Runs a) {
  __shared__ std::int64_t long_runs[kJoinWarps];  // the window where it ends; 0: none begins here
  __shared__ float shared[kJoinWarps][kN][32];
  wait_for_earlier_kernels();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.y) * 32 + lane) * kN;
  const auto begin_part = [&](std::int64_t window) { return a.parts + (2 * window + 1) * a.D + column; };
  const auto end_part = [&](std::int64_t window) { return a.parts + 2 * window * a.D + column; };
  const auto add = [](float(&sum)[kN], const float* part) {
    float values[kN];
    load_pack(part, values);
#pragma unroll
    for (int c = 0; c < kN; ++c) sum[c] += values[c];
  };

  const std::int64_t first_window = static_cast<std::int64_t>(blockIdx.x) * kJoinWarps;
  const std::int64_t window = first_window + warp, begin = window * kWindow, end = begin + kWindow;
  std::int64_t last = 0;
  if (end + kWindow < a.T) {
    const std::int32_t id = a.ids[end - 1], beyond = a.ids[end + kWindow], front = a.ids[begin];
    const std::int32_t before = begin > 0 ? a.ids[begin - 1] : -1;
    const bool began_before = front == id && before == id;
    if (beyond == id && !began_before && id >= 0 && id < a.V) last = last_of_run(a, window + 2, id);
    if (last > 0 && last - window <= kAlone) {
      if (column < a.D) {
        float sum[kN];
        load_pack(begin_part(window), sum);
#pragma unroll
        for (int i = 1; i <= kAlone; ++i) {
          if (window + i <= last) add(sum, end_part(window + i));
        }
        store_pack(a.dtable + id * a.D + column, sum, Write::accumulate);
      }
      last = 0;
    }
  }
  if (lane == 0) long_runs[warp] = last;
  if (__syncthreads_or(last > 0) == 0) return;
  for (int owner = 0; owner < kJoinWarps; ++owner) {
    const std::int64_t from = first_window + owner, to = long_runs[owner];
    if (to == 0) continue;
    float sum[kN] = {};
    if (column < a.D) {
      if (warp == 0) load_pack(begin_part(from), sum);
#pragma unroll 8
      for (std::int64_t w = from + 1 + warp; w <= to; w += kJoinWarps) add(sum, end_part(w));
    }
    __syncthreads();  // what the last run left here has been read
#pragma unroll
    for (int c = 0; c < kN; ++c) shared[warp][c][lane] = sum[c];
    __syncthreads();
    if (warp > 0 || column >= a.D) continue;
#pragma unroll
    for (int c = 0; c < kN; ++c) {
      sum[c] = 0.0f;
#pragma unroll
      for (int p = 0; p < kJoinWarps; ++p) sum[c] += shared[p][c][lane];
    }
    store_pack(a.dtable + a.ids[(from + 1) * kWindow] * a.D + column, sum, Write::accumulate);
  }
}

std::int64_t windows_of(std::int64_t T) {
  return (T + kWindow - 1) / kWindow;
}

struct Scratch {
  Scratch(const EmbeddingBackward& a, void* workspace) : sort(a.T, a.V) {
    const auto take = [this, base = static_cast<std::byte*>(workspace)](std::size_t size) {
      std::byte* block = base + bytes;
      bytes += (size + 255) / 256 * 256;
      return block;
    };
    const std::size_t ids = static_cast<std::size_t>(a.T) * sizeof(std::int32_t);
    sorted.ids = reinterpret_cast<std::int32_t*>(take(ids));
    sorted.order = reinterpret_cast<std::int32_t*>(take(ids));
    for_sort = take(sort.bytes());
    parts = reinterpret_cast<float*>(take(static_cast<std::size_t>(2 * windows_of(a.T) * a.D) * sizeof(float)));
  }

  IdSort sort;
  SortedIds sorted = {};
  void* for_sort = nullptr;
  float* parts = nullptr;
  std::size_t bytes = 0;
};

template <class T, int kN>
void sum_runs(const EmbeddingBackward& a, const Runs& runs, const Launch& launch) {
  const std::int64_t windows = windows_of(a.T);
  const auto parts = [](std::int64_t n, std::int64_t size) { return static_cast<unsigned>((n + size - 1) / size); };
  // Neighbouring blocks take neighbouring columns of the same rows.
  WEFT_CHECK(windows <= 65535, "embedding: {} tokens in one launch", a.T);
  const cudaStream_t stream = cuda_stream(launch.stream);
  launch_early(sum_windows_kernel<T, kN>, dim3(parts(a.D, kThreads * kN), static_cast<unsigned>(windows)), kThreads,
               stream, runs, static_cast<const T*>(a.dy));
  launch_early(join_windows_kernel<kN>, dim3(parts(windows, kJoinWarps), parts(a.D, 32 * kN)), 32 * kJoinWarps, stream,
               runs);
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
  if (a.write_dtable == Write::overwrite) {  // no parameter is: their gradients are added to
    WEFT_CUDA_CALL(cudaMemsetAsync(a.dtable, 0, static_cast<std::size_t>(a.V * a.D) * sizeof(float), stream));
  }
  if (a.T == 0 || a.D == 0) return;
  const Scratch scratch(a, launch.workspace);
  scratch.sort.run(a.tokens, scratch.sorted, scratch.for_sort, stream);
  const Runs runs{.T = a.T,
                  .V = a.V,
                  .D = a.D,
                  .ids = scratch.sorted.ids,
                  .order = scratch.sorted.order,
                  .parts = scratch.parts,
                  .dtable = static_cast<float*>(a.dtable)};
  dispatch_cuda(a.dtype, "embedding", [&]<class T>() {
    constexpr int kN = 4;
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
