// Times of the recurrence on a GPU beside the least time its bytes need. Run by `make sweep`.
//
// T tokens in N documents of one length, H heads (H_k of queries and keys), d_k x d_v states.
#include <algorithm>
#include <functional>
#include <gtest/gtest.h>
#include <random>

#include "autograd/cuda/cuda_check.cuh"
#include "modules/families/gated_linear/gated_linear_cuda.h"
#include "tests/support/gpu.h"

namespace weft::testing {
namespace {

constexpr double kBandwidth = 3.0e12;  // bytes a second of a copy on one H100

struct SpeedCase {
  DecayKind kind;
  std::int64_t T, N, H, H_k, d_k, d_v;
  double gate;  // mean log decay of a token
};

double median_milliseconds(cudaStream_t stream, const std::function<void()>& run) {
  cudaEvent_t begin, end;
  WEFT_CUDA_CALL(cudaEventCreate(&begin));
  WEFT_CUDA_CALL(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 23; ++i) {
    WEFT_CUDA_CALL(cudaEventRecord(begin, stream));
    run();
    WEFT_CUDA_CALL(cudaEventRecord(end, stream));
    WEFT_CUDA_CALL(cudaEventSynchronize(end));
    float time = 0.0f;
    WEFT_CUDA_CALL(cudaEventElapsedTime(&time, begin, end));
    if (i >= 3) times.push_back(time);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + 10, times.end());
  return times[10];
}

TEST(GatedLinearSpeedSweep, BesideTheFloor) {
  WEFT_NEEDS_GPU();
  const Stream on = gpu_stream();
  cudaStream_t stream = cuda_stream(on);
  for (const SpeedCase& c : {SpeedCase{DecayKind::constant, 32768, 1, 32, 32, 128, 128, -0.01},
                             SpeedCase{DecayKind::constant, 8192, 1, 32, 32, 128, 128, -0.01},
                             SpeedCase{DecayKind::constant, 32768, 64, 32, 32, 128, 128, -0.01},
                             SpeedCase{DecayKind::constant, 32768, 128, 32, 32, 128, 128, -0.01},
                             SpeedCase{DecayKind::constant, 32768, 512, 32, 32, 128, 128, -0.01},
                             SpeedCase{DecayKind::scalar, 32768, 1, 32, 32, 128, 128, -0.1},
                             SpeedCase{DecayKind::scalar, 32768, 1, 64, 1, 128, 64, -0.1},
                             SpeedCase{DecayKind::vector, 8192, 1, 32, 32, 128, 128, -0.1}}) {
    const auto memory = gpu_memory(std::size_t{12} << 30);
    std::vector<Tensor> keep;
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    const auto make = [&](std::int64_t elements, DType dtype, float low, float high) {
      keep.emplace_back(Shape{elements}, dtype, memory);
      std::vector<std::byte> bytes(static_cast<std::size_t>(elements) * size_of(dtype));
      for (std::int64_t e = 0; e < elements; ++e) {
        const float x = low + (high - low) * 0.5f * (uniform(random) + 1.0f);
        const bfloat16 half(x);
        std::memcpy(bytes.data() + e * static_cast<std::int64_t>(size_of(dtype)),
                    dtype == DType::bf16 ? static_cast<const void*>(&half) : &x, size_of(dtype));
      }
      WEFT_CUDA_CALL(cudaMemcpy(keep.back().raw(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
      return keep.back().raw();
    };
    const auto room = [&](std::int64_t elements, DType dtype) {
      keep.emplace_back(Shape{elements}, dtype, memory);
      return keep.back().raw();
    };
    const std::int64_t keys = c.T * c.H_k * c.d_k, values = c.T * c.H * c.d_v;
    const std::int64_t decays =
        c.kind == DecayKind::constant ? c.H : c.T * c.H * (c.kind == DecayKind::scalar ? 1 : c.d_k);
    const std::vector<std::int32_t> lengths(static_cast<std::size_t>(c.N), static_cast<std::int32_t>(c.T / c.N));
    const DocumentsPtr documents = Documents::from_lengths(lengths);
    GatedLinearProblem p{.dtype = DType::bf16,
                         .kind = c.kind,
                         .schedule = ChunkSchedule::automatic,
                         .T = c.T,
                         .N = c.N,
                         .H = c.H,
                         .d_k = c.d_k,
                         .d_v = c.d_v,
                         .C = 0,
                         .scale = 0.1,
                         .q = make(keys, DType::bf16, -1.0f, 1.0f),
                         .k = make(keys, DType::bf16, -0.2f, 0.2f),
                         .v = make(values, DType::bf16, -1.0f, 1.0f),
                         .g = make(decays, DType::f32, static_cast<float>(2.0 * c.gate), 0.0f),
                         .s0 = nullptr,
                         .cu_seqlens = documents->cu_seqlens_on(on),
                         .chunks = nullptr,
                         .document_offset = nullptr,
                         .chunk_count = 0,
                         .H_k = c.H_k};
    p.C = gated_linear_chunk_cuda(p);
    const ChunkView table = documents->chunks_on(on, static_cast<std::int32_t>(p.C));
    p.chunks = table.chunks;
    p.document_offset = table.document_offset;
    p.chunk_count = table.count;
    GatedLinearForward forward{p};
    forward.o = room(values, DType::bf16);
    GatedLinearBackward backward{p};
    backward.d_o = make(values, DType::bf16, -1.0f, 1.0f);
    backward.dq = room(keys, DType::bf16);
    backward.dk = room(keys, DType::bf16);
    backward.dv = room(values, DType::bf16);
    if (c.kind != DecayKind::constant) backward.dg = room(decays, DType::f32);
    const std::size_t bytes =
        std::max(gated_linear_forward_cuda_workspace(forward), gated_linear_backward_cuda_workspace(backward));
    const Launch launch{on, room(static_cast<std::int64_t>(bytes / 4 + 1), DType::f32), bytes};
    const double forward_time = median_milliseconds(stream, [&] { gated_linear_forward_cuda(forward, launch); });
    const double backward_time = median_milliseconds(stream, [&] { gated_linear_backward_cuda(backward, launch); });
    const auto gates = static_cast<double>(c.kind == DecayKind::constant ? 0 : decays);
    const double forward_floor = (4.0 * static_cast<double>(keys + values) + 4.0 * gates) / kBandwidth * 1e3;
    const double backward_floor =
        (8.0 * static_cast<double>(keys) + 6.0 * static_cast<double>(values) + 8.0 * gates) / kBandwidth * 1e3;
    std::printf(
        "  decay %d T %6lld N %2lld H %lld/%lld d %lldx%lld: forward %.3f ms, floor %.3f (%.2f); backward %.3f ms, "
        "floor %.3f (%.2f)\n",
        static_cast<int>(c.kind), static_cast<long long>(c.T), static_cast<long long>(c.N), static_cast<long long>(c.H),
        static_cast<long long>(c.H_k), static_cast<long long>(c.d_k), static_cast<long long>(c.d_v), forward_time,
        forward_floor, forward_floor / forward_time, backward_time, backward_floor, backward_floor / backward_time);
    EXPECT_GE(forward_time, forward_floor * 0.5) << "faster than memory: something was left out";
  }
}

}  // namespace
}  // namespace weft::testing
