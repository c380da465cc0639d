// Muon: momentum, orthogonalised by five Newton-Schulz iterations (Jordan et al., "Muon"; Moonlight, arXiv 2502.16982),
// on one matrix W [A, B] (out x in).
#pragma once

#include <cstddef>
#include <cstdint>

#include "train/optimizers/parameter_groups.h"

namespace weft {

// Quintic a x + b x^3 + c x^5, iterated: takes singular values in about [2e-3, 1] to [0.68, 1.20]; it does not converge
// to 1.
struct NewtonSchulz {
  static constexpr int kIterations = 5;
  static constexpr double a = 3.4445;
  static constexpr double b = -4.7750;
  static constexpr double c = 2.0315;
};

// rho of MuonScale.
double muon_scale(MuonScale scale, double scale_factor, std::int64_t A, std::int64_t B);

struct MuonScalars {
  float gradient_scale;
  float momentum;  // mu
  float step;      // learning rate times rho
  float keep;      // 1 - learning rate * weight decay
};
// Rounded once from fp64.
MuonScalars muon_scalars(const MuonOptions& options, double learning_rate, double weight_decay, double gradient_scale,
                         std::int64_t A, std::int64_t B);

// Floats that an A x B matrix needs as workspace.
std::size_t newton_schulz_workspace(std::int64_t A, std::int64_t B);
// x [A, B] / (||x||_F + 1e-7), iterated in place. Zero stays zero. The Gram matrix is formed on the shorter side, so
// nothing is transposed.
void newton_schulz(std::int64_t A, std::int64_t B, float* x, float* workspace);

std::size_t muon_workspace(std::int64_t A, std::int64_t B);
// With g = scale * grad: mom = fma(mu, mom - g, g); O = orthogonalised fma(mu, mom - g, g) (Nesterov);
// w = fma(-step, O, keep * w). The gradient is set to zero after it was read if `zero` is true.
void muon_update(const MuonScalars& scalars, bool zero, std::int64_t A, std::int64_t B, float* w, float* grad,
                 float* mom, float* workspace);

}  // namespace weft
