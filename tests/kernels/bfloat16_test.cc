#include "kernels/bfloat16.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace flashsvd {
namespace {

TEST(BFloat16Test, EveryBFloat16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = FromBFloat16(static_cast<BFloat16Bits>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(RoundToBFloat16(value))) << bits;
    } else {
      EXPECT_EQ(ToBFloat16(value), bits);
    }
  }
}

TEST(BFloat16Test, RoundsToNearestAndTiesToEven) {
  EXPECT_EQ(RoundToBFloat16(1.0f + 0x1p-8f), 1.0f);             // tie, even below
  EXPECT_EQ(RoundToBFloat16(1.0f + 3 * 0x1p-8f), 1 + 0x1p-6f);  // tie, even above
  EXPECT_EQ(RoundToBFloat16(1.0f + 0x1p-8f + 0x1p-20f), 1 + 0x1p-7f);
  EXPECT_EQ(RoundToBFloat16(-1.0f - 0x1p-8f), -1.0f);
}

TEST(BFloat16Test, OverflowRoundsToInfinityAndNanStaysNan) {
  EXPECT_EQ(RoundToBFloat16(std::numeric_limits<float>::max()),
            std::numeric_limits<float>::infinity());
  // Its payload lies wholly in the bits that are cut off.
  EXPECT_TRUE(std::isnan(RoundToBFloat16(std::bit_cast<float>(0x7f800001u))));
}

}  // namespace
}  // namespace flashsvd
