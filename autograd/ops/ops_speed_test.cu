// Speed of the memory-bound operations: time, bytes that must move, and the share of a copy's bandwidth in this run.
#include <gtest/gtest.h>

#include "autograd/cuda/cuda_memory.h"
#include "autograd/cuda/kernel_timer.cuh"
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/documents.h"
#include "autograd/ops/activation/activation.h"
#include "autograd/ops/cast/cast.h"
#include "autograd/ops/columns/columns.h"
#include "autograd/ops/decay_gate/decay_gate.h"
#include "autograd/ops/elementwise/elementwise.h"
#include "autograd/ops/embedding/embedding.h"
#include "autograd/ops/feature_map/feature_map.h"
#include "autograd/ops/forget_gate/forget_gate.h"
#include "autograd/ops/gate/gate.h"
#include "autograd/ops/head_skip/head_skip.h"
#include "autograd/ops/l2_norm/l2_norm.h"
#include "autograd/ops/lrpe/lrpe.h"
#include "autograd/ops/norm_rope/norm_rope.h"
#include "autograd/ops/repeat_heads/repeat_heads.h"
#include "autograd/ops/rms_norm/rms_norm.h"
#include "autograd/ops/rope/rope.h"
#include "autograd/ops/short_conv/short_conv.h"
#include "tests/support/gpu.h"

namespace weft {
namespace {

constexpr std::int64_t kT = 65536, kD = 2048, kN = kT * kD, kVocabulary = 50304;

// Numbers in [-1, 1) from a hash of the index.
struct Noise {
  static __device__ float at(std::uint32_t i) {
    i = (i ^ (i >> 16)) * 0x7feb352du;
    i = (i ^ (i >> 15)) * 0x846ca68bu;
    return static_cast<float>(static_cast<std::int32_t>(i ^ (i >> 16))) * 0x1p-31f;
  }
};
template <class T>
__global__ void noise_kernel(T* to, std::int64_t n, std::uint32_t seed) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i < n) to[i] = from_float<T>(Noise::at(static_cast<std::uint32_t>(i) * 9u + seed));
}
__global__ void token_kernel(std::int32_t* to, std::int64_t n) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x;
  // Squares: small ids are frequent, as in text.
  const float u = fabsf(Noise::at(static_cast<std::uint32_t>(i) * 3u + 1u));
  if (i < n) to[i] = static_cast<std::int32_t>(u * u * static_cast<float>(kVocabulary - 1));
}

class OpsSpeedGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    WEFT_NEEDS_GPU();
    stream_ = testing::gpu_stream();
    memory_ = testing::gpu_memory(std::size_t{6} << 30);
    const bfloat16* from = bf16_array(kN);
    void* to = block(2 * kN);
    copy_rate_ = 4.0 * kN / median_seconds(stream_, [&](int) {
                   WEFT_CUDA_CALL(cudaMemcpyAsync(to, from, 2 * kN, cudaMemcpyDeviceToDevice, cuda_stream(stream_)));
                 });
    fmt::print("copy: {:.0f} GB/s, read and write\n", 1e-9 * copy_rate_);
  }

  void* block(std::int64_t bytes) {
    blocks_.push_back(Tensor({bytes / 4}, DType::i32, memory_));
    return blocks_.back().raw();
  }
  template <class T>
  T* noise(std::int64_t n) {
    auto* data = static_cast<T*>(block(n * static_cast<std::int64_t>(sizeof(T))));
    noise_kernel<<<static_cast<unsigned>((n + 255) / 256), 256, 0, cuda_stream(stream_)>>>(
        data, n, static_cast<std::uint32_t>(blocks_.size()));
    WEFT_CHECK_LAUNCH();
    return data;
  }
  bfloat16* bf16_array(std::int64_t n) { return noise<bfloat16>(n); }
  float* f32_array(std::int64_t n) { return noise<float>(n); }

  template <class Args>
  void time(const char* name, double bytes, void (*launcher)(const Args&, const Launch&), const Args& args,
            std::size_t workspace_bytes = 0) {
    const Tensor workspace({static_cast<std::int64_t>(workspace_bytes / 4 + 1)}, DType::i32, memory_);
    Launch launch;
    launch.stream = stream_;
    launch.workspace = workspace.raw();
    launch.workspace_bytes = workspace_bytes;
    const double seconds = median_seconds(stream_, [&](int) { launcher(args, launch); });
    fmt::print("{:<34} {:8.1f} us {:8.1f} MB {:7.0f} GB/s {:6.3f} of copy\n", name, 1e6 * seconds, 1e-6 * bytes,
               1e-9 * bytes / seconds, bytes / seconds / copy_rate_);
    std::fflush(stdout);
  }

  Stream stream_;
  std::shared_ptr<Allocator> memory_;
  std::vector<Tensor> blocks_;
  double copy_rate_ = 0.0;
};

