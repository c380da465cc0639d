// Where a model lives and computes.
#pragma once

#include <memory>

#include "autograd/device.h"
#include "autograd/dtype.h"
#include "autograd/memory.h"
#include "autograd/transfer.h"

namespace weft {

struct Place {
  Stream stream;
  std::shared_ptr<Allocator> lasting;  // parameters, optimizer states, recurrent states
  std::shared_ptr<Allocator> arena;    // what a step or a token allocates
  DType dtype = DType::f32;            // of activations and matrices

  bool on_cpu() const { return stream.device.is_cpu(); }
  // A lasting tensor of zeros.
  Tensor zeros(const Shape& shape, DType type) const {
    Tensor t(shape, type, lasting);
    fill_zero(t, stream);
    return t;
  }
};

// Host memory; `arena` is the heap unless given.
Place cpu_place(DType dtype = DType::f32, std::shared_ptr<Allocator> arena = nullptr);

}  // namespace weft
