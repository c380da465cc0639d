// AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101) on one stretch of a parameter.
#pragma once

#include <cstdint>

namespace weft {

// The scalars of one update, rounded once from fp64.
struct AdamWScalars {
  float gradient_scale;
  float beta1;
  float beta2;
  float correction1;  // 1 / (1 - beta1^t), t = updates made, this one included
  float correction2;  // 1 / (1 - beta2^t)
  float eps;
  float learning_rate;
  float weight_decay;
};
// peak_rate * schedule_factor is the learning rate of this step.
AdamWScalars adamw_scalars(double beta1, double beta2, double eps, double learning_rate, double weight_decay,
                           double gradient_scale, std::int64_t t);

// For n elements, with g = scale * grad, in exactly these roundings (fma where written):
//   m = fma(beta1, m - g, g)    v = fma(beta2, v - g*g, g*g)
//   p = fma(-rate, fma(decay, p, (m * correction1) / (sqrt(v * correction2) + eps)), p)
// The gradient is set to zero after it was read if `zero` is true.
void adamw_update(const AdamWScalars& scalars, bool zero, std::int64_t n, float* p, float* grad, float* m, float* v);

}  // namespace weft
