// The oracle of ttt_memory.h: the primal form, token by token in fp64, with explicit weights for every token, and its
// reverse. Tensors of the argument structs are f64.
#pragma once

#include <cmath>
#include <vector>

#include "modules/families/ttt/ttt_memory.h"

namespace weft {

// One head of one document.
class TttReference {
 public:
  using Vector = std::vector<double>;

  TttReference(const TttProblem& p, std::int64_t n, std::int64_t h)
      : p_(p), n_(n), h_(h), d_(p.d), m_(p.m), P_(ttt_memory_size(p.d, p.m)), at2_(m_ > 0 ? (d_ + 1) * m_ : 0) {
    const auto rows = [&](const void* x) { return static_cast<const double*>(x) + h * d_; };
    gamma_.assign(rows(p.gamma), rows(p.gamma) + d_);
    beta_.assign(rows(p.beta), rows(p.beta) + d_);
  }

  // Gradients of what is not a token's own: the initial memory, LN, offsets.
  struct Sums {
    Vector memory, gamma, beta, offset;
  };

  void forward(double* o, double* final_state) {
    Step step = start();
    for (std::int64_t t = begin(); t < end(); ++t) {
      const Tokens x = tokens(t);
      advance(step, t, x);
      const Pass out = apply(step.own, x.q);
      std::copy(out.f.begin(), out.f.end(), o + (t * p_.H + h_) * d_);
      finish(step, t);
    }
    double* to = final_state + (n_ * p_.H + h_) * 2 * P_;
    std::copy(step.W.begin(), step.W.end(), to);
    std::copy(step.G.begin(), step.G.end(), to + P_);
  }

  // Reverse recurrence. Token gradients are overwritten, sums added to; dstate is that of the initial state.
  void backward(const TttBackward& a, Sums& sums, Vector& dW, Vector& dG) {
    std::vector<Step> steps;  // after advance(), before finish()
    Step step = start();
    for (std::int64_t t = begin(); t < end(); ++t) {
      advance(step, t, tokens(t));
      steps.push_back(step);
      finish(step, t);
    }
    dW.assign(size(P_), 0.0);
    dG.assign(size(P_), 0.0);
    if (a.dfinal_state != nullptr) {
      const double* from = static_cast<const double*>(a.dfinal_state) + (n_ * p_.H + h_) * 2 * P_;
      dW.assign(from, from + P_);
      dG.assign(from + P_, from + 2 * P_);
    }
    for (std::int64_t t = end() - 1; t >= begin(); --t) {
      const Step& now = steps[size(t - begin())];
      const Tokens x = tokens(t);
      Vector down(size(P_), 0.0);  // of the token's own weights
      if (last_of_batch(t)) {      // W' = own, G' = 0
        down = dW;
        dW.assign(size(P_), 0.0);
        dG.assign(size(P_), 0.0);
      }
      const double* d_o = static_cast<const double*>(a.d_o) + (t * p_.H + h_) * d_;
      Vector dq = apply_reverse(now.own, apply(now.own, x.q), Vector(d_o, d_o + d_), down, sums);
      // own = W - tok G
      const double tok = scale(t);
      double dtok = 0.0;
      for (std::int64_t i = 0; i < P_; ++i) {
        dW[size(i)] += down[size(i)];
        dG[size(i)] -= tok * down[size(i)];
        dtok -= down[size(i)] * now.G[size(i)];
      }
      if (tok > 0.0) sums.offset[size(in_batch(t))] += dtok;
      // G = G_before + rate g
      const Vector g = inner_gradient(now.W, x);
      double drate = 0.0;
      Vector dg(size(P_));
      for (std::int64_t i = 0; i < P_; ++i) {
        drate += dG[size(i)] * g[size(i)];
        dg[size(i)] = x.rate * dG[size(i)];
      }
      Vector dk(size(d_), 0.0), dv(size(d_), 0.0);
      inner_gradient_reverse(now.W, x, dg, dW, dk, dv, sums);
      put(a.dq, t, dq);
      put(a.dk, t, dk);
      put(a.dv, t, dv);
      static_cast<double*>(a.drate)[t * p_.H + h_] = drate;
    }
  }

 private:
  static std::size_t size(std::int64_t i) { return static_cast<std::size_t>(i); }

