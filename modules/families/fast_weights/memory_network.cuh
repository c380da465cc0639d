// memory_network_cpu.h for a thread block: the network of one head on a tile of rows: reading, the gradient that
// writing takes, and the gradients of both.
//
// n <= kRows rows of a tile; U = [W0; W2] [2 d_h, d_m] is the first part of the P elements of W, W1 [d_m, d_h] the
// second. T: element type of the rows.
#pragma once

#include "modules/families/block_products.cuh"
#include "modules/families/fast_weights/fast_weights.h"

namespace weft {

// n rows of one head: row i of a tensor of T of width d_m is `stride` elements after row i - 1.
template <class T>
struct RowTileCuda {
  int n;
  std::int64_t token;  // the first row's: token of the packed row times H, plus the head
  int H;

  __device__ std::int64_t row(int i) const { return token + static_cast<std::int64_t>(i) * H; }
  __device__ MatrixView<T> of(const void* x, int width) const {
    return view(static_cast<const T*>(x) + token * width, H * width);
  }
};

struct MemoryNetworkArrays {
  static constexpr std::int64_t kRows = 64;
  BlockArray ab, hidden, error, y, rp, x;    // forward; x: rows [n, d_m]
  BlockArray c02, dab, dhidden, dy, derror;  // and gradients

  MemoryNetworkArrays() = default;
  MemoryNetworkArrays(std::int64_t rows, std::int64_t d_m, std::int64_t d_h, bool backward, BlockLayout& layout) {
    ab = layout.take(rows * 2 * d_h);
    for (BlockArray* a : {&hidden, &y}) *a = layout.take(rows * d_h);
    for (BlockArray* a : {&error, &x}) *a = layout.take(rows * d_m);
    rp = layout.take(rows * 2 * d_h);
    if (!backward) return;
    for (BlockArray* a : {&c02, &dab}) *a = layout.take(rows * 2 * d_h);
    for (BlockArray* a : {&dhidden, &dy}) *a = layout.take(rows * d_h);
    derror = layout.take(rows * d_m);
  }
};

// silu and its derivatives at one point.
struct SiluCuda {
  float value, slope, curvature;

  __device__ explicit SiluCuda(float a) {
    const float s = 1.0F / (1.0F + expf(-a));
    value = a * s;
    slope = s * (1.0F + a * (1.0F - s));
    curvature = s * (1.0F - s) * (2.0F + a * (1.0F - 2.0F * s));
  }
};

template <class T>
class MemoryNetworkCuda {
 public:
  __device__ MemoryNetworkCuda(const FastWeightProblem& p, const MemoryNetworkArrays& arrays, const BlockMemory& memory)
      : p_(p),
        d_m_(static_cast<int>(p.d_m)),
        d_h_(static_cast<int>(p.d_h)),
        in_(2 * d_h_ * d_m_),
        l2_(p.config.loss == InnerLoss::l2),
        rho_(p.config.residual ? 1.0F : 0.0F),
        a_(arrays),
        m_(memory) {}

  // out = f_W(q)
  __device__ __noinline__ void read(const RowTileCuda<T>& t, const float* W, T* out) const {
    forward(t, p_.q, W);
    const T* q = static_cast<const T*>(p_.q);
    float* x = m_[a_.x];
    block_elements(t.n, d_m_, [&](int i, int c) { x[i * d_m_ + c] = rho_ * to_float(q[t.row(i) * d_m_ + c]); });
    block_product(t.n, d_m_, d_h_, 1.0F, view<float>(m_[a_.hidden], d_h_), transposed(W + in_, d_h_), 1.0F, x, d_m_);
    block_elements(t.n, d_m_, [&](int i, int c) { out[t.row(i) * d_m_ + c] = from_float<T>(x[i * d_m_ + c]); });
  }

