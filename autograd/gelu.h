// GELU in its tanh form, with two derivatives (Hendrycks & Gimpel, arXiv:1606.08415):
//   gelu(x) = x (1 + t) / 2,   t = tanh(u),   u = sqrt(2/pi) (x + 0.044715 x^3).
#pragma once

#include "autograd/vec_math.h"

namespace weft {

struct GeluFunction {
  template <class T>
  T value(T x) const {
    return T(0.5) * x * (T(1) + fast_tanh(inner(x)));
  }
  template <class T>
  T slope(T x) const {
    const T t = fast_tanh(inner(x));
    return T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * inner_slope(x);
  }
  // Second derivative.
  template <class T>
  T curvature(T x) const {
    const T t = fast_tanh(inner(x)), s = T(1) - t * t, w = inner_slope(x);
    return s * w + T(0.5) * x * s * (T(kScale * 6.0 * kCubic) * x - T(2) * t * w * w);
  }

 private:
  static constexpr double kScale = 0.79788456080286535588;  // sqrt(2 / pi)
  static constexpr double kCubic = 0.044715;
  template <class T>
  static T inner(T x) {
    return T(kScale) * (x + T(kCubic) * x * x * x);
  }
  template <class T>
  static T inner_slope(T x) {
    return T(kScale) * (T(1) + T(3.0 * kCubic) * x * x);
  }
};

}  // namespace weft