constexpr double kRow = 2.0 * kN;  // bytes of one [kT, kD] in bf16

TEST_F(OpsSpeedGpu, RowsOf2048) {
  bfloat16 *a = bf16_array(kN), *b = bf16_array(kN), *c = bf16_array(kN), *y = bf16_array(kN), *z = bf16_array(kN);
  float *weight = f32_array(4096), *rstd = f32_array(kT * 16), *gates = f32_array(kT * 16), *dweight = f32_array(4096);

  time("add", 3 * kRow, add_cuda, AddForward{.dtype = DType::bf16, .N = kN, .a = a, .b = b, .y = y});
  const auto norm = [&](std::int64_t R, std::int64_t D, std::int64_t H, const void* residual) {
    return RmsNormForward{.dtype = DType::bf16,
                          .R = R,
                          .D = D,
                          .H = H,
                          .eps = 1e-6,
                          .x = a,
                          .residual = residual,
                          .weight = weight,
                          .sum = residual == nullptr ? nullptr : z,
                          .y = y,
                          .rstd = rstd};
  };
  const auto norm_backward = [&](std::int64_t R, std::int64_t D, std::int64_t H, const void* dsum) {
    return RmsNormBackward{.dtype = DType::bf16,
                           .R = R,
                           .D = D,
                           .H = H,
                           .x = a,
                           .weight = weight,
                           .rstd = rstd,
                           .dy = b,
                           .dsum = dsum,
                           .dx = y,
                           .write_dx = Write::overwrite,
                           .dweight = dweight,
                           .write_dweight = Write::accumulate};
  };
  time("rms_norm forward", 2 * kRow, rms_norm_forward_cuda, norm(kT, kD, 1, nullptr));
  time("rms_norm forward, residual", 4 * kRow, rms_norm_forward_cuda, norm(kT, kD, 1, b));
  time("rms_norm forward, 16 heads of 128", 2 * kRow, rms_norm_forward_cuda, norm(kT * 16, 128, 16, nullptr));
  time("rms_norm forward, width 4096", 2 * kRow, rms_norm_forward_cuda, norm(kT / 2, 4096, 1, nullptr));
  for (const auto& [name, bytes, args] :
       {std::tuple{"rms_norm backward", 3.0, norm_backward(kT, kD, 1, nullptr)},
        std::tuple{"rms_norm backward, residual", 4.0, norm_backward(kT, kD, 1, c)},
        std::tuple{"rms_norm backward, heads, one row", 3.0, norm_backward(kT * 16, 128, 1, nullptr)},
        std::tuple{"rms_norm backward, 16 heads of 128", 3.0, norm_backward(kT * 16, 128, 16, nullptr)},
        std::tuple{"rms_norm backward, width 4096", 3.0, norm_backward(kT / 2, 4096, 1, nullptr)},
        std::tuple{"rms_norm backward, width 1024", 3.0, norm_backward(kT * 2, 1024, 1, nullptr)}}) {
    time(name, bytes * kRow, rms_norm_backward_cuda, args, rms_norm_backward_cuda_workspace(args));
  }

  const auto gate = [&](GateFunction function, bool per_row) {
    return GateForward{.dtype = DType::bf16,
                       .gate_dtype = per_row ? DType::f32 : DType::bf16,
                       .function = function,
                       .per_row = per_row,
                       .R = kT * 16,
                       .D = 128,
                       .x = a,
                       .g = per_row ? static_cast<const void*>(gates) : b,
                       .y = y};
  };
  const auto gate_backward = [&](GateFunction function, bool per_row) {
    return GateBackward{.dtype = DType::bf16,
                        .gate_dtype = per_row ? DType::f32 : DType::bf16,
                        .function = function,
                        .per_row = per_row,
                        .R = kT * 16,
                        .D = 128,
                        .x = a,
                        .g = per_row ? static_cast<const void*>(gates) : b,
                        .dy = c,
                        .dx = y,
                        .write_dx = Write::overwrite,
                        .dg = per_row ? static_cast<void*>(rstd) : z,
                        .write_dg = Write::overwrite};
  };
  time("swiglu forward", 3 * kRow, gate_forward_cuda, gate(GateFunction::silu, false));
  time("swiglu backward", 5 * kRow, gate_backward_cuda, gate_backward(GateFunction::silu, false));
  time("gelu_gate backward", 5 * kRow, gate_backward_cuda, gate_backward(GateFunction::gelu, false));
  time("sigmoid_gate per head forward", 2 * kRow, gate_forward_cuda, gate(GateFunction::sigmoid, true));
  time("sigmoid_gate per head backward", 3 * kRow, gate_backward_cuda, gate_backward(GateFunction::sigmoid, true));

  time("add_row", 2 * kRow, row_forward_cuda,
       RowForward{.dtype = DType::bf16, .function = RowFunction::add, .R = kT, .D = kD, .x = a, .row = weight, .y = y});
  const auto row_backward = [&](RowFunction function, void* dx) {
    return RowBackward{.dtype = DType::bf16,
                       .function = function,
                       .R = kT,
                       .D = kD,
                       .x = a,
                       .row = weight,
                       .dy = b,
                       .dx = dx,
                       .write_dx = Write::overwrite,
                       .drow = dweight,
                       .write_drow = Write::accumulate};
  };
  time("add_row backward", kRow, row_backward_cuda, row_backward(RowFunction::add, nullptr),
       row_backward_cuda_workspace(row_backward(RowFunction::add, nullptr)));
  time("mul_row backward", 3 * kRow, row_backward_cuda, row_backward(RowFunction::mul, y),
       row_backward_cuda_workspace(row_backward(RowFunction::mul, y)));
}

