// What a validation finds out.
#pragma once

#include <cstdint>
#include <optional>

namespace weft {

struct ValidationResult {
  double loss = 0.0;                    // mean over the labels, nats
  std::int64_t labels = 0;              // scored
  std::optional<double> bits_per_byte;  // of text
  std::optional<double> accuracy;       // of tasks: labels that are the model's first choice
};

}  // namespace weft
