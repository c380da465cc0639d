// What the tests of operations on a MemoryWalk share: the bundles around their tensors. `Tensors` are the inputs, the
// state to start from among them, with a function `fields(Role)`.
#pragma once

#include <algorithm>

#include "tests/support/packed_tensors.h"

namespace weft::testing {

template <class Tensors>
struct MemoryWalkData {
  Tensors x;
  Tensor d_o, dfinal;  // the gradients that arrive

  Fields fields() {
    Fields all = x.fields(Role::value);
    all.push_back({"d o", &d_o, RowsOf::tokens, Role::gradient});
    all.push_back({"d final state", &dfinal, RowsOf::documents, Role::gradient});
    return all;
  }
};

template <class Tensors>
struct MemoryWalkResult {
  Tensor o, final_state;
  Tensors d;  // gradients of the inputs

  Fields fields() {
    Fields all{{"o", &o, RowsOf::tokens}, {"final state", &final_state, RowsOf::documents}};
    std::ranges::copy(d.fields(Role::gradient), std::back_inserter(all));
    return all;
  }
};

}  // namespace weft::testing
