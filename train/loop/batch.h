// A micro-batch: packed rows as the tensors that a model takes.
#pragma once

#include <span>

#include "autograd/documents.h"
#include "autograd/tensor.h"
#include "data/sampler/row.h"

namespace weft {

struct Batch {
  Tensor tokens;   // i32 [T]
  Tensor labels;   // i32 [T], -1 ignored
  Tensor weights;  // f32 [T], or undefined: all 1
  DocumentsPtr documents;
};

// One packed row from several, in order. A row with an anchor stands alone.
Batch make_batch(std::span<const Row> rows);

}  // namespace weft
