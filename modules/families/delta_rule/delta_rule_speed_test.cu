// Times of the delta rule on a GPU at the sizes of the peers' measurements: medians of CUDA events, with the floor by
// bytes and products (README.md, "On the GPU") and the ratio of time to floor.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_memory.h"
#include "autograd/transfer.h"
#include "modules/families/delta_rule/delta_tensor.cuh"
#include "tests/support/gpu.h"
#include "tests/support/random.h"

namespace weft {
namespace {

using namespace testing;

constexpr double kBytesPerSecond = 3.35e12, kProductsPerSecond = 989e12;

template <class F>
double median_ms(const Stream& stream, int repeats, F&& f) {
  cudaEvent_t begin, end;
  WEFT_CUDA_CALL(cudaEventCreate(&begin));
  WEFT_CUDA_CALL(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < repeats + 3; ++i) {
    WEFT_CUDA_CALL(cudaEventRecord(begin, cuda_stream(stream)));
    f();
    WEFT_CUDA_CALL(cudaEventRecord(end, cuda_stream(stream)));
    WEFT_CUDA_CALL(cudaEventSynchronize(end));
    float ms = 0.0f;
    WEFT_CUDA_CALL(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) times.push_back(ms);
  }
  WEFT_CUDA_CALL(cudaEventDestroy(begin));
  WEFT_CUDA_CALL(cudaEventDestroy(end));
  std::ranges::nth_element(times, times.begin() + repeats / 2);
  return times[static_cast<std::size_t>(repeats / 2)];
}

// Rows of random values, the same again and again.
Tensor repeated(Shape shape, DType dtype, const Tensor& rows) {
  const Tensor t = Tensor::empty(shape, dtype);
  const Tensor some = cast(rows, dtype);
  for (std::int64_t at = 0; at < t.dim(0); at += some.dim(0)) {
    const std::int64_t n = std::min(some.dim(0), t.dim(0) - at);
    t.rows(at, at + n).copy_from(some.rows(0, n));
  }
  return t;
}

struct Times {
  double forward, backward;
};

Times time(DeltaDecay decay, std::int64_t T, std::int64_t H, std::int64_t D, DType dtype, int repeats) {
  const Stream stream = gpu_stream();
  const auto memory = std::make_shared<CudaArena>(stream, std::size_t{12} << 30, Hygiene::trusting);
  const auto documents = Documents::single(T);
  const std::int64_t some = 1024;
  const double unit = 1.0 / std::sqrt(static_cast<double>(D));
  const auto on_gpu = [&](const Tensor& t) { return to_memory(t, memory, stream); };
  const auto scaled = [&](std::uint64_t seed) {
    const Tensor t = normal({some, H, D}, seed);
    for (double& x : t.span<double>()) x *= unit;
    return on_gpu(repeated({T, H, D}, dtype, t));
  };
  const Tensor q = scaled(1), k = scaled(2), v = scaled(3), d_o = scaled(4);
  const Tensor beta = on_gpu(repeated({T, H}, DType::f32, uniform({some, H}, 5, 0.0, 1.0)));
  Tensor g;
  if (decay == DeltaDecay::channel) g = on_gpu(repeated({T, H, D}, DType::f32, uniform({some, H, D}, 6, -0.5, 0.0)));
  if (decay == DeltaDecay::scalar) g = on_gpu(repeated({T, H}, DType::f32, uniform({some, H}, 6, -0.5, 0.0)));
  const auto like = [&](const Tensor& t) { return t.defined() ? Tensor(t.shape(), t.dtype(), memory) : Tensor{}; };
  const auto raw = [](const Tensor& t) { return t.defined() ? t.raw() : nullptr; };
  const Tensor o = like(v), dq = like(q), dk = like(k), dv = like(v), dg = like(g), dbeta = like(beta);
  const Tensor st({1, H, D, D}, DType::f32, memory);
  const ChunkView chunks = documents->chunks_on(stream, static_cast<std::int32_t>(delta_rule_chunk()));
  const DeltaRuleProblem problem{.dtype = dtype,
                                 .decay = decay,
                                 .schedule = DeltaSchedule::automatic,
                                 .T = T,
                                 .N = 1,
                                 .H = H,
                                 .H_K = H,
                                 .d_k = D,
                                 .d_v = D,
                                 .C = delta_rule_chunk(),
                                 .scale = unit,
                                 .q = q.raw(),
                                 .k = k.raw(),
                                 .v = v.raw(),
                                 .g = raw(g),
                                 .beta = beta.raw(),
                                 .s0 = nullptr,
                                 .cu_seqlens = documents->cu_seqlens_on(stream),
                                 .chunks = chunks.chunks,
                                 .document_offset = chunks.document_offset,
                                 .chunk_count = chunks.count};
  DeltaRuleForward forward{problem};
  forward.o = o.raw();
  forward.st = st.raw();
  DeltaRuleBackward backward{problem};
  backward.d_o = d_o.raw();
  backward.dq = dq.raw();
  backward.dk = dk.raw();
  backward.dv = dv.raw();
  backward.dg = raw(dg);
  backward.dbeta = dbeta.raw();
  const std::size_t bytes =
      std::max(delta_rule_forward_cuda_workspace(forward), delta_rule_backward_cuda_workspace(backward));
  const Tensor workspace({static_cast<std::int64_t>(bytes / 4 + 1)}, DType::f32, memory);
  const Launch launch{stream, workspace.raw(), bytes};
  if (dtype == DType::bf16) {
    // The stages one by one, on what lies in the workspace.
    using namespace delta_tensor;
    auto* records = static_cast<Operands*>(workspace.raw());
    auto* entries = reinterpret_cast<bf16*>(records + chunks.count * H);
    bf16 *dexits = entries + chunks.count * H * D * D, *W = dexits + chunks.count * H * D * D, *Y = W + T * H * D;
    const GradientSources sources{entries, dexits, W, Y, records, nullptr, nullptr};
    const double ms[] = {
        median_ms(stream, repeats, [&] { make_operands(problem, records, launch); }),
        median_ms(stream, repeats, [&] { walk_states(problem, records, o.raw(), st.raw(), nullptr, nullptr, launch); }),
        median_ms(stream, repeats, [&] { walk_states(problem, records, nullptr, nullptr, entries, W, launch); }),
        median_ms(stream, repeats, [&] { retreat_states(backward, records, dexits, Y, launch); }),
        median_ms(stream, repeats, [&] { chunk_gradients(backward, sources, launch); })};
    std::printf("  operands %.3f, walk %.3f, walk for backward %.3f, retreat %.3f, gradients %.3f ms\n", ms[0], ms[1],
                ms[2], ms[3], ms[4]);
  }
  return {median_ms(stream, repeats, [&] { delta_rule_forward_cuda(forward, launch); }),
          median_ms(stream, repeats, [&] { delta_rule_backward_cuda(backward, launch); })};
}

// Bytes of inputs and outputs once each, and products of the chunked form (specification, "Costs").
void report(const char* name, DeltaDecay decay, std::int64_t T, DType dtype, double peer_forward, double peer_both) {
  const std::int64_t H = 32, D = 128;
  const Times ms = time(decay, T, H, D, dtype, 20);
  const double element = static_cast<double>(size_of(dtype));
  const auto tokens = static_cast<double>(T * H);
  const double gate = decay == DeltaDecay::channel ? 4.0 * D : 4.0;
  const double forward_floor =
      std::max(tokens * (4.0 * D * element + gate) / kBytesPerSecond, tokens * 1.44e5 / kProductsPerSecond) * 1e3;
  const double backward_floor =
      std::max(tokens * (7.0 * D * element + 2.0 * gate) / kBytesPerSecond, tokens * 3.75e5 / kProductsPerSecond) * 1e3;
  std::printf(
      "%-12s T %6lld H 32 D 128 %s: forward %.3f ms (floor %.3f, x%.1f), backward %.3f ms (floor %.3f, x%.1f), "
      "both %.3f ms; peer %.2f and %.2f\n",
      name, static_cast<long long>(T), dtype == DType::bf16 ? "bf16" : "f32", ms.forward, forward_floor,
      ms.forward / forward_floor, ms.backward, backward_floor, ms.backward / backward_floor, ms.forward + ms.backward,
      peer_forward, peer_both);
  EXPECT_GT(ms.forward, 0.0);
}

TEST(DeltaSpeedGpu, SizesOfThePeers) {
  WEFT_NEEDS_GPU();
  report("kda", DeltaDecay::channel, 8192, DType::bf16, 1.16, 5.24);
  report("kda", DeltaDecay::channel, 32768, DType::bf16, 4.48, 20.5);
  report("gdn", DeltaDecay::scalar, 8192, DType::bf16, 0.72, 2.36);
  report("gdn", DeltaDecay::scalar, 32768, DType::bf16, 2.57, 9.29);
  report("kda general", DeltaDecay::channel, 8192, DType::f32, 0.0, 0.0);
}

}  // namespace
}  // namespace weft
