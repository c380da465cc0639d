// Elementary functions written so that loops over them vectorise. float: polynomials, within 2 ulp; double: the C
// library.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace weft {

// e^x. Exactly 0 below -87.3 (so a score of -infinity contributes nothing), +infinity above 88.7, NaN for NaN.
[[gnu::always_inline]] inline float fast_exp(float x) {  // a call would keep loops scalar
  constexpr float kLog2e = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  // Adding 1.5 * 2^23 rounds to an integer, which is then also in the low bits of the sum.
  constexpr float kRound = 12582912.0f;
  const float clamped = x < -87.3f ? -87.3f : (x > 88.7f ? 88.7f : x);
  const float shifted = clamped * kLog2e + kRound;
  const float n = shifted - kRound;
  float r = clamped - n * kLn2High;
  r -= n * kLn2Low;
  // Minimax polynomial of e^r on [-ln2/2, ln2/2].
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // n goes straight into the exponent of p: 2^n alone would overflow for x > 88.4, where e^x does not.
  const float scaled =
      std::bit_cast<float>(std::bit_cast<std::uint32_t>(p) + (std::bit_cast<std::uint32_t>(shifted) << 23));
  return x < -87.3f ? 0.0f : (x > 88.7f ? INFINITY : scaled);
}
inline double fast_exp(double x) {
  return std::exp(x);
}

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), the latter by log(1 + u) = 2 atanh(u / (2 + u)).
inline float fast_softplus(float x) {
  const float u = fast_exp(-__builtin_fabsf(x));
  const float s = u / (2.0f + u);  // at most 1/3, where the series to s^15 is below 1e-9
  const float v = s * s;
  float sum = 1.0f / 15.0f;
  sum = sum * v + 1.0f / 13.0f;
  sum = sum * v + 1.0f / 11.0f;
  sum = sum * v + 1.0f / 9.0f;
  sum = sum * v + 1.0f / 7.0f;
  sum = sum * v + 1.0f / 5.0f;
  sum = sum * v + 1.0f / 3.0f;
  sum = sum * v + 1.0f;
  return (x > 0.0f ? x : 0.0f) + 2.0f * s * sum;
}
inline double fast_softplus(double x) {
  return (x > 0.0 ? x : 0.0) + std::log1p(std::exp(-std::abs(x)));
}

// sigma(x) = 1 / (1 + e^-x).
template <class T>
inline T sigmoid(T x) {
  return T(1) / (T(1) + fast_exp(-x));
}

// tanh through e^{2|x|}; near zero, where that cancels, its odd series. Within 5e-7 relative.
inline float fast_tanh(float x) {
  const float a = __builtin_fabsf(x);
  const float u = a * a;
  const float series = a + a * u * (-0.333333333f + u * (0.133333333f + u * (-0.0539682540f + u * 0.0218694885f)));
  const float ratio = 1.0f - 2.0f / (fast_exp(2.0f * a) + 1.0f);
  return __builtin_copysignf(a < 0.3f ? series : ratio, x);
}
inline double fast_tanh(double x) {
  return std::tanh(x);
}

}  // namespace weft
