// CPU kernels of forget_gate.h, templated on float/double.
#pragma once

#include <cmath>

#include "autograd/map_cpu.h"
#include "autograd/ops/forget_gate/forget_gate.h"
#include "autograd/vec_math.h"

namespace weft {

template <class T>
void forget_gate_forward_cpu(const ForgetGateForward& a) {
  const auto gamma = static_cast<T>(a.gamma);
  const auto free = static_cast<T>(1.0 - a.gamma);
  map_cpu<T, 1, 2>(a.N, {static_cast<const T*>(a.z)},
                   {{{static_cast<T*>(a.k), Write::overwrite}, {static_cast<T*>(a.g), Write::overwrite}}},
                   [gamma, free](T z, T& k, T& g) {
                     k = free * sigmoid(-z);
                     if (gamma == T(0)) {
                       g = -fast_softplus(-z);
                     } else {
                       g = k < T(0.5) ? std::log1p(-k) : std::log(gamma + free * sigmoid(z));
                     }
                   });
}

template <class T>
void forget_gate_backward_cpu(const ForgetGateBackward& a) {
  const auto gamma = static_cast<T>(a.gamma);
  const auto free = static_cast<T>(1.0 - a.gamma);
  // What is open of f, (1 - gamma) sigma / f: for gamma = 0 it is 1, however small f.
  const auto share = [gamma, free](T s) { return gamma == T(0) ? T(1) : free * s / (gamma + free * s); };
  const auto* z = static_cast<const T*>(a.z);
  const auto* dk = static_cast<const T*>(a.dk);
  const auto* dg = static_cast<const T*>(a.dg);
  const std::array<MapOutput<T>, 1> dz{{{static_cast<T*>(a.dz), a.write_dz}}};
  if (dk == nullptr) {
    return map_cpu<T, 2, 1>(a.N, {z, dg}, dz,
                            [share](T z_i, T dg_i, T& dz_i) { dz_i = sigmoid(-z_i) * dg_i * share(sigmoid(z_i)); });
  }
  if (dg == nullptr) {
    return map_cpu<T, 2, 1>(a.N, {z, dk}, dz,
                            [free](T z_i, T dk_i, T& dz_i) { dz_i = -sigmoid(-z_i) * dk_i * free * sigmoid(z_i); });
  }
  map_cpu<T, 3, 1>(a.N, {z, dk, dg}, dz, [share, free](T z_i, T dk_i, T dg_i, T& dz_i) {
    const T s = sigmoid(z_i);
    dz_i = sigmoid(-z_i) * (dg_i * share(s) - dk_i * free * s);
  });
}

}  // namespace weft
