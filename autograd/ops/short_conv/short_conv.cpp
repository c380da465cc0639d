#include "autograd/ops/short_conv/short_conv.h"

#include "autograd/ops/short_conv/short_conv_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<ShortConvolutionForward> kForward{
    .op = "short_convolution forward",
    .cpu =
        [](const ShortConvolutionForward& args, const Launch&) {
          dispatch_real(args.dtype, "short_convolution", [&]<class T>() { short_convolution_forward_cpu<T>(args); });
        },
    .cuda = WEFT_ON_CUDA(short_convolution_forward_cuda)};
constexpr Dispatch<ShortConvolutionBackward> kBackward{
    .op = "short_convolution backward",
    .cpu =
        [](const ShortConvolutionBackward& args, const Launch& launch) {
          dispatch_real(args.dtype, "short_convolution",
                        [&]<class T>() { short_convolution_backward_cpu<T>(args, static_cast<T*>(launch.workspace)); });
        },
    .cuda = WEFT_ON_CUDA(short_convolution_backward_cuda),
    .cpu_workspace =
        [](const ShortConvolutionBackward& args) {
          if (args.dweight == nullptr && args.dbias == nullptr) return std::size_t{0};
          return static_cast<std::size_t>(block_count(args.T, kConvolutionTokens) * (args.w + 1) * args.C) *
                 size_of(args.dtype);
        },
    .cuda_workspace = WEFT_ON_CUDA(short_convolution_backward_cuda_workspace)};

ChunkView chunks_for_gpu(const Documents& documents, const Stream& stream, std::int32_t block) {
  return stream.device.is_cpu() ? ChunkView{} : documents.chunks_on(stream, block);
}

struct ShortConvolutionSaved {
  Tensor x, weight, bias;
  DocumentsPtr documents;
  ConvolutionActivation activation;

  void backward(Backward& pass) const {
    const GradTarget dx = pass.target(0);
    const GradTarget dweight = pass.target(1);
    const GradTarget dbias = pass.target(2);
    const Tensor dy = pass.grad(0);
    const Stream& stream = pass.tape().stream();
    const ShortConvolutionBackward args{.dtype = x.dtype(),
                                        .activation = activation,
                                        .T = x.dim(0),
                                        .C = x.dim(1),
                                        .w = weight.dim(1),
                                        .N = documents->count(),
                                        .cu_seqlens = documents->cu_seqlens_on(stream),
                                        .chunks = chunks_for_gpu(*documents, stream, kConvolutionBackwardChunk),
                                        .x = x.raw(),
                                        .weight = weight.raw(),
                                        .bias = bias.defined() ? bias.raw() : nullptr,
                                        .dy = dy.raw(),
                                        .dx = dx.raw(),
                                        .write_dx = dx.write,
                                        .dweight = dweight.raw(),
                                        .write_dweight = dweight.write,
                                        .dbias = dbias.raw(),
                                        .write_dbias = dbias.write};
    kBackward.run(pass, args);
  }
};

}  // namespace

Var short_convolution(Tape& tape, const Var& x, const Var& weight, const Var& bias, const DocumentsPtr& documents,
                      ConvolutionActivation activation, const Tensor& state) {
  WEFT_CHECK(x.shape().rank() == 2 && x.dim(0) == documents->tokens(),
             "short_convolution: x is {}, expected [{}, channels]", x.shape().str(), documents->tokens());
  const std::int64_t C = x.dim(1);
  WEFT_CHECK(weight.shape().rank() == 2 && weight.dim(0) == C && weight.dtype() == x.dtype(),
             "short_convolution: weight {} {} for x {} {}", weight.shape().str(), name_of(weight.dtype()),
             x.shape().str(), name_of(x.dtype()));
  const std::int64_t w = weight.dim(1);
  WEFT_CHECK(w >= 2 && w <= kMaxConvolutionTaps, "short_convolution: {} taps, expected 2 to {}", w,
             kMaxConvolutionTaps);
  const bool has_bias = bias.value.defined();
  WEFT_CHECK(!has_bias || (bias.shape() == Shape{C} && bias.dtype() == accumulator_dtype(x.dtype())),
             "short_convolution: bias {} {} for x {} {}", bias.shape().str(), name_of(bias.dtype()), x.shape().str(),
             name_of(x.dtype()));
  if (state.defined()) {
    WEFT_CHECK((state.shape() == Shape{documents->count(), C, w - 1}) && state.dtype() == x.dtype(),
               "short_convolution: state {} {}, expected {} {}", state.shape().str(), name_of(state.dtype()),
               Shape{documents->count(), C, w - 1}.str(), name_of(x.dtype()));
    WEFT_CHECK(!tape.recording(), "short_convolution: a state on a recording tape; states serve inference only");
  }
  const Tensor y = tape.empty(x.shape(), x.dtype());
  tape.compute_cheaply(
      {x.value, weight.value, bias.value}, {y},
      [documents, activation, state](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
        kForward.run(on, {.dtype = in[0].dtype(),
                          .activation = activation,
                          .T = in[0].dim(0),
                          .C = in[0].dim(1),
                          .w = in[1].dim(1),
                          .N = documents->count(),
                          .cu_seqlens = documents->cu_seqlens_on(on.stream()),
                          .chunks = chunks_for_gpu(*documents, on.stream(), kConvolutionForwardChunk),
                          .x = in[0].raw(),
                          .weight = in[1].raw(),
                          .bias = in[2].defined() ? in[2].raw() : nullptr,
                          .state = state.defined() ? state.raw() : nullptr,
                          .y = out[0].raw()});
      });
  return tape.record("short_convolution", {x, weight, bias}, y, [&] {
    return ShortConvolutionSaved{x.value, weight.value, bias.value, documents, activation};
  });
}

Var short_convolution(Tape& tape, const Var& x, const Var& weight, const DocumentsPtr& documents,
                      ConvolutionActivation activation, const Tensor& state) {
  return short_convolution(tape, x, weight, Var{}, documents, activation, state);
}

}  // namespace weft
