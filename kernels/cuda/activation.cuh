#ifndef FLASHSVD_KERNELS_CUDA_ACTIVATION_CUH_
#define FLASHSVD_KERNELS_CUDA_ACTIVATION_CUH_

#include "kernels/backend.h"

namespace flashsvd {

// 2^x on the special-function unit; relative error 2^-22, results below 2^-126 are zero.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float Reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The activation of one pre-activation, in float32.
template <Activation kActivation>
__device__ __forceinline__ float Activate(float x) {
  constexpr float kLog2E = 1.4426950408889634f;
  if constexpr (kActivation == Activation::kGelu) {
    return 0.5f * x * (1 + erff(x * 0.7071067811865476f));
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    // x (1 + tanh u) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
    const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return x * Reciprocal(1 + Exp2(-2 * kLog2E * u));
  } else if constexpr (kActivation == Activation::kRelu) {
    return fmaxf(x, 0.0f);
  } else if constexpr (kActivation == Activation::kSilu) {
    return x * Reciprocal(1 + Exp2(-kLog2E * x));
  } else {
    return x;
  }
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ACTIVATION_CUH_
