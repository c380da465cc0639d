// Sees every operation of the tapes of a thread, for those who look for where something happens first.
#pragma once

#include <span>

#include "autograd/tape.h"

namespace weft {

// While one of these lives, the tapes of this thread that record tell it about operations on values that want
// gradients: forward as they are recorded (in a span that is recomputed, during its backward), backward as they run.
class TapeWatch {
 public:
  TapeWatch();
  virtual ~TapeWatch();
  TapeWatch(const TapeWatch&) = delete;
  TapeWatch& operator=(const TapeWatch&) = delete;

  struct Value {
    Tensor tensor;               // undefined where there is none
    const Parameter* parameter;  // null if it is none
  };
  virtual void computed(const char* /*op*/, std::span<const Value> /*inputs*/, std::span<const Value> /*outputs*/) {}
  // Gradients of outputs, and of inputs as far as the tape has summed them up.
  virtual void differentiated(const char* /*op*/, std::span<const Value> /*from*/, std::span<const Value> /*to*/) {}
  // Indices that an operation chose, which jump where its inputs move: what is written into them is used instead.
  virtual void chosen(const char* /*op*/, const Tensor& /*choice*/) {}

  static TapeWatch* current();
};

}  // namespace weft
