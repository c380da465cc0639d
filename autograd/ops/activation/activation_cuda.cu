// CUDA kernels of activation.h.
#include "autograd/cuda/functions.cuh"
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/ops/activation/activation.h"

namespace weft {
namespace {

template <class F>
void dispatch_activation_function(ActivationFunction function, double scale, F&& f) {
  switch (function) {
    case ActivationFunction::silu:
      return f(DeviceSilu{});
    case ActivationFunction::sigmoid:
      return f(DeviceSigmoid{});
    case ActivationFunction::log_sigmoid:
      return f(DeviceLogSigmoid{static_cast<float>(scale)});
    case ActivationFunction::softplus:
      return f(DeviceSoftplus{});
  }
}

template <class Function>
struct Activated {
  Function function;
  __device__ void operator()(float x, float& y) const { y = function.value(x); }
};

template <class Function>
struct ActivationGradient {
  Function function;
  __device__ void operator()(float x, float dy, float& dx) const { dx = dy * function.slope(x); }
};

// Element types of x and y.
template <class F>
void dispatch_types(DType dtype, DType result, F&& f) {
  if (dtype == result) {
    dispatch_cuda(dtype, "activation", [&]<class T>() { f.template operator()<T, T>(); });
  } else {
    f.template operator()<bfloat16, float>();
  }
}

}  // namespace

void activation_forward_cuda(const ActivationForward& a, const Launch& launch) {
  dispatch_types(a.dtype, a.result_dtype, [&]<class T, class Y>() {
    dispatch_activation_function(a.function, a.scale, [&]<class Function>(Function function) {
      map_cuda(launch, a.N, map_inputs(static_cast<const T*>(a.x)), map_outputs(map_output(static_cast<Y*>(a.y))),
               Activated<Function>{function});
    });
  });
}

void activation_backward_cuda(const ActivationBackward& a, const Launch& launch) {
  dispatch_types(a.dtype, a.result_dtype, [&]<class T, class Y>() {
    dispatch_activation_function(a.function, a.scale, [&]<class Function>(Function function) {
      map_cuda(launch, a.N, map_inputs(static_cast<const T*>(a.x), static_cast<const Y*>(a.dy)),
               map_outputs(map_output(static_cast<T*>(a.dx), a.write_dx)), ActivationGradient<Function>{function});
    });
  });
}

}  // namespace weft