  struct Step {
    Vector W, G;  // the batch's start, and its sum of gradients so far
    Vector own;   // the weights with which the token reads
  };
  struct Tokens {
    Vector q, k, v;
    double rate;
  };
  // f(x) at some weights, with what its derivatives need.
  struct Pass {
    Vector x, a, y;  // input, hidden pre-activations, input of the last layer
    Vector zhat, f;
    double r;
  };

  std::int64_t begin() const { return p_.cu_seqlens[n_]; }
  std::int64_t end() const { return p_.cu_seqlens[n_ + 1]; }
  std::int64_t in_batch(std::int64_t t) const {
    return (t - begin() + (p_.phase == nullptr ? 0 : p_.phase[n_])) % p_.C;
  }
  bool last_of_batch(std::int64_t t) const { return in_batch(t) == p_.C - 1; }
  double scale(std::int64_t t) const {
    const std::int64_t i = in_batch(t);
    return std::max(1.0 / static_cast<double>(i + 1) + static_cast<const double*>(p_.offset)[i], 0.0);
  }
  Tokens tokens(std::int64_t t) const {
    const auto row = [&](const void* x) {
      const double* from = static_cast<const double*>(x) + (t * p_.H + h_) * d_;
      return Vector(from, from + d_);
    };
    return {row(p_.q), row(p_.k), row(p_.v), static_cast<const double*>(p_.rate)[t * p_.H + h_]};
  }
  void put(void* to, std::int64_t t, const Vector& x) const {
    std::copy(x.begin(), x.end(), static_cast<double*>(to) + (t * p_.H + h_) * d_);
  }

  Step start() const {
    Step s{Vector(size(P_)), Vector(size(P_), 0.0), {}};
    if (p_.state != nullptr) {
      const double* from = static_cast<const double*>(p_.state) + (n_ * p_.H + h_) * 2 * P_;
      s.W.assign(from, from + P_);
      s.G.assign(from + P_, from + 2 * P_);
      return s;
    }
    std::int64_t at = 0;
    const auto part = [&](const void* x, std::int64_t n) {
      const double* from = static_cast<const double*>(x) + h_ * n;
      std::copy(from, from + n, s.W.begin() + at);
      at += n;
    };
    if (m_ > 0) part(p_.w1, d_ * m_), part(p_.b1, m_);
    part(p_.w2, (m_ > 0 ? m_ : d_) * d_);
    part(p_.b2, d_);
    return s;
  }
  void advance(Step& s, std::int64_t t, const Tokens& x) const {
    const Vector g = inner_gradient(s.W, x);
    s.own.resize(size(P_));
    for (std::int64_t i = 0; i < P_; ++i) {
      s.G[size(i)] += x.rate * g[size(i)];
      s.own[size(i)] = s.W[size(i)] - scale(t) * s.G[size(i)];
    }
  }
  void finish(Step& s, std::int64_t t) const {
    if (!last_of_batch(t)) return;
    s.W = s.own;
    s.G.assign(size(P_), 0.0);
  }

  static constexpr double kC = 0.7978845608028654, kA = 0.044715;
  static double gelu(double x) { return 0.5 * x * (1.0 + std::tanh(kC * (x + kA * x * x * x))); }
  static double gelu1(double x) {
    const double t = std::tanh(kC * (x + kA * x * x * x));
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * kC * (1.0 + 3.0 * kA * x * x);
  }
  static double gelu2(double x) {
    const double t = std::tanh(kC * (x + kA * x * x * x)), s = 1.0 - t * t;
    const double u1 = kC * (1.0 + 3.0 * kA * x * x), u2 = 6.0 * kC * kA * x;
    return s * u1 + 0.5 * x * (s * u2 - 2.0 * t * s * u1 * u1);
  }

