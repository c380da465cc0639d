// One layer of the network that is the memory, over one inner batch of one head: the dual form and its adjoint.
//
// n <= b tokens. A layer maps rows x [n, in + 1], whose last entry is 1, by W [in + 1, out]. Suffixes: k where the
// memory is trained (keys), q where it is read (queries). E is the gradient of a token's inner loss at the layer's
// output, G the sum of rate x_k^T E over the tokens of the batch that came before this call (zero at the start of a
// batch).
#pragma once

#include "autograd/blas.h"
#include "autograd/carver.h"
#include "modules/families/memory_walk_cpu.h"
#include "modules/families/triangular_products.h"

namespace weft {

// What the layers of a batch share.
template <class T>
struct TttBatchScales {
  std::int64_t n;
  bool first, complete;  // the call has the batch's first token, its last one
  const T* tok;          // [n]
  T* dtok;               // [n], added to
};

template <class T>
class TttInnerLayer {
 public:
  TttInnerLayer() = default;
  // From `inputs` channels, without the constant; its matrix starts at `offset` in a memory of `pending` numbers. With
  // a null carver base it only counts.
  TttInnerLayer(std::int64_t b, std::int64_t inputs, std::int64_t outputs, std::int64_t offset, std::int64_t pending,
                Carver<T>& carver)
      : in(inputs + 1),
        out(outputs),
        at(offset),
        xk(carver.take(b * in)),
        xq(carver.take(b * in)),
        E(carver.take(b * out)),
        rE(carver.take(b * out)),
        dxk(carver.take(b * in)),
        dxq(carver.take(b * in)),
        drE(carver.take(b * out)),
        pending_(pending),
        R_(carver.take(b * out)),
        D_(carver.take(b * out)),
        S_(carver.take(b * b)),
        dS_(carver.take(b * b)) {}

  std::int64_t in = 0, out = 0, at = 0;  // in: with the constant
  T *xk = nullptr, *xq = nullptr;        // [n, in]
  T *E = nullptr, *rE = nullptr;         // [n, out] E, and rate E
  T *dxk = nullptr, *dxq = nullptr, *drE = nullptr;

  // y = xq W - tok (tril(xq xk^T) rE + xq G)
  void read(const TttBatchScales<T>& s, const T* state, T* y) const {
    const std::int64_t n = s.n;
    gemm(Op::none, Op::transpose, n, n, in, T(1), xq, in, xk, in, T(0), S_, n);
    clear_upper(n, S_);
    gemm(Op::none, Op::none, n, out, n, T(1), S_, n, rE, out, T(0), R_, out);
    if (!s.first) gemm(Op::none, Op::none, n, out, in, T(1), xq, in, state + pending_ + at, out, T(1), R_, out);
    gemm(Op::none, Op::none, n, out, in, T(1), xq, in, state + at, out, T(0), y, out);
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t c = i * out; c < (i + 1) * out; ++c) y[c] -= s.tok[i] * R_[c];
    }
  }

  // G += xk^T rE; at the end of a batch W -= tok G and G = 0.
  void advance(const TttBatchScales<T>& s, T* state) const {
    T *W = state + at, *G = state + pending_ + at;
    const T tok = s.tok[s.n - 1];
    const bool at_once = s.first && s.complete;
    if (at_once) return gemm(Op::transpose, Op::none, in, out, s.n, -tok, xk, in, rE, out, T(1), W, out);
    gemm(Op::transpose, Op::none, in, out, s.n, T(1), xk, in, rE, out, s.first ? T(0) : T(1), G, out);
    if (!s.complete) return;
    for (std::int64_t i = 0; i < in * out; ++i) W[i] -= tok * G[i];
    std::fill(G, G + in * out, T(0));
  }

  // The adjoint of advance(), first of all: sets dxk and drE, and dW and dG become what they were before the batch.
  void advance_gradient(const TttBatchScales<T>& s, const T* state, T* dstate) const {
    T *dW = dstate + at, *dG = dstate + pending_ + at;
    const T* dsum = s.complete ? dW : dG;
    const T factor = s.complete ? -s.tok[s.n - 1] : T(1);  // of G + xk^T rE, in what dsum belongs to
    gemm(Op::none, Op::none, s.n, out, in, T(1), xk, in, dsum, out, T(0), drE, out);
    gemm(Op::none, Op::transpose, s.n, in, out, factor, rE, out, dsum, out, T(0), dxk, in);
    if (s.complete) {
      s.dtok[s.n - 1] -= dot(rE, drE, s.n * out);
      if (!s.first) s.dtok[s.n - 1] -= dot(state + pending_ + at, dW, in * out);
      for (std::int64_t i = 0; i < s.n * out; ++i) drE[i] *= factor;
    }
    if (s.first) {
      std::fill(dG, dG + in * out, T(0));
    } else if (s.complete) {
      for (std::int64_t i = 0; i < in * out; ++i) dG[i] = factor * dW[i];
    }
  }

  // The adjoint of read(), after it: sets dxq, adds to dxk, drE, dtok, dW and dG.
  void read_gradient(const TttBatchScales<T>& s, const T* state, const T* dy, T* dstate) const {
    const std::int64_t n = s.n;
    for (std::int64_t i = 0; i < n; ++i) {
      s.dtok[i] -= dot(dy + i * out, R_ + i * out, out);
      for (std::int64_t c = i * out; c < (i + 1) * out; ++c) D_[c] = -s.tok[i] * dy[c];
    }
    gemm(Op::transpose, Op::none, in, out, n, T(1), xq, in, dy, out, T(1), dstate + at, out);
    gemm(Op::none, Op::transpose, n, in, out, T(1), dy, out, state + at, out, T(0), dxq, in);
    gemm(Op::none, Op::transpose, n, n, out, T(1), D_, out, rE, out, T(0), dS_, n);
    clear_upper(n, dS_);
    gemm(Op::none, Op::none, n, in, n, T(1), dS_, n, xk, in, T(1), dxq, in);
    gemm(Op::transpose, Op::none, n, in, n, T(1), dS_, n, xq, in, T(1), dxk, in);
    gemm(Op::transpose, Op::none, n, out, n, T(1), S_, n, D_, out, T(1), drE, out);
    if (s.first) return;
    gemm(Op::none, Op::transpose, n, in, out, T(1), D_, out, state + pending_ + at, out, T(1), dxq, in);
    gemm(Op::transpose, Op::none, in, out, n, T(1), xq, in, D_, out, T(1), dstate + pending_ + at, out);
  }

 private:
  static void clear_upper(std::int64_t n, T* S) {
    for (std::int64_t i = 0; i < n; ++i) std::fill(S + i * n + i + 1, S + (i + 1) * n, T(0));
  }

  std::int64_t pending_ = 0;        // where G starts in a state
  T *R_ = nullptr, *D_ = nullptr;   // [n, out] what reads subtract before tok; -tok dy
  T *S_ = nullptr, *dS_ = nullptr;  // [n, n] lower triangle of xq xk^T, and its gradient
};

}  // namespace weft
