// Activations and their slopes, for device code: within a few ulp in fp32, without overflow for any argument.
#pragma once

namespace weft {

__device__ inline float device_sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + expf(-x));
}
// log(1 + e^x)
__device__ inline float device_softplus(float x) {
  return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
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
    const float e = expf(-fabsf(x));
    return __fdividef(e, (1.0f + e) * (1.0f + e));
  }
};

// scale log(sigma(x))
struct DeviceLogSigmoid {
  float scale;
  __device__ float value(float x) const { return x != x ? x : -scale * device_softplus(-x); }
  __device__ float slope(float x) const { return scale * device_sigmoid(-x); }
};

struct DeviceSoftplus {
  __device__ float value(float x) const { return x != x ? x : device_softplus(x); }  // fmaxf drops NaN
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
