#include "checkpoints/checkpoint_state.h"

#include <algorithm>
#include <bit>
#include <charconv>

#include "autograd/check.h"

namespace weft {

namespace {

template <class Bits>
Bits parse_bits(std::string_view text, std::string_view source) {
  Bits bits = 0;
  constexpr std::size_t kDigits = 2 * sizeof(Bits);
  if (text.size() == kDigits + 2 && text.starts_with("0x")) {
    const auto [end, error] = std::from_chars(text.data() + 2, text.data() + text.size(), bits, 16);
    if (error == std::errc() && end == text.data() + text.size()) return bits;
  }
  storage_error("{}: expected 0x and {} hexadecimal digits, found \"{}\"", source, kDigits, text);
}

}  // namespace

bool is_slice_kind(std::string_view kind) {
  return std::find(std::begin(kSliceKinds), std::end(kSliceKinds), kind) != std::end(kSliceKinds);
}

std::string to_bits(double value) {
  return fmt::format("0x{:016x}", std::bit_cast<std::uint64_t>(value));
}
std::string to_bits(float value) {
  return fmt::format("0x{:08x}", std::bit_cast<std::uint32_t>(value));
}

double double_from_bits(std::string_view text, std::string_view source) {
  return std::bit_cast<double>(parse_bits<std::uint64_t>(text, source));
}

float float_from_bits(std::string_view text, std::string_view source) {
  return std::bit_cast<float>(parse_bits<std::uint32_t>(text, source));
}

}  // namespace weft
