// What this machine can do.
#pragma once

#include <cstddef>

namespace weft {

// Floating-point operations a second that the BLAS reaches on a square fp32 product with the threads of this process;
// the yardstick of model FLOP utilisation on a CPU. Takes 0.2 s.
double measure_matrix_rate();

std::size_t physical_memory_bytes();

// Throws Error (config) if this processor lacks the instructions that weft was compiled for.
void check_processor();

}  // namespace weft
