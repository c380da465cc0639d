#include "checkpoints/safetensors/dtype.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "autograd/check.h"
#include "autograd/dtype.h"
#include "checkpoints/float16.h"

namespace weft {

namespace {

static_assert(std::endian::native == std::endian::little, "the bytes of files are used as they are");

struct Description {
  std::string_view name;
  int bits;
};
// In the order of SafetensorsDType.
constexpr std::array<Description, 22> kDescriptions = {{
    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"BOOL", 8},        {"U8", 8},          {"I8", 8},
    {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"I64", 64},    {"U64", 64},    {"F64", 64},    {"C64", 64},
}};
static_assert(kDescriptions[static_cast<std::size_t>(SafetensorsDType::c64)].name == "C64");

const Description& describe(SafetensorsDType dtype) {
  return kDescriptions[static_cast<std::size_t>(dtype)];
}

template <class T>
T load(std::span<const std::byte> stored, std::size_t index) {
  T value;
  std::memcpy(&value, stored.data() + index * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

std::string_view name_of(SafetensorsDType dtype) {
  return describe(dtype).name;
}

int bits_of(SafetensorsDType dtype) {
  return describe(dtype).bits;
}

std::optional<SafetensorsDType> safetensors_dtype(std::string_view name) {
  for (std::size_t i = 0; i < kDescriptions.size(); ++i) {
    if (kDescriptions[i].name == name) return static_cast<SafetensorsDType>(i);
  }
  return std::nullopt;
}

bool holds_reals(SafetensorsDType dtype) {
  return dtype == SafetensorsDType::f64 || dtype == SafetensorsDType::f32 || dtype == SafetensorsDType::f16 ||
         dtype == SafetensorsDType::bf16;
}

std::optional<std::size_t> floats_from_stored(SafetensorsDType dtype, std::span<const std::byte> stored,
                                              std::span<float> values) {
  WEFT_CHECK(holds_reals(dtype) && stored.size() * 8 == values.size() * static_cast<std::size_t>(bits_of(dtype)),
             "{} bytes of {} for {} floats", stored.size(), name_of(dtype), values.size());
  if (values.empty()) return std::nullopt;
  switch (dtype) {
    case SafetensorsDType::f32:
      std::memcpy(values.data(), stored.data(), stored.size());
      break;
    case SafetensorsDType::bf16:
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = std::bit_cast<float>(std::uint32_t{load<std::uint16_t>(stored, i)} << 16);
      }
      break;
    case SafetensorsDType::f16:
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = float16_to_float(load<std::uint16_t>(stored, i));
      break;
    default:
      for (std::size_t i = 0; i < values.size(); ++i) {
        const auto wide = load<double>(stored, i);
        values[i] = static_cast<float>(wide);
        if (std::isinf(values[i]) && std::isfinite(wide)) return i;
      }
  }
  return std::nullopt;
}

std::optional<std::size_t> stored_from_floats(SafetensorsDType dtype, std::span<const float> values,
                                              std::span<std::byte> stored) {
  WEFT_CHECK(holds_reals(dtype) && stored.size() * 8 == values.size() * static_cast<std::size_t>(bits_of(dtype)),
             "{} bytes of {} for {} floats", stored.size(), name_of(dtype), values.size());
  if (values.empty()) return std::nullopt;
  const auto halves = [&](auto narrow, std::uint16_t infinity) -> std::optional<std::size_t> {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::uint16_t bits = narrow(values[i]);
      if ((bits & 0x7fffu) == infinity && std::isfinite(values[i])) return i;
      std::memcpy(stored.data() + 2 * i, &bits, 2);
    }
    return std::nullopt;
  };
  switch (dtype) {
    case SafetensorsDType::f32:
      std::memcpy(stored.data(), values.data(), stored.size());
      return std::nullopt;
    case SafetensorsDType::bf16:
      return halves([](float value) { return bfloat16(value).bits; }, 0x7f80);
    case SafetensorsDType::f16:
      return halves([](float value) { return float_to_float16(value); }, 0x7c00);
    default:
      for (std::size_t i = 0; i < values.size(); ++i) {
        const auto wide = static_cast<double>(values[i]);
        std::memcpy(stored.data() + 8 * i, &wide, 8);
      }
      return std::nullopt;
  }
}

}  // namespace weft
