#ifndef FLASHSVD_KERNELS_CUDA_GELU_CUH_
#define FLASHSVD_KERNELS_CUDA_GELU_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "kernels/cuda/activation.cuh"

namespace flashsvd {

// x/2 (1 + erf(x / sqrt 2)) for a result that is about to be rounded to T, in half the
// instructions of erff:
//   gelu(x) = max(x, 0) - |x| Phi(-|x|)   with   Phi(-a) ~ 2^q(a)
// The coefficients minimise max over a >= 0 of a |2^q(a) - Phi(-a)|, the absolute error of the
// result (iteratively reweighted Gauss-Newton over 6001 points of [0, 6]). Odd degrees, whose
// leading coefficient is negative, so that 2^q vanishes for all larger a. In float32:
//   bf16: degree 3, error 5.5e-5    (half a unit of bf16 is larger from |result| = 0.03 on)
//   fp16: degree 5, error 6.3e-7
template <class T>
__device__ __forceinline__ float GeluRoundedTo(float x) {
  const float a = fabsf(x);
  float q;
  if constexpr (std::is_same_v<T, __half>) {
    q = fmaf(-0.00047330931f, a, 0.0070845573f);
    q = fmaf(q, a, -0.051827382f);
    q = fmaf(q, a, -0.45999244f);
    q = fmaf(q, a, -1.1507878f);
    q = fmaf(q, a, -1.0000377f);
  } else {
    q = fmaf(-0.024885632f, a, -0.49882001f);
    q = fmaf(q, a, -1.1292460f);
    q = fmaf(q, a, -1.0035317f);
  }
  return fmaf(-a, Exp2(q), fmaxf(x, 0.0f));
}

// Twice that, in fewer instructions, all of them at full rate: for accumulators that are halved in
// the end. Loses the last factor of two of T's range.
//   2 gelu(x) = x + |x| (1 - 2 Phi(-|x|))
__device__ __forceinline__ float TwiceGeluRoundedToBf16(float x) {
  const float a = fabsf(x);
  float q = fmaf(-0.024885632f, a, -0.49882001f);
  q = fmaf(q, a, -1.1292460f);
  q = fmaf(q, a, -0.0035316944f);
  return fmaf(a, 1.0f - Exp2(q), x);
}

// The same of x / kTwiceGeluScale, times kTwiceGeluScale: with x in that scale q's leading
// coefficient is -1, which saves an operand.
constexpr float kTwiceGeluScale = 0.29195521f;  // 0.024885632^(1/3)
__device__ __forceinline__ float ScaledTwiceGeluRoundedToBf16(float x) {
  const float a = fabsf(x);
  float q = -5.8520957f - a;
  q = fmaf(q, a, -3.8678742f);
  q = fmaf(q, a, -0.0035316944f);
  return fmaf(a, 1.0f - Exp2(q), x);
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_GELU_CUH_
