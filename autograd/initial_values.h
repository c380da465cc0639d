// Drawing the first values of a parameter, on the host or a GPU with the same bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "autograd/dispatch.h"
#include "autograd/dtype.h"
#include "autograd/host_device.h"
#include "autograd/parameter.h"
#include "autograd/philox.h"
#include "autograd/portable_math.h"

namespace weft {

// N elements of the sequence `key`, computed in fp64 and rounded once.
struct InitialValues {
  DType dtype;
  Init init;
  std::uint64_t key;
  std::int64_t N;
  void* y;  // [N]
};

void initial_values_cuda(const InitialValues& args, const Launch& launch);

WEFT_HOST_DEVICE inline double uniform53(std::uint32_t high, std::uint32_t low) {
  return static_cast<double>(((static_cast<std::uint64_t>(high) << 32) | low) >> 11) * 0x1p-53;
}

// Element `index` of the sequence `key`: one Philox block gives two 53-bit uniforms. Sums of products are explicit fma,
// so that no compiler decides about their rounding.
WEFT_HOST_DEVICE inline double initial_value(const Init& init, std::uint64_t key, std::uint64_t index) {
  const PhiloxCounter words = random_block(key, RandomStream::parameter_init, index, 0);
  const double u = uniform53(words[0], words[1]);
  switch (init.law) {
    case Init::Law::constant:
      return init.a;
    case Init::Law::normal: {
      const double v = uniform53(words[2], words[3]);
      return init.a * std::sqrt(-2.0 * portable_log(1.0 - u)) * portable_cos_2pi(v);
    }
    case Init::Law::uniform:
      return std::fma(init.b - init.a, u, init.a);
    case Init::Law::log_uniform:
      return portable_log(std::fma(init.b - init.a, u, init.a));
    case Init::Law::inverse_softplus_log_uniform: {
      const double low = portable_log(init.a);
      const double x = portable_exp(std::fma(portable_log(init.b) - low, u, low));
      return portable_log(portable_exp(x) - 1.0);
    }
  }
  return 0.0;
}

}  // namespace weft
