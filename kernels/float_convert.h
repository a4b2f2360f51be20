#ifndef FLASHSVD_KERNELS_FLOAT_CONVERT_H_
#define FLASHSVD_KERNELS_FLOAT_CONVERT_H_

#include <bit>
#include <cstdint>

#include "kernels/tensor.h"

namespace flashsvd {

// IEEE binary16 and bfloat16 to and from float32. Widening is exact. Narrowing rounds to nearest,
// ties to even, and overflows to infinity. A NaN stays a NaN with its sign and the upper bits of
// its payload, made quiet. Free of branches, so that a loop over one of them vectorises, and of
// float32 subnormals, so that the result does not depend on flush-to-zero mode.

namespace internal {

// condition ? a : b by masks. With floating-point arithmetic in one arm, the compiler would make a
// branch of the operator, and no vector code.
inline uint32_t Select(bool condition, uint32_t a, uint32_t b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (a & mask) | (b & ~mask);
}

}  // namespace internal

inline float FloatFromBf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

inline uint16_t Bf16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

inline float FloatFromF16(uint16_t bits) {
  const uint32_t magnitude = uint32_t{bits & 0x7fffu} << 13;
  const uint32_t exponent = magnitude & (0x1fu << 23);
  const uint32_t normal = magnitude + ((127u - 15u) << 23);
  const uint32_t infinite_or_nan = magnitude + ((255u - 31u) << 23);
  // A subnormal m 2^-24 is (2^-14 + m 2^-24) - 2^-14, both of them normal in float32.
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude + (113u << 23)) - 0x1p-14f);
  uint32_t result = internal::Select(exponent == (0x1fu << 23), infinite_or_nan, normal);
  result = internal::Select(exponent == 0, subnormal, result);
  // Signalling NaNs become quiet, as conversion instructions make them.
  result |= internal::Select(magnitude > (0x1fu << 23), 0x400000, 0);
  return std::bit_cast<float>(result | (uint32_t{bits & 0x8000u} << 16));
}

inline uint16_t F16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  // Rebias, then add half a unit in the last place less one, plus one when the kept part is odd.
  // 65520 and above carry into the exponent of infinity.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14: adding 0.5 leaves multiples of 2^-24 in the mantissa, rounded by the addition.
  const uint32_t small = internal::Select(magnitude < (113u << 23), magnitude, 0);
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(std::bit_cast<float>(small) + 0.5f) - std::bit_cast<uint32_t>(0.5f);
  const uint32_t nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  uint32_t result = internal::Select(magnitude < (113u << 23), subnormal, normal);
  result = internal::Select(magnitude >= (143u << 23), 0x7c00, result);
  result = internal::Select(magnitude > 0x7f800000, nan, result);
  return static_cast<uint16_t>(result | sign);
}

// By dtype, kF16 or kBF16.
inline uint16_t NarrowFloat(DType dtype, float value) {
  return dtype == DType::kF16 ? F16FromFloat(value) : Bf16FromFloat(value);
}
inline float WidenFloat(DType dtype, uint16_t bits) {
  return dtype == DType::kF16 ? FloatFromF16(bits) : FloatFromBf16(bits);
}
// What `dtype` keeps of a value.
inline float RoundTo(DType dtype, float value) {
  return dtype == DType::kF32 ? value : WidenFloat(dtype, NarrowFloat(dtype, value));
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_FLOAT_CONVERT_H_
