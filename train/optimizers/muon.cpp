#include "train/optimizers/muon.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "autograd/blas.h"

namespace weft {
namespace {

// In fp64 over fixed lanes: squares of an fp32 matrix neither overflow nor depend on the order of a reduction.
double frobenius_norm(const float* x, std::int64_t n) {
  constexpr std::int64_t kLanes = 8;
  std::array<double, kLanes> lane{};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::int64_t l = 0; l < kLanes; ++l) {
      const double value = x[i + l];
      lane[static_cast<std::size_t>(l)] += value * value;
    }
  }
  for (; i < n; ++i) lane[0] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  double total = 0.0;
  for (const double sum : lane) total += sum;
  return std::sqrt(total);
}

}  // namespace

double muon_scale(MuonScale scale, double scale_factor, std::int64_t A, std::int64_t B) {
  const auto out = static_cast<double>(A);
  const auto in = static_cast<double>(B);
  switch (scale) {
    case MuonScale::rms:
      return scale_factor * std::sqrt(std::max(out, in));
    case MuonScale::original:
      return scale_factor * std::sqrt(std::max(1.0, out / in));
    case MuonScale::spectral:
      return scale_factor * std::sqrt(out / in);
  }
  return 0.0;
}

MuonScalars muon_scalars(const MuonOptions& options, double learning_rate, double weight_decay, double gradient_scale,
                         std::int64_t A, std::int64_t B) {
  return {.gradient_scale = static_cast<float>(gradient_scale),
          .momentum = static_cast<float>(options.momentum),
          .step = static_cast<float>(learning_rate * muon_scale(options.scale, options.scale_factor, A, B)),
          .keep = static_cast<float>(1.0 - learning_rate * weight_decay)};
}

std::size_t newton_schulz_workspace(std::int64_t A, std::int64_t B) {
  const std::int64_t r = std::min(A, B);
  return static_cast<std::size_t>(A * B + 2 * r * r);
}

void newton_schulz(std::int64_t A, std::int64_t B, float* x, float* workspace) {
  const std::int64_t n = A * B;
  const std::int64_t r = std::min(A, B);
  const bool wide = A <= B;
  float* const old_x = workspace;          // [A, B]
  float* const gram = old_x + n;           // [r, r]: S
  float* const polynomial = gram + r * r;  // [r, r]: b S + c S^2
  const auto scale = static_cast<float>(1.0 / (frobenius_norm(x, n) + 1e-7));
  for (std::int64_t i = 0; i < n; ++i) x[i] *= scale;

  constexpr auto a = static_cast<float>(NewtonSchulz::a);
  constexpr auto b = static_cast<float>(NewtonSchulz::b);
  constexpr auto c = static_cast<float>(NewtonSchulz::c);
  for (int iteration = 0; iteration < NewtonSchulz::kIterations; ++iteration) {
    std::copy_n(x, n, old_x);
    // S = X X^T where X is wide, X^T X where it is tall.
    if (wide) {
      gemm(Op::none, Op::transpose, r, r, B, 1.0f, x, B, x, B, 0.0f, gram, r);
    } else {
      gemm(Op::transpose, Op::none, r, r, A, 1.0f, x, B, x, B, 0.0f, gram, r);
    }
    std::copy_n(gram, r * r, polynomial);
    gemm(Op::none, Op::none, r, r, r, c, gram, r, gram, r, b, polynomial, r);
    if (wide) {
      gemm(Op::none, Op::none, A, B, r, 1.0f, polynomial, r, old_x, B, a, x, B);
    } else {
      gemm(Op::none, Op::none, A, B, r, 1.0f, old_x, B, polynomial, r, a, x, B);
    }
  }
}

std::size_t muon_workspace(std::int64_t A, std::int64_t B) {
  return static_cast<std::size_t>(A * B) + newton_schulz_workspace(A, B);
}

void muon_update(const MuonScalars& scalars, bool zero, std::int64_t A, std::int64_t B, float* w, float* grad,
                 float* mom, float* workspace) {
  const MuonScalars s = scalars;
  const std::int64_t n = A * B;
  float* const direction = workspace;
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = s.gradient_scale * grad[i];
    const float m = __builtin_fmaf(s.momentum, mom[i] - g, g);
    mom[i] = m;
    direction[i] = __builtin_fmaf(s.momentum, m - g, g);
  }
  if (zero) std::fill_n(grad, n, 0.0f);
  newton_schulz(A, B, direction, workspace + n);
  for (std::int64_t i = 0; i < n; ++i) w[i] = __builtin_fmaf(-s.step, direction[i], s.keep * w[i]);
}

}  // namespace weft
