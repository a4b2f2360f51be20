#ifndef FLASHSVD_KERNELS_CUDA_SOFTMAX_SM90_CUH_
#define FLASHSVD_KERNELS_CUDA_SOFTMAX_SM90_CUH_

#include <cuda_runtime.h>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/ptx.cuh"

// Softmax without a running maximum, on the accumulators of a warp: 16 rows, of which a thread
// holds elements of two (rows l / 4 and l / 4 + 8 of lane l; wgmma.cuh).
//
// p = 2^(scale s - reference), and the reference of a row is set by its first block of keys. It
// stays until some p might exceed kLimit, which the row sums show; then the row is rebased. The
// quotient sum p v / sum p does not depend on the reference, and the room that the 16-bit format
// leaves above is enough for most rows.

namespace flashsvd {

// fp16: p of the first block's maximum is 2^kLog2Start, P is exact to 2^-25, 2^-29 of that maximum,
// and a row may grow by 2^11. bf16 has the exponents of float32, so that p may be 1 at any score;
// sums of p v stay in its range.
template <class T>
constexpr float kLog2Start = std::is_same_v<T, __half> ? 4.0f : 0.0f;
template <class T>
constexpr float kLimit = std::is_same_v<T, __half> ? 32768.0f : 1.0e30f;

// The maxima of the thread's two rows over all their columns.
template <int kCount>
__device__ __forceinline__ float2 RowMaxima(const float (&s)[kCount]) {
  float a = s[0], b = s[2];
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    a = fmaxf(a, fmaxf(s[i], s[i + 1]));
    b = fmaxf(b, fmaxf(s[i + 2], s[i + 3]));
  }
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    a = fmaxf(a, __shfl_xor_sync(~0u, a, step));
    b = fmaxf(b, __shfl_xor_sync(~0u, b, step));
  }
  return {a, b};
}

// The references of the thread's two rows that their maxima call for.
template <class T, int kCount>
__device__ __forceinline__ float2 ReferenceOf(const float (&s)[kCount], float scale) {
  const float2 maxima = RowMaxima(s);
  return {fmaf(maxima.x, scale, -kLog2Start<T>), fmaf(maxima.y, scale, -kLog2Start<T>)};
}

// Those to begin with.
template <class T, int kCount>
__device__ __forceinline__ float2 FirstReferenceOf(const float (&s)[kCount], float scale) {
  if constexpr (std::is_same_v<T, __half>) {
    return ReferenceOf<T>(s, scale);
  } else {  // the scores of the first key
    const int lane = threadIdx.x & 28;
    return {scale * __shfl_sync(~0u, s[0], lane), scale * __shfl_sync(~0u, s[2], lane)};
  }
}

// Scores of columns from `limit` on become -infinity.
template <int kCount>
__device__ __forceinline__ void MaskColumns(float (&s)[kCount], int limit) {
  const int column = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (8 * (i / 4) + column + i % 2 >= limit) s[i] = -INFINITY;
  }
}

// s <- 2^(scale s - reference); the thread's part of the sums of its two rows.
template <int kCount>
__device__ __forceinline__ float2 Exponentiate(float (&s)[kCount], float scale, float2 reference) {
  float2 sum = {0, 0};
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      s[i + j] = Exp2(fmaf(s[i + j], scale, j < 2 ? -reference.x : -reference.y));
    }
    sum.x += s[i] + s[i + 1];
    sum.y += s[i + 2] + s[i + 3];
  }
  return sum;
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_SOFTMAX_SM90_CUH_
