// log, exp and cos of fp64 arguments from weft's own series: the same bits with every C library and on GPUs, so that
// initial weights are reproducible across machines. Accurate to a few 1e-16; not for inner loops.
//
// Only IEEE basic operations, frexp/ldexp and explicit fma are used: each is exact or correctly rounded everywhere.
#pragma once

#include <cmath>

#include "autograd/host_device.h"

namespace weft {

// x > 0
WEFT_HOST_DEVICE inline double portable_log(double x) {
  constexpr double kLn2 = 0.69314718055994530942;
  int exponent = 0;
  double m = std::frexp(x, &exponent);  // in [0.5, 1)
  if (m < 0.70710678118654752440) {
    m *= 2.0;
    --exponent;
  }
  // log m = 2 atanh(s), s = (m-1)/(m+1), |s| < 0.172: the series to s^21 is below 1e-17.
  const double s = (m - 1.0) / (m + 1.0);
  const double u = s * s;
  double sum = 0.0;
  for (int k = 21; k >= 1; k -= 2) sum = std::fma(sum, u, 1.0 / k);
  return std::fma(static_cast<double>(exponent), kLn2, 2.0 * s * sum);
}

// |x| < 700
WEFT_HOST_DEVICE inline double portable_exp(double x) {
  constexpr double kLn2High = 6.93147180369123816490e-01;
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  const double n = std::nearbyint(x / 0.69314718055994530942);
  const double r = std::fma(-n, kLn2Low, std::fma(-n, kLn2High, x));
  double sum = 1.0;
  for (int k = 16; k >= 1; --k) sum = std::fma(sum, r / k, 1.0);
  return std::ldexp(sum, static_cast<int>(n));
}

// cos(2 pi turns), 0 <= turns < 1
WEFT_HOST_DEVICE inline double portable_cos_2pi(double turns) {
  // Fold into an eighth of a turn, where both series converge fast.
  double t = turns > 0.5 ? 1.0 - turns : turns;
  const double sign = t > 0.25 ? -1.0 : 1.0;
  if (t > 0.25) t = 0.5 - t;
  constexpr double kTwoPi = 6.28318530717958647693;
  if (t <= 0.125) {
    const double a = t * kTwoPi;
    const double u = a * a;
    double sum = 1.0;
    for (int k = 18; k >= 2; k -= 2) sum = std::fma(-sum, u / (k * (k - 1)), 1.0);
    return sign * sum;
  }
  const double a = (0.25 - t) * kTwoPi;
  const double u = a * a;
  double sum = 1.0;
  for (int k = 19; k >= 3; k -= 2) sum = std::fma(-sum, u / (k * (k - 1)), 1.0);
  return sign * a * sum;
}

}  // namespace weft