TEST_F(OpsSpeedGpu, CastRopeEmbeddingConvolution) {
  bfloat16 *a = bf16_array(kN), *b = bf16_array(kN), *y = bf16_array(kN);
  float* wide = f32_array(kN);
  time("cast f32 to bf16", 3 * kRow, cast_cuda,
       Cast{.from = DType::f32, .to = DType::bf16, .N = kN, .x = wide, .y = y, .write_y = Write::overwrite});

  const RopeTable table(RopeConfig{.rotary_dim = 128});
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>(16, kT / 16));
  for (const std::int64_t H : {16, 64}) {
    time(fmt::format("rope, {} heads", H).c_str(), 2 * kRow, rotate_cuda,
         Rotation{.dtype = DType::bf16,
                  .T = kT * 16 / H,
                  .H = H,
                  .D = 128,
                  .D_r = 128,
                  .direction = 1.0,
                  .angles = table.angles_on(stream_, *documents),
                  .x = a,
                  .y = y,
                  .write_y = Write::overwrite});
  }

  float *weight = f32_array(128), *rstd = f32_array(kT * 16);
  const NormRopeProblem norm_rope{.dtype = DType::bf16,
                                  .T = kT,
                                  .H = 16,
                                  .D = 128,
                                  .angles = table.angles_on(stream_, *documents),
                                  .x = a,
                                  .weight = weight,
                                  .rstd = rstd};
  NormRopeForward norm_rope_forward{norm_rope};
  norm_rope_forward.y = y;
  time("norm_rope, 16 heads of 128", 2 * kRow, norm_rope_forward_cuda, norm_rope_forward);
  NormRopeBackward norm_rope_backward{norm_rope};
  norm_rope_backward.dy = b;
  norm_rope_backward.dx = y;
  norm_rope_backward.dweight = weight;
  time("norm_rope backward", 3 * kRow, norm_rope_backward_cuda, norm_rope_backward,
       norm_rope_backward_cuda_workspace(norm_rope_backward));

  auto* tokens = static_cast<std::int32_t*>(block(kT * 4));
  token_kernel<<<kT / 256, 256, 0, cuda_stream(stream_)>>>(tokens, kT);
  WEFT_CHECK_LAUNCH();
  bfloat16* embeddings = bf16_array(kVocabulary * kD);
  time("embedding forward", 2 * kRow, embedding_forward_cuda,
       EmbeddingForward{
           .dtype = DType::bf16, .T = kT, .V = kVocabulary, .D = kD, .tokens = tokens, .table = embeddings, .y = y});
  const EmbeddingBackward backward{.dtype = DType::bf16,
                                   .T = kT,
                                   .V = kVocabulary,
                                   .D = kD,
                                   .tokens = tokens,
                                   .dy = a,
                                   .dtable = f32_array(kVocabulary * kD),
                                   .write_dtable = Write::accumulate};
  // Rows that occur are read and written in f32: 32396.
  time("embedding backward", kRow + 32396.0 * kD * 8, embedding_backward_cuda, backward,
       embedding_backward_cuda_workspace(backward));
  std::vector<std::int32_t> same(kT, 7);
  WEFT_CUDA_CALL(cudaMemcpyAsync(tokens, same.data(), kT * 4, cudaMemcpyHostToDevice, cuda_stream(stream_)));
  time("embedding backward, one token", kRow, embedding_backward_cuda, backward,
       embedding_backward_cuda_workspace(backward));

  const ShortConvolutionForward convolution{.dtype = DType::bf16,
                                            .activation = ConvolutionActivation::silu,
                                            .T = kT,
                                            .C = kD,
                                            .w = 4,
                                            .N = documents->count(),
                                            .cu_seqlens = documents->cu_seqlens_on(stream_),
                                            .chunks = documents->chunks_on(stream_, kConvolutionForwardChunk),
                                            .x = a,
                                            .weight = b,
                                            .bias = nullptr,
                                            .state = nullptr,
                                            .y = y};
  time("short_convolution forward", 2 * kRow, short_convolution_forward_cuda, convolution);
  const ShortConvolutionBackward convolution_backward{
      .dtype = DType::bf16,
      .activation = ConvolutionActivation::silu,
      .T = kT,
      .C = kD,
      .w = 4,
      .N = documents->count(),
      .cu_seqlens = documents->cu_seqlens_on(stream_),
      .chunks = documents->chunks_on(stream_, kConvolutionBackwardChunk),
      .x = a,
      .weight = wide,
      .bias = nullptr,
      .dy = b,
      .dx = y,
      .write_dx = Write::overwrite,
      .dweight = wide,
      .write_dweight = Write::overwrite,
      .dbias = nullptr,
      .write_dbias = Write::overwrite};
  time("short_convolution backward", 3 * kRow, short_convolution_backward_cuda, convolution_backward,
       short_convolution_backward_cuda_workspace(convolution_backward));
}

