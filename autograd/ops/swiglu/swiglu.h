// SwiGLU (Shazeer, 2020, arXiv:2002.05202): y = silu(gate) up, the inner activation of a feed-forward block. It is the
// silu gate of ops/gate, whose kernels it uses.
#pragma once

#include "autograd/tape.h"

namespace weft {

// gate and up have one shape; so has the result.
Var swiglu(Tape& tape, const Var& gate, const Var& up);

}  // namespace weft
