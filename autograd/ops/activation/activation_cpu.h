// CPU kernels of activation.h, templated on float/double; the functions also serve the gates.
#pragma once

#include <cmath>

#include "autograd/map_cpu.h"
#include "autograd/ops/activation/activation.h"
#include "autograd/vec_math.h"

namespace weft {

struct SiluFunction {
  template <class T>
  T value(T x) const {
    return x * sigmoid(x);
  }
  template <class T>
  T slope(T x) const {
    const T s = sigmoid(x);
    return s * (T(1) + x * (T(1) - s));
  }
};

struct SigmoidFunction {
  template <class T>
  T value(T x) const {
    return sigmoid(x);
  }
  template <class T>
  T slope(T x) const {
    const T e = fast_exp(-std::abs(x));
    return e / ((T(1) + e) * (T(1) + e));
  }
};

// scale * log(sigma(x)) = -scale * softplus(-x).
template <class S>
struct LogSigmoidFunction {
  S scale;
  S value(S x) const { return -scale * fast_softplus(-x); }
  S slope(S x) const { return scale * sigmoid(-x); }
};

struct SoftplusFunction {
  template <class T>
  T value(T x) const {
    return fast_softplus(x);
  }
  template <class T>
  T slope(T x) const {
    return sigmoid(x);
  }
};

template <class T, class F>
void dispatch_activation(ActivationFunction function, double scale, F&& f) {
  switch (function) {
    case ActivationFunction::silu:
      return f(SiluFunction{});
    case ActivationFunction::sigmoid:
      return f(SigmoidFunction{});
    case ActivationFunction::log_sigmoid:
      return f(LogSigmoidFunction<T>{static_cast<T>(scale)});
    case ActivationFunction::softplus:
      return f(SoftplusFunction{});
  }
}

template <class T>
void activation_forward_cpu(const ActivationForward& a) {
  dispatch_activation<T>(a.function, a.scale, [&](const auto& function) {
    map_cpu<T, 1, 1>(a.N, {static_cast<const T*>(a.x)}, {{{static_cast<T*>(a.y), Write::overwrite}}},
                     [function](T x, T& y) { y = function.value(x); });
  });
}

template <class T>
void activation_backward_cpu(const ActivationBackward& a) {
  dispatch_activation<T>(a.function, a.scale, [&](const auto& function) {
    map_cpu<T, 2, 1>(a.N, {static_cast<const T*>(a.x), static_cast<const T*>(a.dy)},
                     {{{static_cast<T*>(a.dx), a.write_dx}}},
                     [function](T x, T dy, T& dx) { dx = dy * function.slope(x); });
  });
}

}  // namespace weft
