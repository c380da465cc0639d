// A build without CUDA never asks for these.
#ifndef WEFT_CUDA

#include "autograd/check.h"
#include "train/loop/cuda_step.h"

namespace weft {

void mean_loss_cuda(const MeanLoss&, const Stream&) {
  fail(ExitCode::internal, "a step on a GPU in a build without CUDA");
}

double measure_cuda_matrix_rate(const Place&) {
  fail(ExitCode::internal, "the rate of a GPU in a build without CUDA");
}

}  // namespace weft

#endif
