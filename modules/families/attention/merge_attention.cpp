#include <cmath>
#include <limits>

#include "autograd/parallel_for.h"
#include "modules/families/attention/attention.h"

namespace weft {
namespace {

template <class T>
void merge(const MergeAttention& a) {
  constexpr T kEmpty = -std::numeric_limits<T>::infinity();
  auto* const o_a = static_cast<T*>(a.o_a);
  auto* const lse_a = static_cast<T*>(a.lse_a);
  const auto* const o_b = static_cast<const T*>(a.o_b);
  const auto* const lse_b = static_cast<const T*>(a.lse_b);
  const std::int64_t D_V = a.D_V;
  parallel_blocks(a.rows, rows_per_block(D_V), [&](std::int64_t, std::int64_t begin, std::int64_t end) {
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

constexpr Dispatch<MergeAttention> kMerge{
    .op = "merge_attention",
    .cpu = [](const MergeAttention& args,
              const Launch&) { dispatch_real(args.dtype, "merge_attention", [&]<class T>() { merge<T>(args); }); },
    .cuda = WEFT_ON_CUDA(merge_attention_cuda)};

}  // namespace

void merge_attention(const Tensor& o_a, const Tensor& lse_a, const Tensor& o_b, const Tensor& lse_b,
                     const Stream& stream) {
  WEFT_CHECK(o_a.shape() == o_b.shape() && lse_a.shape() == lse_b.shape() && lse_a.numel() == o_a.shape().rows(),
             "merge_attention: o {} and {}, lse {} and {}", o_a.shape().str(), o_b.shape().str(), lse_a.shape().str(),
             lse_b.shape().str());
  WEFT_CHECK(
      o_b.dtype() == o_a.dtype() && lse_a.dtype() == accumulator_dtype(o_a.dtype()) && lse_b.dtype() == lse_a.dtype(),
      "merge_attention: o {} and {}, lse {} and {}", name_of(o_a.dtype()), name_of(o_b.dtype()), name_of(lse_a.dtype()),
      name_of(lse_b.dtype()));
  kMerge({.dtype = o_a.dtype(),
          .rows = lse_a.numel(),
          .D_V = o_a.shape().back(),
          .o_a = o_a.raw(),
          .lse_a = lse_a.raw(),
          .o_b = o_b.raw(),
          .lse_b = lse_b.raw()},
         {.stream = stream});
}

}  // namespace weft
