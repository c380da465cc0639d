#include "checkpoints/gguf/rope_factors.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "autograd/check.h"

namespace weft {

Llama3Scaling llama3_scaling(std::span<const float> factors, double theta, std::string_view source) {
  if (factors.empty()) storage_error("{}: tensor \"{}\" is empty", source, kRopeFactorsTensor);
  Llama3Scaling scaling;
  scaling.factor = static_cast<double>(*std::max_element(factors.begin(), factors.end()));
  for (std::size_t i = 0; i < factors.size(); ++i) {
    const double frequency = std::pow(theta, -static_cast<double>(i) / static_cast<double>(factors.size()));
    const double turns = scaling.original_max_position_embeddings * frequency / (2 * std::numbers::pi);
    const double ramp =
        std::clamp((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0, 1.0);
    const double expected = 1 / ((1 - ramp) / scaling.factor + ramp);
    // Written so that no number fails, too.
    if (!(std::abs(static_cast<double>(factors[i]) / expected - 1) < 1e-5)) {
      storage_error("{}: tensor \"{}\": divisor {} is {}, Llama 3's scaling by {} has {}; other scalings are not known",
                    source, kRopeFactorsTensor, i, factors[i], scaling.factor, expected);
    }
  }
  return scaling;
}

}  // namespace weft
