// Element-wise loops over arrays of one length, threaded and vectorised: any number of inputs and outputs, each output
// overwritten, accumulated into, or not wanted.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "autograd/dispatch.h"
#include "autograd/parallel_for.h"

namespace weft {

// data is null for an output that nobody wants.
template <class T>
struct MapOutput {
  T* data = nullptr;
  Write write = Write::overwrite;
};

namespace detail {

// What is not simply overwritten passes through a strip of this many elements, which stays in the first-level cache.
inline constexpr std::int64_t kMapStrip = 512;

template <class T, class F, std::size_t... In, std::size_t... Out>
void map_strip(std::int64_t n, const std::array<const T*, sizeof...(In)>& in, const std::array<T*, sizeof...(Out)>& out,
               const F& f, std::index_sequence<In...>, std::index_sequence<Out...>) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) f(in[In][i]..., out[Out][i]...);
}

}  // namespace detail

// map_cpu() on the calling thread.
template <class T, std::size_t Inputs, std::size_t Outputs, class F>
void map_serial_cpu(std::int64_t n, const std::array<const T*, Inputs>& in,
                    const std::array<MapOutput<T>, Outputs>& out, const F& f) {
  alignas(64) T staged[Outputs][detail::kMapStrip];
  for (std::int64_t begin = 0; begin < n; begin += detail::kMapStrip) {
    const std::int64_t count = std::min(detail::kMapStrip, n - begin);
    std::array<const T*, Inputs> from;
    std::array<T*, Outputs> to;
    for (std::size_t k = 0; k < Inputs; ++k) from[k] = in[k] + begin;
    for (std::size_t k = 0; k < Outputs; ++k) {
      const bool direct = out[k].data != nullptr && out[k].write == Write::overwrite;
      to[k] = direct ? out[k].data + begin : staged[k];
    }
    detail::map_strip(count, from, to, f, std::make_index_sequence<Inputs>{}, std::make_index_sequence<Outputs>{});
    for (std::size_t k = 0; k < Outputs; ++k) {
      if (out[k].data == nullptr || out[k].write == Write::overwrite) continue;
      T* target = out[k].data + begin;
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) target[i] += staged[k][i];
    }
  }
}

// f(in[0][i], in[1][i], ..., out[0][i], ...) for i in [0, n): f takes values of the inputs and sets references to the
// outputs, which overlap neither the inputs nor each other.
template <class T, std::size_t Inputs, std::size_t Outputs, class F>
void map_cpu(std::int64_t n, const std::array<const T*, Inputs>& in, const std::array<MapOutput<T>, Outputs>& out,
             const F& f) {
  parallel_blocks(n, 16384, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    std::array<const T*, Inputs> from = in;
    std::array<MapOutput<T>, Outputs> to = out;
    for (const T*& p : from) p += begin;
    for (MapOutput<T>& o : to) {
      if (o.data != nullptr) o.data += begin;
    }
    map_serial_cpu(end - begin, from, to, f);
  });
}

}  // namespace weft
