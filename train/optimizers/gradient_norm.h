// The global gradient norm, from per-parameter sums that also name the parameters with non-finite gradients.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "autograd/parameter.h"

namespace weft {

struct GradientNorm {
  double norm = 0.0;            // before clipping; NaN or infinity if any gradient element is
  std::vector<double> squares;  // by parameter: sum of squares

  bool finite() const;
};

// Squares in fp32, sums in fp64 over a fixed tree: the same bits for any number of threads. Gradients are f32.
// An element beyond about 1e19 overflows its square and counts as non-finite.
GradientNorm gradient_norm(std::span<Parameter* const> parameters);

// min(1, clip / (norm + 1e-6)); 1 where clip is 0 (off).
double clip_factor(double norm, double clip);

// Names of the parameters whose gradients are not finite, in order: "layers.3.mixer.wq, layers.3.ffn.w_up and 5 more".
std::string nonfinite_parameters(std::span<Parameter* const> parameters, const GradientNorm& norm,
                                 std::size_t most = 4);

}  // namespace weft
