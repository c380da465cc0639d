// A step of small operations, captured in a CUDA graph, gives the bits of the step that was launched kernel by kernel.
#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_memory.h"
#include "autograd/ops/decay_gate/decay_gate.h"
#include "autograd/ops/embedding/embedding.h"
#include "autograd/ops/norm_rope/norm_rope.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "autograd/ops/rows/rows.h"
#include "autograd/ops/short_conv/short_conv.h"
#include "autograd/ops/swiglu/swiglu.h"
#include "autograd/transfer.h"
#include "tests/support/compare.h"
#include "tests/support/gpu.h"
#include "tests/support/random.h"

namespace weft {
namespace {

using testing::cast;
using testing::normal;

TEST(OpsGraphGpu, ReplaysTheBitsOfPlainLaunches) {
  WEFT_NEEDS_GPU();
  const Stream stream = testing::gpu_stream();
  const auto memory = std::make_shared<CudaArena>(stream, std::size_t{1} << 28);
  const std::int64_t T = 200, V = 300, H = 2, D = 64, C = H * D;
  const auto here = [&](const Tensor& t) { return to_memory(t, memory, stream); };
  const auto weight = [&](const Shape& shape, std::uint64_t seed) {
    return here(cast(normal(shape, seed), DType::bf16));
  };
  const auto vector = [&](const Shape& shape, std::uint64_t seed) {
    return here(cast(normal(shape, seed), DType::f32));
  };
  std::vector<std::int32_t> ids;
  for (std::int32_t t = 0; t < T; ++t) ids.push_back(t * t % static_cast<std::int32_t>(V));
  const Tensor tokens = here(Tensor::from({T}, ids));
  const Tensor values[] = {weight({V, C}, 1), weight({C, 4}, 2), vector({C}, 3),
                           vector({D}, 4),    vector({H}, 5),    vector({C}, 6)};
  const Tensor seed_y = weight({T, C}, 7), seed_g = vector({T, C}, 8);
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>{70, 1, 129});
  const RopeTable table(RopeConfig{.rotary_dim = D});
  std::vector<std::int32_t> turned(ids.size());
  for (std::size_t i = 0; i < turned.size(); ++i) turned[i] = static_cast<std::int32_t>(turned.size() - 1 - i);
  const auto map = std::make_shared<const RowMap>(turned, T);

  const auto step = [&] {
    Tape tape(memory, Tape::Mode::record, stream);
    std::vector<Var> leaves;
    for (const Tensor& v : values) leaves.push_back(tape.leaf(v, DType::f32));
    const Var x = take_rows(tape, {embedding(tape, tokens, leaves[0])}, map);
    const Var mixed = short_convolution(tape, x, leaves[1], documents, ConvolutionActivation::silu);
    const auto [sum, normed] = add_rms_norm(tape, mixed, x, leaves[2]);
    const Var q = norm_rope(tape, normed.reshape({T, H, D}), leaves[3], documents, table);
    const Var y = swiglu(tape, q.reshape({T, C}), sum);
    const Var g = softplus_decay(tape, normed.reshape({T, H, D}), leaves[4], leaves[5]).reshape({T, C});
    tape.backward(std::array{y, g}, std::array{seed_y, seed_g});
    std::vector<Tensor> results{y.value, g.value};
    for (const Var& leaf : leaves) results.push_back(tape.gradient(leaf));
    return results;
  };
  // The plain step also makes the tables that a graph must find.
  std::vector<Tensor> plain;
  for (const Tensor& t : step()) plain.push_back(cast(to_host(t, stream), t.dtype()));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  WEFT_CUDA_CALL(cudaStreamBeginCapture(cuda_stream(stream), cudaStreamCaptureModeThreadLocal));
  const std::vector<Tensor> captured = step();
  WEFT_CUDA_CALL(cudaStreamEndCapture(cuda_stream(stream), &graph));
  WEFT_CUDA_CALL(cudaGraphInstantiate(&executable, graph, 0));
  for (int replay = 0; replay < 2; ++replay) {
    for (const Tensor& t : captured) fill_zero(t, stream);
    WEFT_CUDA_CALL(cudaGraphLaunch(executable, cuda_stream(stream)));
    for (std::size_t i = 0; i < plain.size(); ++i) {
      EXPECT_TRUE(testing::bitwise_equal(to_host(captured[i], stream), plain[i])) << "result " << i;
    }
  }
  WEFT_CUDA_CALL(cudaGraphExecDestroy(executable));
  WEFT_CUDA_CALL(cudaGraphDestroy(graph));
}

}  // namespace
}  // namespace weft
