#include "modules/families/gated_linear/denominators.h"

#include "modules/families/gated_linear/denominators_cpu.h"

namespace weft {
namespace {

constexpr Dispatch<AppendOnesForward> kAppend{"append_ones forward",
                                              [](const AppendOnesForward& args, const Launch&) {
                                                dispatch_real(args.dtype, "append_ones",
                                                              [&]<class T>() { append_ones_forward_cpu<T>(args); });
                                              },
                                              WEFT_ON_CUDA(append_ones_forward_cuda)};
constexpr Dispatch<AppendOnesBackward> kAppendBackward{
    "append_ones backward",
    [](const AppendOnesBackward& args, const Launch&) {
      dispatch_real(args.dtype, "append_ones", [&]<class T>() { append_ones_backward_cpu<T>(args); });
    },
    WEFT_ON_CUDA(append_ones_backward_cuda)};
constexpr Dispatch<DivideForward> kDivide{"divide_by_denominator forward",
                                          [](const DivideForward& args, const Launch&) {
                                            dispatch_real(args.dtype, "divide_by_denominator",
                                                          [&]<class T>() { divide_forward_cpu<T>(args); });
                                          },
                                          WEFT_ON_CUDA(divide_forward_cuda)};
constexpr Dispatch<DivideBackward> kDivideBackward{"divide_by_denominator backward",
                                                   [](const DivideBackward& args, const Launch&) {
                                                     dispatch_real(args.dtype, "divide_by_denominator",
                                                                   [&]<class T>() { divide_backward_cpu<T>(args); });
                                                   },
                                                   WEFT_ON_CUDA(divide_backward_cuda)};
constexpr Dispatch<MagnitudeAwareForward> kMagnitudeAware{
    "magnitude_aware forward",
    [](const MagnitudeAwareForward& args, const Launch&) {
      dispatch_real(args.dtype, "magnitude_aware", [&]<class T>() { magnitude_aware_forward_cpu<T>(args); });
    },
    WEFT_ON_CUDA(magnitude_aware_forward_cuda)};
constexpr Dispatch<MagnitudeAwareBackward> kMagnitudeAwareBackward{
    "magnitude_aware backward",
    [](const MagnitudeAwareBackward& args, const Launch&) {
      dispatch_real(args.dtype, "magnitude_aware", [&]<class T>() { magnitude_aware_backward_cpu<T>(args); });
    },
    WEFT_ON_CUDA(magnitude_aware_backward_cuda)};

// The shape of x with `difference` more columns.
Shape widened(const Shape& x, std::int64_t difference) {
  Shape shape = x;
  shape.set(shape.rank() - 1, x.back() + difference);
  return shape;
}

struct AppendOnesSaved {
  void backward(Backward& pass) const {
    const Tensor dy = pass.grad(0);
    const GradTarget dv = pass.target(0);
    kAppendBackward({.dtype = dy.dtype(),
                     .R = dy.shape().rows(),
                     .D = dy.shape().back() - 1,
                     .dy = dy.raw(),
                     .dv = dv.raw(),
                     .write_dv = dv.write},
                    pass.launch());
  }
};

struct DivideSaved {
  Tensor sums;

  void backward(Backward& pass) const {
    const GradTarget dsums = pass.target(0);
    kDivideBackward({.dtype = sums.dtype(),
                     .R = sums.shape().rows(),
                     .D = sums.shape().back() - 1,
                     .sums = sums.raw(),
                     .d_o = pass.grad(0).raw(),
                     .dsums = dsums.raw(),
                     .write_dsums = dsums.write},
                    pass.launch());
  }
};

struct MagnitudeAwareSaved {
  Tensor sums, totals;
  double share;

  void backward(Backward& pass) const {
    const GradTarget dsums = pass.target(0), dtotals = pass.target(1);
    kMagnitudeAwareBackward({.dtype = sums.dtype(),
                             .R = sums.shape().rows(),
                             .D = sums.shape().back() - 1,
                             .share = share,
                             .sums = sums.raw(),
                             .totals = totals.raw(),
                             .d_o = pass.grad(0).raw(),
                             .dsums = dsums.raw(),
                             .write_dsums = dsums.write,
                             .dtotals = dtotals.raw(),
                             .write_dtotals = dtotals.write},
                            pass.launch());
  }
};

}  // namespace

Var append_ones(Tape& tape, const Var& v) {
  WEFT_CHECK(v.shape().rank() >= 1, "append_ones: v is {}", v.shape().str());
  const Tensor y = tape.empty(widened(v.shape(), 1), v.dtype());
  kAppend({.dtype = v.dtype(), .R = v.shape().rows(), .D = v.shape().back(), .v = v.value.raw(), .y = y.raw()},
          tape.launch());
  return tape.record("append_ones", {v}, y, [] { return AppendOnesSaved{}; });
}

Var divide_by_denominator(Tape& tape, const Var& sums) {
  WEFT_CHECK(sums.shape().rank() >= 1 && sums.shape().back() > 1, "divide_by_denominator: sums are {}",
             sums.shape().str());
  const Tensor o = tape.empty(widened(sums.shape(), -1), sums.dtype());
  kDivide(
      {.dtype = sums.dtype(), .R = sums.shape().rows(), .D = o.shape().back(), .sums = sums.value.raw(), .o = o.raw()},
      tape.launch());
  return tape.record("divide_by_denominator", {sums}, o, [&] { return DivideSaved{sums.value}; });
}

Var magnitude_aware(Tape& tape, const Var& sums, const Var& totals, double share) {
  WEFT_CHECK(sums.shape().rank() >= 1 && sums.shape().back() > 1 && totals.shape() == sums.shape() &&
                 totals.dtype() == sums.dtype(),
             "magnitude_aware: sums {} {}, totals {} {}", sums.shape().str(), name_of(sums.dtype()),
             totals.shape().str(), name_of(totals.dtype()));
  const Tensor o = tape.empty(widened(sums.shape(), -1), sums.dtype());
  kMagnitudeAware({.dtype = sums.dtype(),
                   .R = sums.shape().rows(),
                   .D = o.shape().back(),
                   .share = share,
                   .sums = sums.value.raw(),
                   .totals = totals.value.raw(),
                   .o = o.raw()},
                  tape.launch());
  return tape.record("magnitude_aware", {sums, totals}, o, [&] {
    return MagnitudeAwareSaved{sums.value, totals.value, share};
  });
}

}  // namespace weft