  // g [P] = or += what the rows add to the momentum, gradients taken at W.
  __device__ __noinline__ void descent(const RowTileCuda<T>& t, const float* W, float beta, float* g) const {
    inner_gradients(t, W);
    const auto* eta = static_cast<const float*>(p_.eta);
    float *error = m_[a_.error], *rp = m_[a_.rp], *hidden = m_[a_.hidden];
    block_elements(t.n, d_m_, [&](int i, int c) { error[i * d_m_ + c] *= eta[t.row(i) * 3 + 1]; });
    block_product(2 * d_h_, d_m_, t.n, 1.0F, transposed<float>(rp, 2 * d_h_), t.of(p_.k, d_m_), beta, g, d_m_);
    block_product(d_m_, d_h_, t.n, 1.0F, transposed<float>(error, d_m_), view<float>(hidden, d_h_), beta, g + in_,
                  d_h_);
  }

  // Gradients of read(): dW [P] is written, or added to.
  __device__ __noinline__ void read_gradients(const FastWeightBackward& g, const RowTileCuda<T>& t, const float* W,
                                              float beta, float* dW) const {
    const int n = t.n, d_h = d_h_, d_m = d_m_;
    forward(t, p_.q, W);
    float *ab = m_[a_.ab], *dab = m_[a_.dab], *dhidden = m_[a_.dhidden], *dx = m_[a_.x];
    const MatrixView<T> dout = t.of(g.dout, d_m);
    block_product(n, d_h, d_m, 1.0F, dout, view(W + in_, d_h), 0.0F, dhidden, d_h);
    block_elements(n, d_h, [&](int i, int j) {
      const float b = ab[i * 2 * d_h + d_h + j], dh = dhidden[i * d_h + j];
      const SiluCuda silu(ab[i * 2 * d_h + j]);
      dab[i * 2 * d_h + j] = dh * b * silu.slope;
      dab[i * 2 * d_h + d_h + j] = dh * silu.value;
    });
    if (g.dq != nullptr) {
      const T* d_out = static_cast<const T*>(g.dout);
      T* dq = static_cast<T*>(g.dq);
      block_elements(n, d_m, [&](int i, int c) { dx[i * d_m + c] = rho_ * to_float(d_out[t.row(i) * d_m + c]); });
      block_product(n, d_m, 2 * d_h, 1.0F, view<float>(dab, 2 * d_h), view(W, d_m), 1.0F, dx, d_m);
      block_elements(n, d_m, [&](int i, int c) { store_value(dq[t.row(i) * d_m + c], dx[i * d_m + c], g.write_dq); });
    }
    block_product(2 * d_h, d_m, n, 1.0F, transposed<float>(dab, 2 * d_h), t.of(p_.q, d_m), beta, dW, d_m);
    block_product(d_m, d_h, n, 1.0F, dout.transposed(), view<float>(m_[a_.hidden], d_h), beta, dW + in_, d_h);
  }

