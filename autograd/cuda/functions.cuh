// Activations and their slopes, for device code: within a few ulp in fp32, without overflow for any argument.
#pragma once

namespace weft {

// e^x and 1/x of the special-function unit: relative errors of 2^-22 + |x| 2^-24 and 2^-23; 1/infinity = 0.
__device__ inline float device_exp(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.4426950408889634f * x));
  return y;
}
__device__ inline float device_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float device_sigmoid(float x) {
  return device_reciprocal(1.0f + device_exp(-x));
}

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), the latter by log(1 + u) = 2 atanh(u / (2 + u)): the series to s^15 is
// within 1e-9 for s <= 1/3. Relative precision holds however small the result. NaN stays.
__device__ inline float device_softplus(float x) {
  const float u = device_exp(-fabsf(x));
  const float s = u * device_reciprocal(2.0f + u);
  const float v = s * s;
  float sum = 1.0f / 15.0f;
  sum = sum * v + 1.0f / 13.0f;
  sum = sum * v + 1.0f / 11.0f;
  sum = sum * v + 1.0f / 9.0f;
  sum = sum * v + 1.0f / 7.0f;
  sum = sum * v + 1.0f / 5.0f;
  sum = sum * v + 1.0f / 3.0f;
  sum = sum * v + 1.0f;
  return fmaxf(x, 0.0f) + 2.0f * s * sum;
}

struct DeviceSilu {
  __device__ float value(float x) const { return x * device_sigmoid(x); }
  __device__ float slope(float x) const {
    const float s = device_sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
  }
};

struct DeviceSigmoid {
  __device__ float value(float x) const { return device_sigmoid(x); }
  __device__ float slope(float x) const {
    const float e = device_exp(-fabsf(x));
    const float r = device_reciprocal(1.0f + e);
    return e * r * r;
  }
};

// scale log(sigma(x))
struct DeviceLogSigmoid {
  float scale;
  __device__ float value(float x) const { return -scale * device_softplus(-x); }
  __device__ float slope(float x) const { return scale * device_sigmoid(-x); }
};

struct DeviceSoftplus {
  __device__ float value(float x) const { return device_softplus(x); }
  __device__ float slope(float x) const { return device_sigmoid(x); }
};

// tanh form
struct DeviceGelu {
  static constexpr float kScale = 0.79788456080286535588f;  // sqrt(2 / pi)
  static constexpr float kCubic = 0.044715f;

  __device__ float value(float x) const { return 0.5f * x * (1.0f + tanhf(kScale * (x + kCubic * x * x * x))); }
  __device__ float slope(float x) const {
    const float t = tanhf(kScale * (x + kCubic * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * kScale * (1.0f + 3.0f * kCubic * x * x);
  }
};

struct DeviceIdentity {
  __device__ float value(float x) const { return x; }
  __device__ float slope(float) const { return 1.0f; }
};

}  // namespace weft
