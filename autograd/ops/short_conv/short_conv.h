// Short causal depthwise convolution over time, optionally with bias and SiLU: the local mixing in front of linear
// attention (H3, arXiv:2212.14052; Mamba, arXiv:2312.00752).
//
// T tokens of a packed row, N documents, C channels, w taps (2 to 8):
//   u_t = bias + sum_j weight_j x_{t-w+1+j},   y_t = u_t or silu(u_t).
// The last tap acts on the current token. What lies before a document's start is 0, or comes from the state.
#pragma once

#include "autograd/documents.h"
#include "autograd/tape.h"

namespace weft {

enum class ConvolutionActivation : std::uint8_t { none, silu };

inline constexpr std::int64_t kMaxConvolutionTaps = 8;
// Tokens that one thread of a GPU walks.
inline constexpr std::int32_t kConvolutionForwardChunk = 32;
inline constexpr std::int32_t kConvolutionBackwardChunk = 128;

struct ShortConvolutionForward {
  DType dtype;
  ConvolutionActivation activation;
  std::int64_t T, C, w, N;
  const std::int32_t* cu_seqlens;  // [N+1]
  ChunkView chunks;                // on a GPU
  const void* x;                   // [T, C]
  const void* weight;              // [C, w]
  const void* bias;                // [C] accumulator, or null
  void* state;                     // [N, C, w-1] or null: the inputs before each document, oldest first; advanced
  void* y;                         // [T, C]
};

struct ShortConvolutionBackward {
  DType dtype;
  ConvolutionActivation activation;
  std::int64_t T, C, w, N;
  const std::int32_t* cu_seqlens;  // [N+1]
  ChunkView chunks;                // on a GPU
  const void* x;                   // [T, C]
  const void* weight;              // [C, w]
  const void* bias;                // [C] accumulator, or null
  const void* dy;                  // [T, C]
  void* dx;                        // [T, C] or null
  Write write_dx;
  void* dweight;  // [C, w] accumulator, or null
  Write write_dweight;
  void* dbias;  // [C] accumulator, or null
  Write write_dbias;
};

void short_convolution_forward_cuda(const ShortConvolutionForward& args, const Launch& launch);
void short_convolution_backward_cuda(const ShortConvolutionBackward& args, const Launch& launch);
std::size_t short_convolution_backward_cuda_workspace(const ShortConvolutionBackward& args);

// x [T, C], weight [C, w], bias [C] of accumulator type -> [T, C]. A state [N, C, w-1] of x's type (inference only)
// holds the inputs that precede each document, zeros at first, and is advanced in place: one-token documents make a
// decoding step.
Var short_convolution(Tape& tape, const Var& x, const Var& weight, const DocumentsPtr& documents,
                      ConvolutionActivation activation, const Tensor& state = {});
Var short_convolution(Tape& tape, const Var& x, const Var& weight, const Var& bias, const DocumentsPtr& documents,
                      ConvolutionActivation activation, const Tensor& state = {});

}  // namespace weft