  // Gradients of descent(), given dg [P]: through the inner gradients themselves, so of second order. dW is written, or
  // added to.
  __device__ __noinline__ void descent_gradients(const FastWeightBackward& g, const RowTileCuda<T>& t, const float* W,
                                                 const float* dg, float beta, float* dW) const {
    const int n = t.n, d_h = d_h_, d_m = d_m_;
    inner_gradients(t, W);
    float *hidden = m_[a_.hidden], *error = m_[a_.error], *derror = m_[a_.derror], *dhidden = m_[a_.dhidden],
          *dx = m_[a_.x], *dy = m_[a_.dy], *dab = m_[a_.dab];
    // c0 | c2 = k (dg0 | dg2)^T, c1 = h dg1^T, c1' = e dg1; the part of dk that does not pass through the network.
    block_product(n, 2 * d_h, d_m, 1.0F, t.of(p_.k, d_m), transposed(dg, d_m), 0.0F, m_[a_.c02], 2 * d_h);
    block_product(n, d_m, d_h, 1.0F, view<float>(hidden, d_h), transposed(dg + in_, d_h), 0.0F, derror, d_m);
    block_product(n, d_h, d_m, 1.0F, view<float>(error, d_m), view(dg + in_, d_h), 0.0F, dhidden, d_h);
    block_product(n, d_m, 2 * d_h, 1.0F, view<float>(m_[a_.rp], 2 * d_h), view(dg, d_m), 0.0F, dx, d_m);
    through_inner_gradients(g, t);

    // From the hidden gradient y = e W1 back to e and W1, and for l2 from e = v - f(k) to f(k).
    const float* W1 = W + in_;
    block_product(n, d_m, d_h, 1.0F, view<float>(dy, d_h), transposed(W1, d_h), 1.0F, derror, d_m);
    block_product(d_m, d_h, n, 1.0F, transposed<float>(error, d_m), view<float>(dy, d_h), beta, dW + in_, d_h);
    if (l2_) {
      block_for(n * d_m, [&](int e) { dx[e] -= rho_ * derror[e]; });
      block_product(d_m, d_h, n, -1.0F, transposed<float>(derror, d_m), view<float>(hidden, d_h), 1.0F, dW + in_, d_h);
      block_product(n, d_h, d_m, -1.0F, view<float>(derror, d_m), view(W1, d_h), 1.0F, dhidden, d_h);
    }
    through_hidden(n);
    block_product(2 * d_h, d_m, n, 1.0F, transposed<float>(dab, 2 * d_h), t.of(p_.k, d_m), beta, dW, d_m);
    block_product(n, d_m, 2 * d_h, 1.0F, view<float>(dab, 2 * d_h), view(W, d_m), 1.0F, dx, d_m);
    T *dk = static_cast<T*>(g.dk), *dv = static_cast<T*>(g.dv);
    block_elements(n, d_m, [&](int i, int c) {
      const std::int64_t at = t.row(i) * d_m + c;
      if (dk != nullptr) store_value(dk[at], dx[i * d_m + c], g.write_dk);
      if (dv != nullptr) store_value(dv[at], derror[i * d_m + c], g.write_dv);
    });
  }

 private:
  // ab = x U^T, hidden = silu(a) * b
  __device__ __noinline__ void forward(const RowTileCuda<T>& t, const void* x, const float* W) const {
    float *ab = m_[a_.ab], *hidden = m_[a_.hidden];
    block_product(t.n, 2 * d_h_, d_m_, 1.0F, t.of(x, d_m_), transposed(W, d_m_), 0.0F, ab, 2 * d_h_);
    block_elements(t.n, d_h_, [&](int i, int j) {
      hidden[i * d_h_ + j] = SiluCuda(ab[i * 2 * d_h_ + j]).value * ab[i * 2 * d_h_ + d_h_ + j];
    });
  }

  // error e, y = e W1, and rp = eta0 r | eta2 p with r = y b silu'(a), p = y silu(a).
  __device__ __noinline__ void inner_gradients(const RowTileCuda<T>& t, const float* W) const {
    forward(t, p_.k, W);
    const float rho = l2_ ? rho_ : 0.0F;
    const T *k = static_cast<const T*>(p_.k), *v = static_cast<const T*>(p_.v);
    const auto* eta = static_cast<const float*>(p_.eta);
    float *error = m_[a_.error], *y = m_[a_.y], *ab = m_[a_.ab], *rp = m_[a_.rp];
    block_elements(t.n, d_m_, [&](int i, int c) {
      const std::int64_t at = t.row(i) * d_m_ + c;
      error[i * d_m_ + c] = to_float(v[at]) - rho * to_float(k[at]);
    });
    if (l2_) {
      block_product(t.n, d_m_, d_h_, -1.0F, view<float>(m_[a_.hidden], d_h_), transposed(W + in_, d_h_), 1.0F, error,
                    d_m_);
    }
    block_product(t.n, d_h_, d_m_, 1.0F, view<float>(error, d_m_), view(W + in_, d_h_), 0.0F, y, d_h_);
    block_elements(t.n, d_h_, [&](int i, int j) {
      const float* rates = eta + t.row(i) * 3;
      const SiluCuda silu(ab[i * 2 * d_h_ + j]);
      const float back = y[i * d_h_ + j];
      rp[i * 2 * d_h_ + j] = rates[0] * back * ab[i * 2 * d_h_ + d_h_ + j] * silu.slope;
      rp[i * 2 * d_h_ + d_h_ + j] = rates[2] * back * silu.value;
    });
  }

