#include "tests/support/random.h"

namespace weft::testing {

Tensor cast(const Tensor& tensor, DType dtype) {
  Tensor t = Tensor::empty(tensor.shape(), dtype);
  t.copy_from(tensor);
  return t;
}

}  // namespace weft::testing
