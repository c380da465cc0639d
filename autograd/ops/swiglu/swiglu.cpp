#include "autograd/ops/swiglu/swiglu.h"

#include "autograd/ops/gate/gate.h"

namespace weft {

Var swiglu(Tape& tape, const Var& gate, const Var& up) {
  WEFT_CHECK(gate.shape() == up.shape() && gate.dtype() == up.dtype(), "swiglu: gate {} {} with up {} {}",
             gate.shape().str(), name_of(gate.dtype()), up.shape().str(), name_of(up.dtype()));
  return silu_gate(tape, up, gate);
}

}  // namespace weft
