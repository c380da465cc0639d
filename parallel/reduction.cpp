#include "parallel/reduction.h"

#include <algorithm>
#include <type_traits>

namespace weft {
namespace {

constexpr std::int64_t kBlock = 1024;

struct Sum {
  template <class A>
  static A apply(A a, A b) {
    return a + b;
  }
};

// (b != b) passes a NaN on; for integers it is never true.
struct Max {
  template <class A>
  static A apply(A a, A b) {
    return (b > a || b != b) ? b : a;
  }
};

struct Min {
  template <class A>
  static A apply(A a, A b) {
    return (b < a || b != b) ? b : a;
  }
};

// A block of accumulators at a time, so that `out` may alias a contribution and passes over memory are few.
template <class Op, class T, class Accumulator>
void fold(std::span<const void* const> contributions, void* out, std::int64_t elements) {
  Accumulator sum[kBlock];
  for (std::int64_t begin = 0; begin < elements; begin += kBlock) {
    const std::int64_t n = std::min(kBlock, elements - begin);
    const T* first = static_cast<const T*>(contributions[0]) + begin;
    for (std::int64_t i = 0; i < n; ++i) sum[i] = static_cast<Accumulator>(first[i]);
    for (const void* contribution : contributions.subspan(1)) {
      const T* x = static_cast<const T*>(contribution) + begin;
      for (std::int64_t i = 0; i < n; ++i) sum[i] = Op::apply(sum[i], static_cast<Accumulator>(x[i]));
    }
    T* y = static_cast<T*>(out) + begin;
    for (std::int64_t i = 0; i < n; ++i) y[i] = static_cast<T>(sum[i]);
  }
}

template <class Op>
void fold(DType dtype, std::span<const void* const> contributions, void* out, std::int64_t elements) {
  constexpr bool kWraps = std::is_same_v<Op, Sum>;
  switch (dtype) {
    case DType::f64:
      return fold<Op, double, double>(contributions, out, elements);
    case DType::f32:
      return fold<Op, float, float>(contributions, out, elements);
    case DType::bf16:
      return fold<Op, bfloat16, float>(contributions, out, elements);
    case DType::i32:
      return fold<Op, std::int32_t, std::conditional_t<kWraps, std::uint32_t, std::int32_t>>(contributions, out,
                                                                                             elements);
    case DType::i64:
      return fold<Op, std::int64_t, std::conditional_t<kWraps, std::uint64_t, std::int64_t>>(contributions, out,
                                                                                             elements);
  }
}

}  // namespace

void ordered_fold(DType dtype, ReduceOp op, std::span<const void* const> contributions, void* out,
                  std::int64_t elements) {
  WEFT_CHECK(!contributions.empty() && elements >= 0, "fold of {} contributions of {} elements", contributions.size(),
             elements);
  switch (op) {
    case ReduceOp::sum:
      return fold<Sum>(dtype, contributions, out, elements);
    case ReduceOp::max:
      return fold<Max>(dtype, contributions, out, elements);
    case ReduceOp::min:
      return fold<Min>(dtype, contributions, out, elements);
  }
}

}  // namespace weft
