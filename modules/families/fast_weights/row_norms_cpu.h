// N(W): the rows of one head's weights with given norms, y = n w / (|w| + eps), and its gradient.
//
// W [P] holds W0, W2 (rows of d_m elements) and W1 (rows of d_h): 2 d_h + d_m rows.
#pragma once

#include <cmath>

#include "modules/families/fast_weights/fast_weights.h"

namespace weft {

inline constexpr double kRowNormEps = 1e-5;

inline std::int64_t weight_rows(const FastWeightProblem& p) {
  return 2 * p.d_h + p.d_m;
}

// f(row, offset in W, width)
template <class F>
void for_each_weight_row(const FastWeightProblem& p, F&& f) {
  for (std::int64_t r = 0; r < 2 * p.d_h; ++r) f(r, r * p.d_m, p.d_m);
  for (std::int64_t r = 0; r < p.d_m; ++r) f(2 * p.d_h + r, 2 * p.d_h * p.d_m + r * p.d_h, p.d_h);
}

template <class T>
T row_norm(const T* w, std::int64_t width) {
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t c = 0; c < width; ++c) squares += w[c] * w[c];
  return std::sqrt(squares);
}

template <class T>
void row_norms(const FastWeightProblem& p, const T* W, T* norms) {
  for_each_weight_row(p,
                      [&](std::int64_t r, std::int64_t at, std::int64_t width) { norms[r] = row_norm(W + at, width); });
}

// to = N(W); `to` may be W.
template <class T>
void normalise_rows(const FastWeightProblem& p, const T* norms, const T* W, T* to) {
  for_each_weight_row(p, [&](std::int64_t r, std::int64_t at, std::int64_t width) {
    const T factor = norms[r] / (row_norm(W + at, width) + static_cast<T>(kRowNormEps));
    for (std::int64_t c = at; c < at + width; ++c) to[c] = factor * W[c];
  });
}

// d <- gradient of W, from that of N(W); adds the gradients of the norms to dnorms.
template <class T>
void normalise_rows_gradients(const FastWeightProblem& p, const T* norms, const T* W, T* d, T* dnorms) {
  for_each_weight_row(p, [&](std::int64_t r, std::int64_t at, std::int64_t width) {
    const T* w = W + at;
    T* dy = d + at;
    T inner = 0;
#pragma omp simd reduction(+ : inner)
    for (std::int64_t c = 0; c < width; ++c) inner += dy[c] * w[c];
    const T length = row_norm(w, width);
    const T inverse = T(1) / (length + static_cast<T>(kRowNormEps));
    const T along = length > T(0) ? norms[r] * inner * inverse * inverse / length : T(0);
    for (std::int64_t c = 0; c < width; ++c) dy[c] = norms[r] * inverse * dy[c] - along * w[c];
    dnorms[r] += inner * inverse;
  });
}

// d += the gradient of the initial weights W through their norms.
template <class T>
void add_norm_gradients(const FastWeightProblem& p, const T* norms, const T* dnorms, const T* W, T* d) {
  for_each_weight_row(p, [&](std::int64_t r, std::int64_t at, std::int64_t width) {
    const T factor = norms[r] > T(0) ? dnorms[r] / norms[r] : T(0);
    for (std::int64_t c = at; c < at + width; ++c) d[c] += factor * W[c];
  });
}

}  // namespace weft
