#include "autograd/ops/feature_map/feature_map.h"

#include "autograd/ops/feature_map/feature_map_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<FeatureMapForward> kForward{
    .op = "feature_map forward",
    .cpu =
        [](const FeatureMapForward& args, const Launch&) {
          dispatch_real(args.dtype, "feature_map", [&]<class T>() { feature_map_forward_cpu<T>(args); });
        },
    .cuda = WEFT_ON_CUDA(feature_map_forward_cuda)};
constexpr Dispatch<FeatureMapBackward> kBackward{
    .op = "feature_map backward",
    .cpu =
        [](const FeatureMapBackward& args, const Launch&) {
          dispatch_real(args.dtype, "feature_map", [&]<class T>() { feature_map_backward_cpu<T>(args); });
        },
    .cuda = WEFT_ON_CUDA(feature_map_backward_cuda)};

struct FeatureMapSaved {
  Tensor x, y;
  FeatureMap map;

  void backward(Backward& pass) const {
    const GradTarget dx = pass.target(0);
    kBackward.run(pass, {.dtype = x.dtype(),
                         .map = map,
                         .R = x.shape().rows(),
                         .D = x.shape().back(),
                         .x = x.raw(),
                         .y = y.raw(),
                         .dy = pass.grad(0).raw(),
                         .dx = dx.raw(),
                         .write_dx = dx.write});
  }
};

}  // namespace

std::int64_t feature_width(FeatureMap map, std::int64_t D) {
  switch (map) {
    case FeatureMap::taylor:
      return 1 + D + D * (D + 1) / 2;
    case FeatureMap::softmax_pair:
      return 2 * D;
    case FeatureMap::identity:
    case FeatureMap::elu_plus_one:
      break;
  }
  return D;
}

Var feature_map(Tape& tape, FeatureMap map, const Var& x) {
  if (map == FeatureMap::identity) return x;
  WEFT_CHECK(x.shape().rank() >= 1 && x.shape().back() > 0, "feature_map: x is {}", x.shape().str());
  const std::int64_t D = x.shape().back();
  Shape shape = x.shape();
  shape.set(shape.rank() - 1, feature_width(map, D));
  const Tensor y = tape.empty(shape, x.dtype());
  tape.compute_cheaply({x.value}, {y}, [map](const Tape& on, std::span<const Tensor> in, std::span<const Tensor> out) {
    kForward.run(on, {.dtype = in[0].dtype(),
                      .map = map,
                      .R = in[0].shape().rows(),
                      .D = in[0].shape().back(),
                      .x = in[0].raw(),
                      .y = out[0].raw()});
  });
  return tape.record("feature_map", {x}, y, [&] { return FeatureMapSaved{x.value, y, map}; });
}

}  // namespace weft
