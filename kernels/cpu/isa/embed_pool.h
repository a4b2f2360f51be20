#ifndef FLASHSVD_KERNELS_CPU_ISA_EMBED_POOL_H_
#define FLASHSVD_KERNELS_CPU_ISA_EMBED_POOL_H_

#include "kernels/cpu/isa/norm.h"

namespace flashsvd::FSVD_ISA {

template <class E>
void Embed(const EmbedTask& task) {
  using Storage = typename E::Storage;
  const int64_t d = task.d;
  for (int r = 0; r < task.rows; ++r) {
    const Storage* word = static_cast<const Storage*>(task.word) + task.ids[r] * d;
    const Storage* position =
        static_cast<const Storage*>(task.position) + (task.first_position + r) * d;
    const Storage* type = static_cast<const Storage*>(task.type) + task.type_ids[r] * d;
    // Summed again in each pass: three loads from L1, and no row of floats to keep.
    const auto sum = [&](int c) __attribute__((always_inline)) {
      const int remaining = task.d - c;
      return LoadUpTo(word + c, remaining) + LoadUpTo(position + c, remaining) +
             LoadUpTo(type + c, remaining);
    };
    NormalizeRow(sum, static_cast<Storage*>(task.x) + r * task.x_stride, task.d, task.norm);
  }
}

template <class T>
FSVD_INLINE void MeanRows(const PoolTask& task) {
  const T* x = static_cast<const T*>(task.x);
  const float scale = 1.0f / task.length;
  for (int c = 0; c < task.d; c += kLanes) {
    VecF sum = {};
    for (int r = 0; r < task.length; ++r) sum += LoadUpTo(x + r * task.x_stride + c, task.d - c);
    StoreUpTo(task.out + c, sum * scale, task.d - c);
  }
}

FSVD_INLINE void NormalizeL2(float* out, int d) {
  VecF squares = {};
  for (int c = 0; c < d; c += kLanes) {
    const VecF v = LoadUpTo(out + c, d - c);
    squares += v * v;
  }
  const float norm = __builtin_sqrtf(ReduceAdd(squares));
  const float scale = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
  for (int c = 0; c < d; c += kLanes) {
    StoreUpTo(out + c, LoadUpTo(out + c, d - c) * scale, d - c);
  }
}

template <class E>
void Pool(const PoolTask& task) {
  using Storage = typename E::Storage;
  if (task.length == 0) {
    memset(task.out, 0, task.d * sizeof(float));
    return;
  }
  if (task.pooling == kCpuMean) {
    MeanRows<Storage>(task);
  } else {
    const int64_t row = task.pooling == kCpuLast ? task.length - 1 : 0;
    const Storage* x = static_cast<const Storage*>(task.x) + row * task.x_stride;
    for (int c = 0; c < task.d; c += kLanes) {
      StoreUpTo(task.out + c, LoadUpTo(x + c, task.d - c), task.d - c);
    }
  }
  if (task.normalize) NormalizeL2(task.out, task.d);
}

}  // namespace flashsvd::FSVD_ISA

#endif  // FLASHSVD_KERNELS_CPU_ISA_EMBED_POOL_H_
