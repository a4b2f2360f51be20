#include "kernels/float_convert.h"

#include <bit>
#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace flashsvd {
namespace {

struct Format {
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);
  uint16_t infinity;
  uint16_t quiet_bit;
};

class FloatConvertTest : public ::testing::TestWithParam<Format> {};

TEST_P(FloatConvertTest, KeepsEveryNarrowValue) {
  const Format& format = GetParam();
  for (uint32_t i = 0; i <= 0xffff; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const float wide = format.widen(bits);
    if ((bits & 0x7fff) > format.infinity) {
      EXPECT_TRUE(std::isnan(wide)) << bits;
      EXPECT_EQ(format.narrow(wide), bits | format.quiet_bit) << bits;
    } else {
      EXPECT_EQ(format.narrow(wide), bits) << bits;
    }
  }
}

TEST_P(FloatConvertTest, WidensInOrder) {
  const Format& format = GetParam();
  for (uint16_t bits = 0; bits < format.infinity; ++bits) {
    ASSERT_LT(format.widen(bits), format.widen(static_cast<uint16_t>(bits + 1))) << bits;
    ASSERT_EQ(format.widen(static_cast<uint16_t>(bits | 0x8000)), -format.widen(bits)) << bits;
  }
  EXPECT_TRUE(std::isinf(format.widen(format.infinity)));
}

// Between two neighbours: just below the middle goes down, just above goes up, the middle itself to
// the even one. The middle is exact in float32: it needs one bit more than the narrow format.
TEST_P(FloatConvertTest, RoundsToNearestEven) {
  const Format& format = GetParam();
  const float up = std::numeric_limits<float>::infinity();
  for (uint16_t low = 0; low + 1 < format.infinity; ++low) {
    const auto high = static_cast<uint16_t>(low + 1);
    const auto middle =
        static_cast<float>((double{format.widen(low)} + double{format.widen(high)}) / 2);
    const auto negative = static_cast<uint16_t>(0x8000);
    ASSERT_EQ(format.narrow(std::nextafter(middle, 0.0f)), low) << low;
    ASSERT_EQ(format.narrow(middle), low % 2 == 0 ? low : high) << low;
    ASSERT_EQ(format.narrow(std::nextafter(middle, up)), high) << low;
    ASSERT_EQ(format.narrow(-std::nextafter(middle, up)), high | negative) << low;
  }
}

TEST_P(FloatConvertTest, OverflowsToInfinity) {
  const Format& format = GetParam();
  // Half a step beyond the largest finite value, where rounding reaches the next power of two.
  const auto largest = static_cast<uint16_t>(format.infinity - 1);
  const double step =
      double{format.widen(largest)} - double{format.widen(static_cast<uint16_t>(largest - 1))};
  const auto limit = static_cast<float>(double{format.widen(largest)} + step / 2);
  EXPECT_EQ(format.narrow(std::nextafter(limit, 0.0f)), largest);
  EXPECT_EQ(format.narrow(limit), format.infinity);
  EXPECT_EQ(format.narrow(std::numeric_limits<float>::max()), format.infinity);
  EXPECT_EQ(format.narrow(-std::numeric_limits<float>::infinity()), format.infinity | 0x8000);
}

TEST_P(FloatConvertTest, KeepsNanWhosePayloadIsCutOff) {
  const Format& format = GetParam();
  for (uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu}) {
    const uint16_t narrow = format.narrow(std::bit_cast<float>(bits));
    EXPECT_GT(narrow & 0x7fff, format.infinity) << bits;
    EXPECT_EQ(narrow >> 15, bits >> 31) << bits;
  }
}

INSTANTIATE_TEST_SUITE_P(F16, FloatConvertTest,
                         ::testing::Values(Format{FloatFromF16, F16FromFloat, 0x7c00, 0x200}));
INSTANTIATE_TEST_SUITE_P(Bf16, FloatConvertTest,
                         ::testing::Values(Format{FloatFromBf16, Bf16FromFloat, 0x7f80, 0x40}));

}  // namespace
}  // namespace flashsvd
