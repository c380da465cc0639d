// Feature maps phi of linear attention, which replace the exponential of a softmax by a product phi(q) . phi(k).
//
// R rows, D width of a row, W width of its features.
//   identity      x                                                                                     W = D
//   taylor        [1, x / D^(1/4), (x_i^2 / sqrt(2 D))_i, (x_i x_j / sqrt(D))_(i<j)]      W = 1 + D + D (D + 1) / 2
//                 so that phi(q) . phi(k) = 1 + u + u^2 / 2 >= 1/2 with u = q . k / sqrt(D)   (BASED, arXiv:2402.18668)
//   softmax_pair  [softmax(x), softmax(-x)], each at least 1e-12                        W = 2 D (Hedgehog, 2402.04347)
//   elu_plus_one  elu(x) + 1: x + 1 above zero, e^x below                                     W = D (2006.16236)
// Pairs of softmaxes and elu + 1 are non-negative, and so are all products phi(q) . phi(k) but those of the identity.
#pragma once

#include "autograd/tape.h"

namespace weft {

enum class FeatureMap : std::uint8_t { identity, taylor, softmax_pair, elu_plus_one };

struct FeatureMapForward {
  DType dtype;
  FeatureMap map;
  std::int64_t R, D;
  const void* x;  // [R, D]
  void* y;        // [R, W]
};

struct FeatureMapBackward {
  DType dtype;
  FeatureMap map;
  std::int64_t R, D;
  const void* x;   // [R, D]
  const void* y;   // [R, W]
  const void* dy;  // [R, W]
  void* dx;        // [R, D]
  Write write_dx;
};

void feature_map_forward_cuda(const FeatureMapForward& args, const Launch& launch);
void feature_map_backward_cuda(const FeatureMapBackward& args, const Launch& launch);

// W.
std::int64_t feature_width(FeatureMap map, std::int64_t D);

// x [..., D] -> [..., W].
Var feature_map(Tape& tape, FeatureMap map, const Var& x);

}  // namespace weft
