// CUDA kernels of elementwise.h.
#include "autograd/cuda/map_cuda.h"
#include "autograd/ops/elementwise/elementwise.h"

namespace weft {
namespace {

struct Sum {
  __device__ void operator()(float a, float b, float& y) const { y = a + b; }
};

struct Product {
  __device__ void operator()(float a, float b, float& y) const { y = a * b; }
};

struct ProductGradients {
  __device__ void operator()(float a, float b, float dy, float& da, float& db) const {
    da = dy * b;
    db = dy * a;
  }
};

struct Scaled {
  float factor;
  __device__ void operator()(float a, float& y) const { y = factor * a; }
};

}  // namespace

void add_cuda(const AddForward& args, const Launch& launch) {
  dispatch_cuda(args.dtype, "add", [&]<class T>() {
    map_cuda(launch, args.N, map_inputs(static_cast<const T*>(args.a), static_cast<const T*>(args.b)),
             map_outputs(map_output(static_cast<T*>(args.y))), Sum{});
  });
}

void mul_forward_cuda(const MulForward& args, const Launch& launch) {
  dispatch_cuda(args.dtype, "mul", [&]<class T>() {
    map_cuda(launch, args.N, map_inputs(static_cast<const T*>(args.a), static_cast<const T*>(args.b)),
             map_outputs(map_output(static_cast<T*>(args.y))), Product{});
  });
}

void mul_backward_cuda(const MulBackward& args, const Launch& launch) {
  dispatch_cuda(args.dtype, "mul", [&]<class T>() {
    map_cuda(launch, args.N,
             map_inputs(static_cast<const T*>(args.a), static_cast<const T*>(args.b), static_cast<const T*>(args.dy)),
             map_outputs(map_output(static_cast<T*>(args.da), args.write_da),
                         map_output(static_cast<T*>(args.db), args.write_db)),
             ProductGradients{});
  });
}

void scale_cuda(const Scale& args, const Launch& launch) {
  dispatch_cuda(args.dtype, "scale", [&]<class T>() {
    map_cuda(launch, args.N, map_inputs(static_cast<const T*>(args.a)),
             map_outputs(map_output(static_cast<T*>(args.y), args.write_y)), Scaled{static_cast<float>(args.factor)});
  });
}

}  // namespace weft
