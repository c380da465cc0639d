// CPU kernels of feature_map.h, templated on float/double. The functions on a few rows also serve the linear
// recurrences, which map queries and keys chunk by chunk.
//
// Rows of x and dx are `ld` elements apart, rows of features W.
#pragma once

#include <algorithm>
#include <cmath>

#include "autograd/ops/feature_map/feature_map.h"
#include "autograd/parallel_for.h"
#include "autograd/vec_math.h"

namespace weft {

// --- one row ---------------------------------------------------------------------------------------------------------

template <class T>
struct IdentityFeatures {
  void forward(const T* x, T* y) const { std::copy(x, x + D, y); }
  void backward(const T*, const T*, const T* dy, T* dx, Write write) const {
    for (std::int64_t i = 0; i < D; ++i) store(dx[i], dy[i], write);
  }

  std::int64_t D;
};

template <class T>
struct TaylorFeatures {
  explicit TaylorFeatures(std::int64_t width)
      : D(width),
        linear(static_cast<T>(std::pow(static_cast<double>(width), -0.25))),
        square(static_cast<T>(std::sqrt(0.5 / static_cast<double>(width)))),
        pair(static_cast<T>(std::sqrt(1.0 / static_cast<double>(width)))) {}

  void forward(const T* x, T* y) const {
    y[0] = 1;
    for (std::int64_t i = 0; i < D; ++i) y[1 + i] = linear * x[i];
    for (std::int64_t i = 0; i < D; ++i) y[1 + D + i] = square * x[i] * x[i];
    T* pairs = y + 1 + 2 * D;
    for (std::int64_t i = 0; i < D; ++i) {
      const T factor = pair * x[i];
      for (std::int64_t j = i + 1; j < D; ++j) *pairs++ = factor * x[j];
    }
  }
  void backward(const T* x, const T*, const T* dy, T* dx, Write write) const {
    for (std::int64_t i = 0; i < D; ++i) {
      T sum = 0;
      for (std::int64_t j = 0; j < i; ++j) sum += x[j] * dy[pair_index(j, i)];
      const T* pairs = dy + pair_index(i, i + 1);
      for (std::int64_t j = i + 1; j < D; ++j) sum += x[j] * pairs[j - i - 1];
      store(dx[i], pair * sum + linear * dy[1 + i] + T(2) * square * x[i] * dy[1 + D + i], write);
    }
  }
  // Where the product of channels i < j stands.
  std::int64_t pair_index(std::int64_t i, std::int64_t j) const {
    return 1 + 2 * D + i * (2 * D - i - 1) / 2 + j - i - 1;
  }

  std::int64_t D;
  T linear, square, pair;
};

template <class T>
struct SoftmaxPairFeatures {
  static constexpr double kFloor = 1e-12;

  void forward(const T* x, T* y) const {
    softmax(x, T(1), y);
    softmax(x, T(-1), y + D);
  }
  // A feature at the floor passes nothing on.
  void backward(const T*, const T* y, const T* dy, T* dx, Write write) const {
    const T up = mean(y, dy), down = mean(y + D, dy + D);
    for (std::int64_t i = 0; i < D; ++i) {
      const T p = free(y[i]), m = free(y[D + i]);
      store(dx[i], p * (dy[i] - up) - m * (dy[D + i] - down), write);
    }
  }
  void softmax(const T* x, T sign, T* y) const {
    T largest = sign * x[0];
    for (std::int64_t i = 1; i < D; ++i) largest = std::max(largest, sign * x[i]);
    T sum = 0;
    for (std::int64_t i = 0; i < D; ++i) y[i] = fast_exp(sign * x[i] - largest);
    for (std::int64_t i = 0; i < D; ++i) sum += y[i];
    for (std::int64_t i = 0; i < D; ++i) y[i] = std::max(y[i] / sum, static_cast<T>(kFloor));
  }
  static T free(T p) { return p > static_cast<T>(kFloor) ? p : T(0); }
  T mean(const T* p, const T* dp) const {
    T sum = 0;
    for (std::int64_t i = 0; i < D; ++i) sum += free(p[i]) * dp[i];
    return sum;
  }

  std::int64_t D;
};

template <class T>
struct EluPlusOneFeatures {
  void forward(const T* x, T* y) const {
#pragma omp simd
    for (std::int64_t i = 0; i < D; ++i) {
      const T below = fast_exp(std::min(x[i], T(0)));
      y[i] = x[i] > T(0) ? x[i] + T(1) : below;
    }
  }
  void backward(const T* x, const T* y, const T* dy, T* dx, Write write) const {
    for (std::int64_t i = 0; i < D; ++i) store(dx[i], x[i] > T(0) ? dy[i] : dy[i] * y[i], write);
  }

  std::int64_t D;
};

// --- some rows, on the calling thread --------------------------------------------------------------------------------

// f(features) for the map.
template <class T, class F>
void dispatch_features(FeatureMap map, std::int64_t D, F&& f) {
  switch (map) {
    case FeatureMap::identity:
      return f(IdentityFeatures<T>{D});
    case FeatureMap::taylor:
      return f(TaylorFeatures<T>(D));
    case FeatureMap::softmax_pair:
      return f(SoftmaxPairFeatures<T>{D});
    case FeatureMap::elu_plus_one:
      return f(EluPlusOneFeatures<T>{D});
  }
}

template <class T>
void feature_rows(FeatureMap map, std::int64_t n, std::int64_t D, const T* x, std::int64_t ld, T* y) {
  const std::int64_t W = feature_width(map, D);
  dispatch_features<T>(map, D, [&](const auto& features) {
    for (std::int64_t i = 0; i < n; ++i) features.forward(x + i * ld, y + i * W);
  });
}

template <class T>
void feature_rows_backward(FeatureMap map, std::int64_t n, std::int64_t D, const T* x, std::int64_t ld, const T* y,
                           const T* dy, T* dx, Write write) {
  const std::int64_t W = feature_width(map, D);
  dispatch_features<T>(map, D, [&](const auto& features) {
    for (std::int64_t i = 0; i < n; ++i) features.backward(x + i * ld, y + i * W, dy + i * W, dx + i * ld, write);
  });
}

// --- all rows --------------------------------------------------------------------------------------------------------

template <class T>
void feature_map_forward_cpu(const FeatureMapForward& a) {
  const std::int64_t W = feature_width(a.map, a.D);
  parallel_blocks(a.R, rows_per_block(W), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    feature_rows(a.map, end - begin, a.D, static_cast<const T*>(a.x) + begin * a.D, a.D,
                 static_cast<T*>(a.y) + begin * W);
  });
}

template <class T>
void feature_map_backward_cpu(const FeatureMapBackward& a) {
  const std::int64_t W = feature_width(a.map, a.D);
  parallel_blocks(a.R, rows_per_block(W), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    feature_rows_backward(a.map, end - begin, a.D, static_cast<const T*>(a.x) + begin * a.D, a.D,
                          static_cast<const T*>(a.y) + begin * W, static_cast<const T*>(a.dy) + begin * W,
                          static_cast<T*>(a.dx) + begin * a.D, a.write_dx);
  });
}

}  // namespace weft
