// CPU kernels of lrpe.h, templated on float/double.
#pragma once

#include <cmath>

#include "autograd/block_sum.h"
#include "autograd/carver.h"
#include "autograd/ops/lrpe/lrpe.h"

namespace weft {

// C = H D channels of all heads.
template <class T>
struct LrpeScratch {
  LrpeScratch(const LrpeProblem& p, void* workspace) : C(p.H * p.D), blocks(row_blocks(p.T, C)) {
    Carver<double> carver(static_cast<double*>(workspace));
    step = carver.take(2 * C);
    turned = carver.take(blocks.count * 2 * C);
    lines = carver.take(blocks.count * C);
    sums = carver.take(C);
    bytes = static_cast<std::size_t>(carver.used()) * sizeof(double);
    if (workspace == nullptr) return;
    for (std::int64_t c = 0; c < C; ++c) {
      const auto theta = static_cast<double>(static_cast<const T*>(p.theta)[c]);
      step[c] = std::cos(theta);
      step[C + c] = std::sin(theta);
    }
  }

  std::int64_t C;
  RowBlocks blocks;
  double* step;    // [2, C] cos and sin of theta
  double* turned;  // [blocks, 2, C] cos and sin of a block's current angles
  double* lines;   // [blocks, C] what the tokens of a block add to dtheta
  double* sums;    // [C]
  std::size_t bytes;
};

// Cos and sin of p theta for one position after another. Every kStride positions they are computed afresh, between them
// by adding theta: what comes out depends on the position alone.
template <class T>
class TurningAngles {
 public:
  TurningAngles(const LrpeProblem& p, const LrpeScratch<T>& scratch, std::int64_t block)
      : theta_(static_cast<const T*>(p.theta)),
        C_(scratch.C),
        step_(scratch.step),
        cos_(scratch.turned + block * 2 * scratch.C),
        sin_(cos_ + scratch.C) {}

  void move_to(std::int64_t position) {
    if (position / kStride != position_ / kStride || position < position_) {
      position_ = position / kStride * kStride;
      for (std::int64_t c = 0; c < C_; ++c) {
        const double angle = static_cast<double>(position_) * static_cast<double>(theta_[c]);
        cos_[c] = std::cos(angle);
        sin_[c] = std::sin(angle);
      }
    }
    for (; position_ < position; ++position_) {
#pragma omp simd
      for (std::int64_t c = 0; c < C_; ++c) {
        const double before = cos_[c];
        cos_[c] = before * step_[c] - sin_[c] * step_[C_ + c];
        sin_[c] = before * step_[C_ + c] + sin_[c] * step_[c];
      }
    }
  }

  const double* cos() const {
    return cos_;
  }  // [C]
  const double* sin() const {
    return sin_;
  }

 private:
  static constexpr std::int64_t kStride = 64;

  const T* theta_;
  std::int64_t C_;
  const double* step_;
  double *cos_, *sin_;
  std::int64_t position_ = -kStride;
};

template <class T>
void lrpe_forward_cpu(const LrpeForward& a, void* workspace) {
  const LrpeScratch<T> scratch(a, workspace);
  parallel_blocks(a.T, scratch.blocks.rows, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
    TurningAngles<T> angles(a, scratch, b);
    for (std::int64_t t = begin; t < end; ++t) {
      angles.move_to(a.positions[t]);
      for (std::int64_t h = 0; h < a.H; ++h) {
        const T* x = static_cast<const T*>(a.x) + (t * a.H + h) * a.D;
        T* y = static_cast<T*>(a.y) + (t * a.H + h) * 2 * a.D;
        const double* cos = angles.cos() + h * a.D;
        const double* sin = angles.sin() + h * a.D;
#pragma omp simd
        for (std::int64_t c = 0; c < a.D; ++c) {
          y[c] = x[c] * static_cast<T>(cos[c]);
          y[a.D + c] = x[c] * static_cast<T>(sin[c]);
        }
      }
    }
  });
}

template <class T>
void lrpe_backward_cpu(const LrpeBackward& a, void* workspace) {
  const LrpeScratch<T> scratch(a, workspace);
  const std::int64_t C = scratch.C;
  parallel_blocks(a.T, scratch.blocks.rows, [&](std::int64_t b, std::int64_t begin, std::int64_t end) {
    TurningAngles<T> angles(a, scratch, b);
    double* line = scratch.lines + b * C;
    std::fill(line, line + C, 0.0);
    for (std::int64_t t = begin; t < end; ++t) {
      angles.move_to(a.positions[t]);
      const auto position = static_cast<double>(a.positions[t]);
      for (std::int64_t h = 0; h < a.H; ++h) {
        const T* x = static_cast<const T*>(a.x) + (t * a.H + h) * a.D;
        const T* dy = static_cast<const T*>(a.dy) + (t * a.H + h) * 2 * a.D;
        const double* cos = angles.cos() + h * a.D;
        const double* sin = angles.sin() + h * a.D;
        if (a.dx != nullptr) {
          T* dx = static_cast<T*>(a.dx) + (t * a.H + h) * a.D;
          for (std::int64_t c = 0; c < a.D; ++c) {
            store(dx[c], static_cast<T>(cos[c]) * dy[c] + static_cast<T>(sin[c]) * dy[a.D + c], a.write_dx);
          }
        }
#pragma omp simd
        for (std::int64_t c = 0; c < a.D; ++c) {
          const double turn = cos[c] * static_cast<double>(dy[a.D + c]) - sin[c] * static_cast<double>(dy[c]);
          line[h * a.D + c] += position * static_cast<double>(x[c]) * turn;
        }
      }
    }
  });
  if (a.dtheta == nullptr) return;
  add_lines(scratch.lines, scratch.blocks.count, C, scratch.sums, Write::overwrite);
  auto* dtheta = static_cast<T*>(a.dtheta);
  for (std::int64_t c = 0; c < C; ++c) store(dtheta[c], static_cast<T>(scratch.sums[c]), a.write_dtheta);
}

}  // namespace weft
