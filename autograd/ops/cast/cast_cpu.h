// CPU kernel of cast.h.
#pragma once

#include <type_traits>

#include "autograd/dispatch.h"
#include "autograd/ops/cast/cast.h"
#include "autograd/parallel_for.h"

namespace weft {

// A stored value as what it is computed with.
template <class T>
auto to_real(T value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return static_cast<float>(value);
  } else {
    return value;
  }
}

template <class To, class From>
void cast_cpu(const Cast& a) {
  const auto* x = static_cast<const From*>(a.x);
  auto* y = static_cast<To*>(a.y);
  parallel_blocks(a.N, 32768, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    if (a.write_y == Write::overwrite) {
      for (std::int64_t i = begin; i < end; ++i) y[i] = static_cast<To>(to_real(x[i]));
    } else {
      for (std::int64_t i = begin; i < end; ++i) y[i] = static_cast<To>(to_real(y[i]) + to_real(x[i]));
    }
  });
}

}  // namespace weft
