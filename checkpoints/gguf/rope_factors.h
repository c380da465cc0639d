// Llama 3's rope scaling in GGUF files: a tensor of divisors, one a frequency, in place of the parameters.
#pragma once

#include <span>
#include <string_view>

namespace weft {

inline constexpr std::string_view kRopeFactorsTensor = "rope_freqs.weight";

// The parameters of Hugging Face's rope_type "llama3".
struct Llama3Scaling {
  double factor = 0;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  double original_max_position_embeddings = 8192;
};

// The parameters whose divisors for the base `theta` are `factors`, the other three being those of every published
// Llama 3. Error (storage) that names `source` if no factor reproduces them to 1e-5.
Llama3Scaling llama3_scaling(std::span<const float> factors, double theta, std::string_view source);

}  // namespace weft
