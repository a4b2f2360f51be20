#ifndef FLASHSVD_KERNELS_BFLOAT16_H_
#define FLASHSVD_KERNELS_BFLOAT16_H_

#include <bit>
#include <cstdint>

namespace flashsvd {

// The upper half of a float32: 8 exponent bits, 7 of mantissa.
using BFloat16Bits = uint16_t;

// Round to nearest, ties to even; a NaN stays a NaN.
constexpr BFloat16Bits ToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<BFloat16Bits>((bits >> 16) | 0x40u);
  }
  return static_cast<BFloat16Bits>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

constexpr float FromBFloat16(BFloat16Bits bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

constexpr float RoundToBFloat16(float value) { return FromBFloat16(ToBFloat16(value)); }

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_BFLOAT16_H_
