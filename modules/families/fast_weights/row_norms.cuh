// row_norms_cpu.h for a thread block: N(W), the rows of one head's weights with given norms, y = n w / (|w| + eps), and
// its gradient.
//
// W [P] holds W0, W2 (rows of d_m elements) and W1 (rows of d_h): 2 d_h + d_m rows.
#pragma once

#include "modules/families/block_products.cuh"

namespace weft {

struct WeightRowsCuda {
  int d_m, d_h;
  static constexpr float kEps = 1e-5F;

  __device__ int count() const { return 2 * d_h + d_m; }

  // f(row, offset in W, width, lane): a warp for each row.
  template <class F>
  __device__ void for_each(F&& f) const {
    block_rows(count(), [&](int r, int lane) {
      if (r < 2 * d_h) {
        f(r, r * d_m, d_m, lane);
      } else {
        f(r, 2 * d_h * d_m + (r - 2 * d_h) * d_h, d_h, lane);
      }
    });
  }

  __device__ void norms(const float* W, float* to) const {
    for_each([&](int r, int at, int width, int lane) {
      const float length = norm(W + at, width, lane);
      if (lane == 0) to[r] = length;
    });
  }

  // to = N(W); `to` may be W.
  __device__ void normalise(const float* norms, const float* W, float* to) const {
    for_each([&](int r, int at, int width, int lane) {
      const float factor = norms[r] / (norm(W + at, width, lane) + kEps);
      for (int c = at + lane; c < at + width; c += 32) to[c] = factor * W[c];
    });
  }

  // d <- gradient of W, from that of N(W); adds the gradients of the norms to dnorms.
  __device__ void normalise_gradients(const float* norms, const float* W, float* d, float* dnorms) const {
    for_each([&](int r, int at, int width, int lane) {
      const float inner = warp_sum_of(width, lane, [&](int c) { return d[at + c] * W[at + c]; });
      const float length = norm(W + at, width, lane);
      const float inverse = 1.0F / (length + kEps);
      const float along = length > 0.0F ? norms[r] * inner * inverse * inverse / length : 0.0F;
      for (int c = at + lane; c < at + width; c += 32) d[c] = norms[r] * inverse * d[c] - along * W[c];
      if (lane == 0) dnorms[r] += inner * inverse;
    });
  }

  // d += the gradient of the initial weights W through their norms.
  __device__ void add_norm_gradients(const float* norms, const float* dnorms, const float* W, float* d) const {
    for_each([&](int r, int at, int width, int lane) {
      const float factor = norms[r] > 0.0F ? dnorms[r] / norms[r] : 0.0F;
      for (int c = at + lane; c < at + width; c += 32) d[c] += factor * W[c];
    });
  }

 private:
  __device__ static float norm(const float* w, int width, int lane) {
    return sqrtf(warp_sum_of(width, lane, [&](int c) { return w[c] * w[c]; }));
  }
};

}  // namespace weft
