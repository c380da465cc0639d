// Element-wise kernels that need to know their row and column: a functor with
//   template <int kN> __device__ void at(std::int64_t row, std::int64_t column) const
// called once for each pack of kN neighbouring elements of R rows of width D.
#pragma once

#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/map_cuda.cuh"

namespace weft {

// n / d and n % d for 0 <= n < 2^31 by a multiplication.
class Divider {
 public:
  explicit Divider(std::uint32_t d) : d_(d) {
    while ((std::uint64_t{1} << shift_) < d) ++shift_;
    factor_ = static_cast<std::uint32_t>(((std::uint64_t{1} << 32) * ((std::uint64_t{1} << shift_) - d)) / d + 1);
  }
  __device__ std::uint32_t quotient(std::uint32_t n) const { return (__umulhi(n, factor_) + n) >> shift_; }
  __device__ std::uint32_t remainder(std::uint32_t n) const { return n - quotient(n) * d_; }

 private:
  std::uint32_t d_;
  std::uint32_t shift_ = 0;
  std::uint32_t factor_;
};

namespace detail {

template <int kN, class F>
__global__ void __launch_bounds__(kMapThreads) map_rows_kernel(std::uint32_t count, Divider packs, F f) {
  const std::uint32_t at = blockIdx.x * kMapThreads + threadIdx.x;
  if (at >= count) return;
  f.template at<kN>(packs.quotient(at), static_cast<std::int64_t>(packs.remainder(at)) * kN);
}

template <int kN, class F>
void launch_map_rows(const Launch& launch, std::int64_t R, std::int64_t D, const F& f) {
  const std::int64_t count = R * (D / kN);
  WEFT_CHECK(count < INT32_MAX, "{} x {} elements in one element-wise kernel", R, D);
  const auto blocks = static_cast<unsigned>((count + kMapThreads - 1) / kMapThreads);
  map_rows_kernel<kN><<<blocks, kMapThreads, 0, cuda_stream(launch.stream)>>>(
      static_cast<std::uint32_t>(count), Divider(static_cast<std::uint32_t>(D / kN)), f);
  WEFT_CHECK_LAUNCH();
}

}  // namespace detail

// `aligned`: rows of D can be read in packs of kN in every array of the functor.
template <int kN, class F>
void map_rows(const Launch& launch, std::int64_t R, std::int64_t D, bool aligned, const F& f) {
  if (R == 0 || D == 0) return;
  if (aligned) {
    detail::launch_map_rows<kN>(launch, R, D, f);
  } else {
    detail::launch_map_rows<1>(launch, R, D, f);
  }
}

}  // namespace weft