  // [x, 1] W for the matrix [in + 1, out] at an offset of the memory.
  static Vector map(const Vector& memory, std::int64_t at, const Vector& x, std::int64_t out) {
    const auto in = static_cast<std::int64_t>(x.size());
    Vector y(size(out));
    for (std::int64_t o = 0; o < out; ++o) {
      double sum = memory[size(at + in * out + o)];
      for (std::int64_t i = 0; i < in; ++i) sum += x[size(i)] * memory[size(at + i * out + o)];
      y[size(o)] = sum;
    }
    return y;
  }
  // target += [x, 1]^T y
  static void add_outer(Vector& target, std::int64_t at, const Vector& x, const Vector& y) {
    const auto in = static_cast<std::int64_t>(x.size()), out = static_cast<std::int64_t>(y.size());
    for (std::int64_t i = 0; i <= in; ++i) {
      for (std::int64_t o = 0; o < out; ++o) {
        target[size(at + i * out + o)] += (i < in ? x[size(i)] : 1.0) * y[size(o)];
      }
    }
  }
  // y M^T without the constant's entry, M [in + 1, out].
  static Vector map_back(const Vector& memory, std::int64_t at, std::int64_t in, const Vector& y) {
    const auto out = static_cast<std::int64_t>(y.size());
    Vector x(size(in), 0.0);
    for (std::int64_t i = 0; i < in; ++i) {
      for (std::int64_t o = 0; o < out; ++o) x[size(i)] += memory[size(at + i * out + o)] * y[size(o)];
    }
    return x;
  }
  double mean_product(const Vector& a, const Vector& b) const {
    double sum = 0.0;
    for (std::int64_t c = 0; c < d_; ++c) sum += a[size(c)] * b[size(c)];
    return sum / static_cast<double>(d_);
  }
  // g - mean(g) - zhat mean(g zhat)
  Vector project(const Vector& g, const Vector& zhat) const {
    const double mean = mean_product(g, Vector(size(d_), 1.0)), along = mean_product(g, zhat);
    Vector y(size(d_));
    for (std::int64_t c = 0; c < d_; ++c) y[size(c)] = g[size(c)] - mean - zhat[size(c)] * along;
    return y;
  }

  Pass apply(const Vector& W, const Vector& x) const {
    Pass p{.x = x, .a = {}, .y = x, .zhat = {}, .f = x, .r = 0.0};
    if (m_ > 0) {
      p.a = map(W, 0, x, m_);
      p.y = p.a;
      for (double& y : p.y) y = gelu(y);
    }
    p.zhat = map(W, at2_, p.y, d_);
    const double mean = mean_product(p.zhat, Vector(size(d_), 1.0));
    for (double& z : p.zhat) z -= mean;
    p.r = 1.0 / std::sqrt(mean_product(p.zhat, p.zhat) + kTttNormEps);
    for (std::int64_t c = 0; c < d_; ++c) {
      p.zhat[size(c)] *= p.r;
      p.f[size(c)] += gamma_[size(c)] * p.zhat[size(c)] + beta_[size(c)];
    }
    return p;
  }
  // From dz of the last layer's output to the weights and the input.
  Vector layers_reverse(const Vector& W, const Pass& p, const Vector& dz, Vector dy, Vector& dW) const {
    add_outer(dW, at2_, p.y, dz);
    const Vector through = map_back(W, at2_, static_cast<std::int64_t>(p.y.size()), dz);
    for (std::size_t i = 0; i < dy.size(); ++i) dy[i] += through[i];
    if (m_ == 0) return dy;
    for (std::size_t i = 0; i < dy.size(); ++i) dy[i] *= gelu1(p.a[i]);
    add_outer(dW, 0, p.x, dy);
    return map_back(W, 0, d_, dy);
  }
  Vector apply_reverse(const Vector& W, const Pass& p, const Vector& df, Vector& dW, Sums& sums) const {
    Vector dzhat(size(d_));
    for (std::int64_t c = 0; c < d_; ++c) {
      sums.gamma[size(c)] += df[size(c)] * p.zhat[size(c)];
      sums.beta[size(c)] += df[size(c)];
      dzhat[size(c)] = df[size(c)] * gamma_[size(c)];
    }
    Vector dz = project(dzhat, p.zhat);
    for (double& z : dz) z *= p.r;
    Vector dx = layers_reverse(W, p, dz, Vector(p.y.size(), 0.0), dW);
    for (std::int64_t c = 0; c < d_; ++c) dx[size(c)] += df[size(c)];
    return dx;
  }