  // From c0, c2, c1 (in derror), c1' (in dhidden) to deta, dy, db, and de, dh without what y passes back. What a
  // receives comes in two parts: through silu'(a) in da, and the gradient of silu(a), which replaces c0.
  __device__ void through_inner_gradients(const FastWeightBackward& g, const RowTileCuda<T>& t) const {
    const auto* etas = static_cast<const float*>(p_.eta);
    auto* detas = static_cast<float*>(g.deta);
    const float *abs = m_[a_.ab], *ys = m_[a_.y], *errors = m_[a_.error];
    float *c02 = m_[a_.c02], *dabs = m_[a_.dab], *dys = m_[a_.dy], *dhiddens = m_[a_.dhidden], *derrors = m_[a_.derror];
    block_rows(t.n, [&](int i, int lane) {
      const float *a = abs + i * 2 * d_h_, *b = a + d_h_, *y = ys + i * d_h_, *e = errors + i * d_m_;
      float *c0 = c02 + i * 2 * d_h_, *c2 = c0 + d_h_, *da = dabs + i * 2 * d_h_, *db = da + d_h_;
      float *dy = dys + i * d_h_, *dh = dhiddens + i * d_h_, *de = derrors + i * d_m_;
      const float eta0 = etas[t.row(i) * 3], eta1 = etas[t.row(i) * 3 + 1], eta2 = etas[t.row(i) * 3 + 2];
      float sum0 = 0.0F, sum1 = 0.0F, sum2 = 0.0F;
      for (int j = lane; j < d_h_; j += 32) {
        const SiluCuda silu(a[j]);
        sum0 += y[j] * b[j] * silu.slope * c0[j];
        sum2 += y[j] * silu.value * c2[j];
        const float dr = eta0 * c0[j], dp = eta2 * c2[j];
        dy[j] = dp * silu.value + dr * b[j] * silu.slope;
        db[j] = dr * y[j] * silu.slope;
        da[j] = dr * y[j] * b[j] * silu.curvature;
        c0[j] = dp * y[j];
        dh[j] *= eta1;
      }
      for (int c = lane; c < d_m_; c += 32) {
        sum1 += e[c] * de[c];
        de[c] *= eta1;
      }
      sum0 = warp_sum(sum0);
      sum1 = warp_sum(sum1);
      sum2 = warp_sum(sum2);
      if (lane != 0 || detas == nullptr) return;
      float* deta = detas + t.row(i) * 3;
      store_value(deta[0], sum0, g.write_deta);
      store_value(deta[1], sum1, g.write_deta);
      store_value(deta[2], sum2, g.write_deta);
    });
  }

  // Adds what the hidden rows received to dab.
  __device__ void through_hidden(int n) const {
    const float *ab = m_[a_.ab], *dhidden = m_[a_.dhidden], *c02 = m_[a_.c02];
    float* dab = m_[a_.dab];
    block_elements(n, d_h_, [&](int i, int j) {
      const int at = i * 2 * d_h_ + j;
      const SiluCuda silu(ab[at]);
      const float dh = dhidden[i * d_h_ + j];
      dab[at] += (c02[at] + dh * ab[at + d_h_]) * silu.slope;
      dab[at + d_h_] += dh * silu.value;
    });
  }

  const FastWeightProblem& p_;
  int d_m_, d_h_;
  int in_;  // elements of U
  bool l2_;
  float rho_;
  const MemoryNetworkArrays& a_;
  const BlockMemory& m_;
};

}  // namespace weft
