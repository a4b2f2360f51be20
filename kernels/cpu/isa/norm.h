#ifndef FLASHSVD_KERNELS_CPU_ISA_NORM_H_
#define FLASHSVD_KERNELS_CPU_ISA_NORM_H_

#include "kernels/cpu/isa/simd.h"
#include "kernels/cpu/kernel_table.h"

namespace flashsvd::FSVD_ISA {

// out[0, d) = LayerNorm(value). value(c) gives columns [c, c + kLanes), zero from d on. Variance by
// a second pass over the centred values: no cancellation however large the mean.
template <class T, class Value>
FSVD_INLINE void NormalizeRow(const Value& value, T* out, int d, const NormTask& norm) {
  VecF sum = {};
  for (int c = 0; c < d; c += kLanes) sum += value(c);
  const float mean = ReduceAdd(sum) / d;
  VecF squares = {};
  for (int c = 0; c < d; c += kLanes) {
    VecF centred = value(c) - mean;
    if (d - c < kLanes) centred = KeepFirst(centred, d - c);
    squares += centred * centred;
  }
  const float scale = 1.0f / __builtin_sqrtf(ReduceAdd(squares) / d + norm.epsilon);
  for (int c = 0; c < d; c += kLanes) {
    const VecF gamma = LoadUpTo(norm.gamma + c, d - c);
    const VecF beta = LoadUpTo(norm.beta + c, d - c);
    StoreUpTo(out + c, (value(c) - mean) * scale * gamma + beta, d - c);
  }
}

// x = LayerNorm(x + y + bias) for each row; y [rows, padded d] is overwritten.
template <class T>
FSVD_INLINE void AddNormRows(float* y, int64_t y_stride, const float* bias, T* x, int64_t x_stride,
                             int rows, int d, const NormTask& norm) {
  for (int r = 0; r < rows; ++r) {
    float* sum = y + r * y_stride;
    T* to = x + r * x_stride;
    for (int c = 0; c < d; c += kLanes) {
      Store(sum + c, Load(sum + c) + Load(bias + c) + LoadUpTo(to + c, d - c));
    }
    NormalizeRow(
        [&](int c) __attribute__((always_inline)) { return Load(sum + c); }, to, d, norm);
  }
}

}  // namespace flashsvd::FSVD_ISA

#endif  // FLASHSVD_KERNELS_CPU_ISA_NORM_H_
