// The backward of fast_weights_cpu.h: from the last chunk of a chain to the first.
//
// P elements of one head's weights; dW, dZ gradients of the weights and momentum that a chunk leaves behind.
#pragma once

#include "modules/families/fast_weights/fast_weights_cpu.h"

namespace weft {

template <class T>
void FastWeightWalk<T>::walk_segment(const Chain& c, const Span& s, std::int64_t segment, std::int64_t h) const {
  std::copy(c.checkpoints + segment * 2 * P_, c.checkpoints + (segment + 1) * 2 * P_, c.entries);
  const std::int64_t first = segment * segment_, last = std::min(s.writes, first + segment_);
  for (std::int64_t i = 0; i < last - first; ++i) {
    write(c, written_rows(s.begin + (first + i) * L_, L_, h), entry_W(c, i), entry_Z(c, i), entry_W(c, i + 1),
          entry_Z(c, i + 1));
  }
}

// Gradients of one head of a document; `dstart` [P] is what w0, w1, w2 receive.
template <class T>
void FastWeightWalk<T>::backward_chain(const FastWeightBackward& a, std::int64_t n, std::int64_t h, T* dstart) const {
  const Chain c = chain(FastWeightPass::backward);
  const Span s = span(n, a.dfinal_weights != nullptr || a.dfinal_momentum != nullptr);
  start(c, a.initial_weights, a.initial_momentum, n, h, c.checkpoints, c.checkpoints + P_);
  const std::int64_t last_segment = s.writes > 0 ? (s.writes - 1) / segment_ : 0;
  for (std::int64_t j = 0; j <= last_segment; ++j) {
    walk_segment(c, s, j, h);
    if (j == last_segment) break;
    std::copy(entry_W(c, segment_), entry_W(c, segment_ + 1), c.checkpoints + (j + 1) * 2 * P_);
  }

  load(state(a.dfinal_weights, n, h), c.dW);
  load(state(a.dfinal_momentum, n, h), c.dZ);
  std::fill(c.dnorms, c.dnorms + weight_rows(p_), T(0));
  std::int64_t segment = last_segment;
  for (std::int64_t i = s.chunks - 1; i >= 0; --i) {
    const bool written = i < s.writes;
    if (written && i / segment_ != segment) walk_segment(c, s, --segment, h);
    const std::int64_t at = i - segment * segment_;
    chunk_gradients(a, c, s.begin + i * L_, std::min(L_, s.length - i * L_), h, entry_W(c, at), entry_Z(c, at),
                    written ? entry_Z(c, at + 1) : nullptr);
  }

  // What is left is the gradient of the weights at the start.
  std::fill(dstart, dstart + P_, T(0));
  if (!p_.config.detach_norm) add_norm_gradients(p_, c.norms, c.dnorms, c.start, dstart);
  if (a.initial_weights == nullptr) return add(c.dW, 0, P_, dstart);
  put_state(c.dW, state(a.dinitial_weights, n, h), a.write_dinitial_weights);
  put_state(c.dZ, state(a.dinitial_momentum, n, h), a.write_dinitial_momentum);
}

// c.dW becomes the gradient of what the update started from, c.dZ that of g; dmu and dlambda are stored.
template <class T>
void FastWeightWalk<T>::update_gradients(const FastWeightBackward& a, const Chain& c, const WrittenRows<T>& x,
                                         std::int64_t t, std::int64_t h, const T* W, const T* Z,
                                         const T* Z_next) const {
  const T keep = T(1) - mean(x.n, x.lambda);
  const bool post = norm() == NormMode::post;
  const T* D = Z_next;
  auto matrices = orthogonalisers(c);
  if (p_.config.orthogonalise) {
    for_each_matrix(matrices, [&](Orthogonaliser<T>& ns, std::int64_t at) {
      ns.run(Z_next + at, post ? c.unnormalised + at : nullptr);
    });
    D = c.unnormalised;
  }
  if (post) {
    for (std::int64_t e = 0; e < P_; ++e) c.unnormalised[e] = keep * W[e] + D[e];
    normalise_rows_gradients(p_, c.norms, c.unnormalised, c.dW, c.dnorms);
  }
  const double dlambda = -inner(c.dW, update_base(c, W));
  if (p_.config.orthogonalise) {
    for_each_matrix(matrices,
                    [&](Orthogonaliser<T>& ns, std::int64_t at) { ns.gradient(Z_next + at, c.dW + at, c.dZ + at); });
  } else {
    add(c.dW, 0, P_, c.dZ);
  }
  const double dmu = inner(c.dZ, Z);
  for (std::int64_t e = 0; e < P_; ++e) c.dW[e] *= keep;
  const auto put = [&](const RowGradients<T>& to, double d) {
    const auto each = static_cast<T>(d / static_cast<double>(x.n));
    for (std::int64_t i = 0; i < x.n; ++i) to.from(i).put(&each, 1, 1);
  };
  put(gradient(a.dmu, a.write_dmu, t, h, 1), dmu);
  put(gradient(a.dlambda, a.write_dlambda, t, h, 1), dlambda);
}

// From the gradients c.dW, c.dZ of what the chunk of `count` tokens at t leaves behind to those of the weights W and
// momentum Z before it, and to those of its rows. Z_next: momentum after the chunk, null if it was only read.
template <class T>
void FastWeightWalk<T>::chunk_gradients(const FastWeightBackward& a, const Chain& c, std::int64_t t, std::int64_t count,
                                        std::int64_t h, const T* W, const T* Z, const T* Z_next) const {
  prepare(c, W);
  const RowGradients<T> dk = gradient(a.dk, a.write_dk, t, h, p_.d_m), dv = gradient(a.dv, a.write_dv, t, h, p_.d_m),
                        deta = gradient(a.deta, a.write_deta, t, h, 3);
  if (Z_next != nullptr) {
    const WrittenRows<T> x = written_rows(t, count, h);
    update_gradients(a, c, x, t, h, W, Z, Z_next);
    for_each_block(c, count, c.d_inner, [&](Network& network, std::int64_t begin, std::int64_t end, T* partial) {
      network.descent_gradients(x.block(begin, end), inner_weights(c, W), c.dZ, dk.from(begin), dv.from(begin),
                                deta.from(begin), partial);
    });
    const T mu = mean(count, x.mu);
    for (std::int64_t e = 0; e < P_; ++e) c.dZ[e] *= mu;
  } else {
    dk.put_zero(count, p_.d_m);
    dv.put_zero(count, p_.d_m);
    deta.put_zero(count, 3);
    gradient(a.dmu, a.write_dmu, t, h, 1).put_zero(count, 1);
    gradient(a.dlambda, a.write_dlambda, t, h, 1).put_zero(count, 1);
  }

  T* d_read = c.g;
  for_each_block(c, count, d_read, [&](Network& network, std::int64_t begin, std::int64_t end, T* partial) {
    network.read_gradients(end - begin, input(p_.q, t + begin, h, p_.d_m), read_weights(c, W),
                           input(a.dout, t + begin, h, p_.d_m), gradient(a.dq, a.write_dq, t + begin, h, p_.d_m),
                           partial);
  });
  switch (norm()) {
    case NormMode::none:
    case NormMode::post:
      if (Z_next != nullptr) add(c.d_inner, 0, P_, c.dW);
      break;
    case NormMode::pre:
      if (Z_next != nullptr) add(c.d_inner, 0, P_, d_read);
      normalise_rows_gradients(p_, c.norms, W, d_read, c.dnorms);
      break;
    case NormMode::read_raw:
      if (Z_next == nullptr) break;
      add(c.d_inner, 0, P_, c.dW);
      normalise_rows_gradients(p_, c.norms, W, c.dW, c.dnorms);
      break;
  }
  add(d_read, 0, P_, c.dW);
}

}  // namespace weft
