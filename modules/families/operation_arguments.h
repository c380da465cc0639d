// How operations of many inputs, some of them absent, check them and fill their argument structs.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "autograd/check.h"
#include "autograd/documents.h"
#include "autograd/tape.h"

namespace weft {

inline void* raw_or_null(const Tensor& t) {
  return t.defined() ? t.raw() : nullptr;
}

// Points an argument struct to the gradients of the inputs, one after the other (null: not wanted). They live as long
// as this.
class GradientTargets {
 public:
  explicit GradientTargets(Backward& pass) : pass_(pass) {}

  void next(void*& gradient, Write& write) {
    const GradTarget target = pass_.target(static_cast<int>(gradients_.size()));
    gradient = target.raw();
    write = target.write;
    gradients_.push_back(target.tensor);
  }

 private:
  Backward& pass_;
  std::vector<Tensor> gradients_;
};

// An input that must be there, named in the error.
inline void check_input(const char* op, const char* name, const Var& x, const Shape& expected, DType dtype) {
  WEFT_CHECK(x.value.defined() && x.shape() == expected && x.dtype() == dtype, "{}: {} is {} {}, expected {} {}", op,
             name, x.value.defined() ? x.shape().str() : "absent", name_of(x.value.dtype()), expected.str(),
             name_of(dtype));
}

// How many tokens of its first chunk each document has seen before it continues.
inline void check_phases(const char* op, std::span<const std::int32_t> phases, const Documents& documents,
                         std::int64_t chunk) {
  WEFT_CHECK(static_cast<std::int64_t>(phases.size()) == documents.count(), "{}: {} phases for {} documents", op,
             phases.size(), documents.count());
  for (const std::int32_t phase : phases) {
    WEFT_CHECK(phase >= 0 && phase < chunk, "{}: phase {} in chunks of {}", op, phase, chunk);
  }
}

// The phases where the tape computes.
inline Tensor phases_on(const Tape& tape, std::span<const std::int32_t> phases) {
  const Tensor all = Tensor::empty({static_cast<std::int64_t>(phases.size())}, DType::i32);
  std::copy(phases.begin(), phases.end(), all.data<std::int32_t>());
  return tape.here(all);
}

}  // namespace weft
