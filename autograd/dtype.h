// Element types of tensors, and the one switch from a runtime type to a compile-time one.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "autograd/check.h"

namespace weft {

enum class DType : std::uint8_t { f64, f32, bf16, i32, i64 };

// bfloat16 storage; arithmetic happens in fp32. Conversion rounds to nearest, ties to even, and keeps NaN a NaN.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;
  explicit bfloat16(float value) {
    const auto u = std::bit_cast<std::uint32_t>(value);
    const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<std::uint16_t>(is_nan ? (u >> 16) | 0x40u : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  explicit bfloat16(double value) : bfloat16(round_to_odd(value)) {}
  explicit operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

 private:
  // Truncates, and marks an inexact result in the last bit, so that rounding the float rounds the double only once.
  static float round_to_odd(double value) {
    const auto nearest = static_cast<float>(value);
    const auto back = static_cast<double>(nearest);
    if (back == value || value != value) return nearest;
    const bool away_from_zero = value < 0.0 ? back < value : back > value;
    return std::bit_cast<float>((std::bit_cast<std::uint32_t>(nearest) - (away_from_zero ? 1u : 0u)) | 1u);
  }
};

// What goes with a tensor of `dtype`: statistics, log decays, recurrent states, vector parameters and the gradients of
// all parameters. bf16 is for storage of activations and weights alone.
constexpr DType accumulator_dtype(DType dtype) {
  return dtype == DType::bf16 ? DType::f32 : dtype;
}

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<bfloat16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<std::int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<std::int64_t> {
  static constexpr DType value = DType::i64;
};
template <class T>
inline constexpr DType dtype_of = DTypeOf<T>::value;

constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
      return 2;
  }
  return 0;
}

constexpr std::string_view name_of(DType dtype) {
  constexpr std::string_view names[] = {"f64", "f32", "bf16", "i32", "i64"};
  return names[static_cast<int>(dtype)];
}

constexpr bool is_floating(DType dtype) {
  return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::bf16;
}

// Calls f.template operator()<T>() with T = float or double; the element types of CPU arithmetic.
template <class F>
decltype(auto) dispatch_real(DType dtype, const char* op, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f.template operator()<float>();
    case DType::f64:
      return f.template operator()<double>();
    default:
      fail(ExitCode::internal, "{}: expected f32 or f64 on the CPU, got {}", op, name_of(dtype));
  }
}

// The same with T = double, float or bfloat16: every type that a floating tensor is stored in.
template <class F>
decltype(auto) dispatch_floating(DType dtype, const char* op, F&& f) {
  if (dtype == DType::bf16) return f.template operator()<bfloat16>();
  return dispatch_real(dtype, op, std::forward<F>(f));
}

}  // namespace weft
