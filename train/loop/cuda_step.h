// The kernels of the training loop itself.
#pragma once

#include <cstdint>

#include "autograd/place.h"

namespace weft {

// mean = sum over micro-batches a of sums[a, 0] / denominator, in order.
struct MeanLoss {
  std::int64_t micro_batches;
  const double* sums;        // [micro_batches, 4]: LossSums
  const float* denominator;  // [1]
  double* mean;              // [1]
};
void mean_loss_cuda(const MeanLoss& args, const Stream& stream);

// Floating-point operations a second of a product of square matrices of random numbers in the type of the place.
double measure_cuda_matrix_rate(const Place& place);

}  // namespace weft
