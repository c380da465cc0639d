#include "autograd/dtype.h"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>

namespace weft {
namespace {

float from_bits(std::uint32_t bits) {
  return std::bit_cast<float>(bits);
}

TEST(Bfloat16, RoundsToNearestTiesToEven) {
  EXPECT_EQ(bfloat16(1.0f).bits, 0x3f80);
  EXPECT_EQ(bfloat16(from_bits(0x3f808000)).bits, 0x3f80);  // tie, 0x3f80 is even
  EXPECT_EQ(bfloat16(from_bits(0x3f818000)).bits, 0x3f82);  // tie, 0x3f81 is odd
  EXPECT_EQ(bfloat16(from_bits(0x3f808001)).bits, 0x3f81);
  EXPECT_EQ(bfloat16(from_bits(0x3f807fff)).bits, 0x3f80);
  EXPECT_EQ(bfloat16(from_bits(0xbf818000)).bits, 0xbf82);
  EXPECT_EQ(bfloat16(-0.0f).bits, 0x8000);
  EXPECT_EQ(bfloat16(from_bits(0x3fffffff)).bits, 0x4000);  // the carry reaches the exponent
}

TEST(Bfloat16, KeepsNaNInfinityAndSubnormals) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(bfloat16(kInfinity).bits, 0x7f80);
  EXPECT_EQ(bfloat16(-kInfinity).bits, 0xff80);
  EXPECT_EQ(bfloat16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(bfloat16(from_bits(0x7f7f7fff)).bits, 0x7f7f);
  // NaNs whose payload would round away, or carry into infinity or the sign.
  for (const std::uint32_t nan : {0x7fc00000u, 0x7f800001u, 0x7fffffffu, 0xffffffffu, 0xff800001u}) {
    const bfloat16 rounded(from_bits(nan));
    EXPECT_TRUE(std::isnan(static_cast<float>(rounded))) << nan;
    EXPECT_EQ(rounded.bits >> 15, nan >> 31) << nan;
  }
  EXPECT_EQ(bfloat16(from_bits(0x00010000)).bits, 0x0001);
  EXPECT_EQ(bfloat16(from_bits(0x00008000)).bits, 0x0000);  // tie to even: zero
  EXPECT_EQ(bfloat16(from_bits(0x00018000)).bits, 0x0002);
  EXPECT_EQ(bfloat16(from_bits(0x007fffff)).bits, 0x0080);  // the largest subnormal rounds to the smallest normal
}

TEST(Bfloat16, EveryValueSurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    bfloat16 value;
    value.bits = static_cast<std::uint16_t>(bits);
    const auto wide = static_cast<float>(value);
    if (std::isnan(wide)) {
      ASSERT_TRUE(std::isnan(static_cast<float>(bfloat16(wide))));
    } else {
      ASSERT_EQ(bfloat16(wide).bits, bits);
      ASSERT_EQ(bfloat16(static_cast<double>(wide)).bits, bits);
    }
  }
}

// A double just beside a tie must not be rounded to the tie (in fp32) first.
TEST(Bfloat16, RoundsDoublesOnce) {
  EXPECT_EQ(bfloat16(1.0 + 0x1p-8).bits, 0x3f80);
  EXPECT_EQ(bfloat16(1.0 + 0x1p-8 + 0x1p-40).bits, 0x3f81);
  EXPECT_EQ(bfloat16(-1.0 - 0x1p-8 - 0x1p-40).bits, 0xbf81);
  EXPECT_EQ(bfloat16(1.0 + 3 * 0x1p-8 - 0x1p-40).bits, 0x3f81);
  EXPECT_EQ(bfloat16(1e300).bits, 0x7f80);
  EXPECT_EQ(bfloat16(-1e300).bits, 0xff80);
  EXPECT_EQ(bfloat16(1e-300).bits, 0x0000);
  EXPECT_EQ(bfloat16(-1e-300).bits, 0x8000);
  EXPECT_TRUE(std::isnan(static_cast<float>(bfloat16(std::numeric_limits<double>::quiet_NaN()))));
  EXPECT_EQ(bfloat16(std::numeric_limits<double>::infinity()).bits, 0x7f80);
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::f64), 8u);
  EXPECT_EQ(size_of(DType::f32), 4u);
  EXPECT_EQ(size_of(DType::bf16), 2u);
  EXPECT_EQ(size_of(DType::i32), 4u);
  EXPECT_EQ(size_of(DType::i64), 8u);
  EXPECT_EQ(name_of(DType::bf16), "bf16");
  EXPECT_EQ(name_of(DType::i64), "i64");
  EXPECT_FALSE(is_floating(DType::i32));
}

TEST(DType, RealDispatchRefusesOthers) {
  for (const DType dtype : {DType::bf16, DType::i32, DType::i64}) {
    try {
      dispatch_real(dtype, "an op", []<class T>() {});
      FAIL() << name_of(dtype);
    } catch (const Error& e) {
      EXPECT_EQ(std::string(e.what()), fmt::format("an op: expected f32 or f64 on the CPU, got {}", name_of(dtype)));
    }
  }
}

}  // namespace
}  // namespace weft