  // E of the last layer with the gradient at LN's output.
  Vector output_gradient(const Pass& p, const Tokens& x, Vector& gz) const {
    gz.resize(size(d_));
    for (std::int64_t c = 0; c < d_; ++c) gz[size(c)] = gamma_[size(c)] * (p.f[size(c)] - x.v[size(c)]);
    Vector E = project(gz, p.zhat);
    for (double& e : E) e *= p.r;
    return E;
  }
  // The gradient of |f(k) - v|^2 / 2 with respect to the memory.
  Vector inner_gradient(const Vector& W, const Tokens& x) const {
    const Pass p = apply(W, x.k);
    Vector gz, g(size(P_), 0.0);
    const Vector E = output_gradient(p, x, gz);
    add_outer(g, at2_, p.y, E);
    if (m_ == 0) return g;
    Vector E1 = map_back(W, at2_, m_, E);
    for (std::int64_t i = 0; i < m_; ++i) E1[size(i)] *= gelu1(p.a[size(i)]);
    add_outer(g, 0, x.k, E1);
    return g;
  }
  void inner_gradient_reverse(const Vector& W, const Tokens& x, const Vector& dg, Vector& dW, Vector& dk, Vector& dv,
                              Sums& sums) const {
    const Pass p = apply(W, x.k);
    Vector gz;
    const Vector E = output_gradient(p, x, gz);
    // g2 = [y, 1]^T E
    Vector dE = map(dg, at2_, p.y, d_);
    Vector dy = map_back(dg, at2_, static_cast<std::int64_t>(p.y.size()), E);
    if (m_ > 0) {  // g1 = [k, 1]^T E1, E1 = (E W2^T) gelu'(a)
      const Vector back = map_back(W, at2_, m_, E);
      Vector E1(size(m_)), dback(size(m_));
      for (std::int64_t i = 0; i < m_; ++i) E1[size(i)] = back[size(i)] * gelu1(p.a[size(i)]);
      const Vector dE1 = map(dg, 0, x.k, m_);
      const Vector dx = map_back(dg, 0, d_, E1);
      for (std::int64_t c = 0; c < d_; ++c) dk[size(c)] += dx[size(c)];
      Vector da(size(m_));
      for (std::int64_t i = 0; i < m_; ++i) {
        dback[size(i)] = dE1[size(i)] * gelu1(p.a[size(i)]);
        da[size(i)] = dE1[size(i)] * back[size(i)] * gelu2(p.a[size(i)]);
        for (std::int64_t c = 0; c < d_; ++c) {
          dE[size(c)] += dback[size(i)] * W[size(at2_ + i * d_ + c)];
          dW[size(at2_ + i * d_ + c)] += dback[size(i)] * E[size(c)];
        }
      }
      add_outer(dW, 0, x.k, da);
      const Vector through = map_back(W, 0, d_, da);
      for (std::int64_t c = 0; c < d_; ++c) dk[size(c)] += through[size(c)];
    }
    // E = r u, u = gz - mean(gz) - zhat mean(gz zhat)
    const double mixed = mean_product(gz, p.zhat);
    Vector du = dE;
    double dr = 0.0;
    for (std::int64_t c = 0; c < d_; ++c) {
      dr += dE[size(c)] * E[size(c)] / p.r;
      du[size(c)] *= p.r;
    }
    const double along = mean_product(du, p.zhat);
    const Vector dgz = project(du, p.zhat);
    Vector dzhat(size(d_));
    for (std::int64_t c = 0; c < d_; ++c) {
      const double error = p.f[size(c)] - x.v[size(c)], derror = gamma_[size(c)] * dgz[size(c)];
      sums.gamma[size(c)] += dgz[size(c)] * error + derror * p.zhat[size(c)];
      sums.beta[size(c)] += derror;
      dzhat[size(c)] = gamma_[size(c)] * derror - du[size(c)] * mixed - gz[size(c)] * along;
      dk[size(c)] += derror;
      dv[size(c)] -= derror;
    }
    Vector dz = project(dzhat, p.zhat);
    for (std::int64_t c = 0; c < d_; ++c) {
      dz[size(c)] = p.r * dz[size(c)] - dr * p.r * p.r * p.zhat[size(c)] / static_cast<double>(d_);
    }
    const Vector dx = layers_reverse(W, p, dz, dy, dW);
    for (std::int64_t c = 0; c < d_; ++c) dk[size(c)] += dx[size(c)];
  }

  const TttProblem& p_;
  std::int64_t n_, h_, d_, m_, P_, at2_;
  Vector gamma_, beta_;
};

}  // namespace weft
