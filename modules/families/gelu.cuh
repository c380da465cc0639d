// autograd/gelu.h on the device: GELU in its tanh form, with two derivatives.
#pragma once

namespace weft {

// gelu(x) = x (1 + t) / 2,  t = tanh(u),  u = sqrt(2/pi) (x + 0.044715 x^3)
struct GeluCuda {
  float x, t, slope_of_u;

  __device__ explicit GeluCuda(float at)
      : x(at), t(tanhf(kScale * (x + kCubic * x * x * x))), slope_of_u(kScale * (1.0F + 3.0F * kCubic * x * x)) {}
  __device__ float value() const { return 0.5F * x * (1.0F + t); }
  __device__ float slope() const { return 0.5F * (1.0F + t) + 0.5F * x * (1.0F - t * t) * slope_of_u; }
  __device__ float curvature() const {
    const float s = 1.0F - t * t;
    return s * slope_of_u + 0.5F * x * s * (kScale * 6.0F * kCubic * x - 2.0F * t * slope_of_u * slope_of_u);
  }

 private:
  static constexpr float kScale = 0.79788456080286535588F;  // sqrt(2 / pi)
  static constexpr float kCubic = 0.044715F;
};

}  // namespace weft
