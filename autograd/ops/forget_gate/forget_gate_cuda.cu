// CUDA kernels of forget_gate.h.
#include "autograd/cuda/functions.cuh"
#include "autograd/cuda/map_cuda.cuh"
#include "autograd/ops/forget_gate/forget_gate.h"

namespace weft {
namespace {

struct Forget {
  float gamma, free;  // free = 1 - gamma

  __device__ void operator()(float z, float& k, float& g) const {
    k = free * device_sigmoid(-z);
    if (gamma == 0.0f) {
      g = -device_softplus(-z);
    } else {
      g = k < 0.5f ? log1pf(-k) : logf(gamma + free * device_sigmoid(z));
    }
  }
  // What is open of f, (1 - gamma) sigma / f: for gamma = 0 it is 1, however small f.
  __device__ float share(float s) const {
    return gamma == 0.0f ? 1.0f : free * s * device_reciprocal(gamma + free * s);
  }
};

struct ForgetGradient : Forget {
  __device__ void operator()(float z, float dk, float dg, float& dz) const {
    const float s = device_sigmoid(z);
    dz = device_sigmoid(-z) * (dg * share(s) - dk * free * s);
  }
};
struct ForgetGradientOfG : Forget {
  __device__ void operator()(float z, float dg, float& dz) const {
    dz = device_sigmoid(-z) * dg * share(device_sigmoid(z));
  }
};
struct ForgetGradientOfK : Forget {
  __device__ void operator()(float z, float dk, float& dz) const {
    dz = -device_sigmoid(-z) * dk * free * device_sigmoid(z);
  }
};

Forget gate_of(double gamma) {
  return {.gamma = static_cast<float>(gamma), .free = static_cast<float>(1.0 - gamma)};
}

}  // namespace

void forget_gate_forward_cuda(const ForgetGateForward& a, const Launch& launch) {
  dispatch_cuda(a.dtype, "forget_gate", [&]<class T>() {
    map_cuda(launch, a.N, map_inputs(static_cast<const T*>(a.z)),
             map_outputs(map_output(static_cast<T*>(a.k)), map_output(static_cast<float*>(a.g))), gate_of(a.gamma));
  });
}

void forget_gate_backward_cuda(const ForgetGateBackward& a, const Launch& launch) {
  const Forget gate = gate_of(a.gamma);
  dispatch_cuda(a.dtype, "forget_gate", [&]<class T>() {
    const auto* z = static_cast<const T*>(a.z);
    const auto* dk = static_cast<const T*>(a.dk);
    const auto* dg = static_cast<const float*>(a.dg);
    const auto dz = map_outputs(map_output(static_cast<T*>(a.dz), a.write_dz));
    if (dk == nullptr) return map_cuda(launch, a.N, map_inputs(z, dg), dz, ForgetGradientOfG{gate});
    if (dg == nullptr) return map_cuda(launch, a.N, map_inputs(z, dk), dz, ForgetGradientOfK{gate});
    map_cuda(launch, a.N, map_inputs(z, dk, dg), dz, ForgetGradient{gate});
  });
}

}  // namespace weft
