// Features of queries and keys in device memory (autograd/ops/feature_map/feature_map.h), for the general kernels of
// the recurrence: f32 whatever the type of the rows, and their gradients summed over the heads that share a row.
//
// R rows, W = feature_width(map, x.width).
#pragma once

#include "autograd/cuda/cuda_check.cuh"
#include "modules/families/gated_linear/gated_linear_device.cuh"

namespace weft {

// y [R, W] = phi(x).
void feature_rows_cuda(FeatureMap map, std::int64_t R, const DeviceRows& x, float* y, cudaStream_t stream);

// dx = phi'(x)^T (sum over `shared` heads of dy); y [R, W], dy [R, shared, W]. The identity needs no y.
void feature_rows_backward_cuda(FeatureMap map, std::int64_t R, std::int64_t shared, std::int64_t W,
                                const DeviceRows& x, const float* y, const float* dy, const DeviceRows& dx, Write write,
                                cudaStream_t stream);

}  // namespace weft
