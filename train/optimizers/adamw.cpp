#include "train/optimizers/adamw.h"

#include <cmath>

namespace weft {
namespace {

template <bool kZero>
void update(const AdamWScalars s, std::int64_t n, float* __restrict p, float* __restrict grad, float* __restrict m,
            float* __restrict v) {
  for (std::int64_t i = 0; i < n; ++i) {
    // g and square are each used twice, so the compiler cannot contract them into the differences.
    const float g = s.gradient_scale * grad[i];
    const float square = g * g;
    const float m_new = __builtin_fmaf(s.beta1, m[i] - g, g);
    const float v_new = __builtin_fmaf(s.beta2, v[i] - square, square);
    const float direction = (m_new * s.correction1) / (__builtin_sqrtf(v_new * s.correction2) + s.eps);
    m[i] = m_new;
    v[i] = v_new;
    p[i] = __builtin_fmaf(-s.learning_rate, __builtin_fmaf(s.weight_decay, p[i], direction), p[i]);
    if constexpr (kZero) grad[i] = 0.0f;
  }
}

}  // namespace

AdamWScalars adamw_scalars(double beta1, double beta2, double eps, double learning_rate, double weight_decay,
                           double gradient_scale, std::int64_t t) {
  // expm1 keeps the digits of 1 - beta^t where beta^t is close to 1.
  const auto correction = [t](double beta) {
    return static_cast<float>(-1.0 / std::expm1(static_cast<double>(t) * std::log(beta)));
  };
  return {.gradient_scale = static_cast<float>(gradient_scale),
          .beta1 = static_cast<float>(beta1),
          .beta2 = static_cast<float>(beta2),
          .correction1 = correction(beta1),
          .correction2 = correction(beta2),
          .eps = static_cast<float>(eps),
          .learning_rate = static_cast<float>(learning_rate),
          .weight_decay = static_cast<float>(weight_decay)};
}

void adamw_update(const AdamWScalars& scalars, bool zero, std::int64_t n, float* p, float* grad, float* m, float* v) {
  zero ? update<true>(scalars, n, p, grad, m, v) : update<false>(scalars, n, p, grad, m, v);
}

}  // namespace weft
