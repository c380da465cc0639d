// CUDA kernel of cast.h.
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/ops/cast/cast.h"

namespace weft {
namespace {

struct Same {
  __device__ void operator()(float x, float& y) const { y = x; }
};

}  // namespace

void cast_cuda(const Cast& a, const Launch& launch) {
  dispatch_cuda(a.from, "cast", [&]<class From>() {
    dispatch_cuda(a.to, "cast", [&]<class To>() {
      map_cuda(launch, a.N, map_inputs(static_cast<const From*>(a.x)),
               map_outputs(map_output(static_cast<To*>(a.y), a.write_y)), Same{});
    });
  });
}

}  // namespace weft
