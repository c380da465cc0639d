#include <cmath>
#include <limits>

#include "autograd/parallel_for.h"
#include "modules/families/attention/attention.h"

namespace weft {
namespace {

template <class T>
void merge(std::int64_t rows, std::int64_t D_V, T* o_a, T* lse_a, const T* o_b, const T* lse_b) {
  constexpr T kEmpty = -std::numeric_limits<T>::infinity();
  parallel_blocks(rows, rows_per_block(D_V), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      if (lse_b[i] == kEmpty) continue;
      const T top = lse_a[i] > lse_b[i] ? lse_a[i] : lse_b[i];
      const T lse = top + std::log(std::exp(lse_a[i] - top) + std::exp(lse_b[i] - top));
      const T keep = std::exp(lse_a[i] - lse);
      const T add = std::exp(lse_b[i] - lse);
      for (std::int64_t c = 0; c < D_V; ++c) o_a[i * D_V + c] = keep * o_a[i * D_V + c] + add * o_b[i * D_V + c];
      lse_a[i] = lse;
    }
  });
}

}  // namespace

void merge_attention(const Tensor& o_a, const Tensor& lse_a, const Tensor& o_b, const Tensor& lse_b) {
  WEFT_CHECK(o_a.shape() == o_b.shape() && lse_a.shape() == lse_b.shape() && lse_a.numel() == o_a.shape().rows(),
             "merge_attention: o {} and {}, lse {} and {}", o_a.shape().str(), o_b.shape().str(), lse_a.shape().str(),
             lse_b.shape().str());
  dispatch_real(o_a.dtype(), "merge_attention", [&]<class T>() {
    merge(lse_a.numel(), o_a.shape().back(), o_a.data<T>(), lse_a.data<T>(), o_b.data<T>(), lse_b.data<T>());
  });
}

}  // namespace weft