TEST_F(OpsSpeedGpu, GatesHeadsAndColumns) {
  bfloat16 *a = bf16_array(kN), *b = bf16_array(kN), *y = bf16_array(kN), *twice = bf16_array(2 * kN);
  float *g = f32_array(kN), *row = f32_array(kT * 16), *vector = f32_array(kD);
  constexpr std::int64_t kH = 16, kW = 128;
  const DocumentsPtr documents = Documents::from_lengths(std::vector<std::int32_t>(16, kT / 16));

  time("l2_norm forward, heads of 128", 2 * kRow, l2_norm_forward_cuda,
       L2NormForward{.dtype = DType::bf16, .R = kT * kH, .D = kW, .eps = 1e-6, .x = a, .y = y, .rnorm = row});
  time("l2_norm backward, heads of 128", 3 * kRow, l2_norm_backward_cuda,
       L2NormBackward{.dtype = DType::bf16,
                      .R = kT * kH,
                      .D = kW,
                      .x = a,
                      .rnorm = row,
                      .dy = b,
                      .dx = y,
                      .write_dx = Write::overwrite});
  time("silu forward", 2 * kRow, activation_forward_cuda,
       ActivationForward{.dtype = DType::bf16,
                         .result_dtype = DType::bf16,
                         .function = ActivationFunction::silu,
                         .N = kN,
                         .scale = 1.0,
                         .x = a,
                         .y = y});
  time("log_sigmoid forward, to f32", 3 * kRow, activation_forward_cuda,
       ActivationForward{.dtype = DType::bf16,
                         .result_dtype = DType::f32,
                         .function = ActivationFunction::log_sigmoid,
                         .N = kN,
                         .scale = 1.0,
                         .x = a,
                         .y = g});
  time("forget_gate forward", 4 * kRow, forget_gate_forward_cuda,
       ForgetGateForward{.dtype = DType::bf16, .N = kN, .gamma = 0.3, .z = a, .k = y, .g = g});
  for (const auto function : {DecayGateFunction::softplus, DecayGateFunction::bounded}) {
    const DecayGateProblem problem{.dtype = DType::bf16,
                                   .function = function,
                                   .T = kT,
                                   .H = kH,
                                   .W = kW,
                                   .bound = -5.0,
                                   .f = a,
                                   .a_log = row,
                                   .dt_bias = vector};
    DecayGateForward forward{problem};
    forward.g = g;
    time("decay_gate forward, per channel", 3 * kRow, decay_gate_forward_cuda, forward);
    DecayGateBackward backward{problem};
    backward.dg = g;
    backward.df = y;
    backward.da_log = vector;
    backward.ddt_bias = vector;
    time("decay_gate backward, per channel", 4 * kRow, decay_gate_backward_cuda, backward,
         decay_gate_backward_cuda_workspace(backward));
  }
  time("split_columns", 2 * kRow, split_columns_cuda,
       SplitColumns{.dtype = DType::bf16,
                    .T = kT * kH,
                    .H = 1,
                    .A = 64,
                    .B = 64,
                    .x = a,
                    .a = b,
                    .write_a = Write::overwrite,
                    .b = y,
                    .write_b = Write::overwrite});
  time("join_columns, shared part", (0.5 + 0.5 / kH + 1) * kRow, join_columns_cuda,
       JoinColumns{.dtype = DType::bf16,
                   .T = kT,
                   .H = kH,
                   .A = 64,
                   .B = 64,
                   .a = a,
                   .b = b,
                   .y = y,
                   .write_y = Write::overwrite});
  time("repeat_heads backward, 16 to 2", 1.125 * kRow, repeat_heads_backward_cuda,
       RepeatHeadsBackward{
           .dtype = DType::bf16, .T = kT, .G = 2, .H = kH, .D = kW, .dy = a, .dx = y, .write_dx = Write::overwrite});
  time("head_skip forward", 3 * kRow, head_skip_forward_cuda,
       HeadSkipForward{.dtype = DType::bf16, .T = kT, .H = kH, .D = kW, .o = a, .x = b, .scale = row, .y = y});
  const HeadSkipBackward skip{.dtype = DType::bf16,
                              .T = kT,
                              .H = kH,
                              .D = kW,
                              .x = a,
                              .scale = row,
                              .dy = b,
                              .dx = y,
                              .write_dx = Write::overwrite,
                              .dscale = vector,
                              .write_dscale = Write::overwrite};
  time("head_skip backward", 3 * kRow, head_skip_backward_cuda, skip, head_skip_backward_cuda_workspace(skip));
  time("softmax_pair forward, heads of 64", 3 * kRow, feature_map_forward_cuda,
       FeatureMapForward{
           .dtype = DType::bf16, .map = FeatureMap::softmax_pair, .R = kN / 64, .D = 64, .x = a, .y = twice});
  time("softmax_pair backward", 4 * kRow, feature_map_backward_cuda,
       FeatureMapBackward{.dtype = DType::bf16,
                          .map = FeatureMap::softmax_pair,
                          .R = kN / 64,
                          .D = 64,
                          .x = a,
                          .y = nullptr,
                          .dy = twice,
                          .dx = y,
                          .write_dx = Write::overwrite});
  constexpr std::int64_t kTaylorRows = kT * 12;  // features of 16 channels
  time("taylor forward, width 16", 2.0 * kTaylorRows * (16 + 153), feature_map_forward_cuda,
       FeatureMapForward{
           .dtype = DType::bf16, .map = FeatureMap::taylor, .R = kTaylorRows, .D = 16, .x = a, .y = twice});
  time("taylor backward, width 16", 2.0 * kTaylorRows * (32 + 153), feature_map_backward_cuda,
       FeatureMapBackward{.dtype = DType::bf16,
                          .map = FeatureMap::taylor,
                          .R = kTaylorRows,
                          .D = 16,
                          .x = a,
                          .y = nullptr,
                          .dy = twice,
                          .dx = y,
                          .write_dx = Write::overwrite});
  const LrpeProblem encoding{.dtype = DType::bf16,
                             .T = kT,
                             .H = kH,
                             .D = kW,
                             .positions = documents->positions_on(stream_),
                             .x = a,
                             .theta = vector};
  LrpeForward encode{encoding};
  encode.y = twice;
  time("lrpe forward", 3 * kRow, lrpe_forward_cuda, encode);
  LrpeBackward decode{encoding};
  decode.dy = twice;
  decode.dx = y;
  decode.dtheta = row;
  time("lrpe backward", 4 * kRow, lrpe_backward_cuda, decode, lrpe_backward_cuda_workspace(decode));
}

}  // namespace
}  // namespace weft
