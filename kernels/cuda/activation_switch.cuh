#ifndef FLASHSVD_KERNELS_CUDA_ACTIVATION_SWITCH_CUH_
#define FLASHSVD_KERNELS_CUDA_ACTIVATION_SWITCH_CUH_

#include "kernels/backend.h"
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/gelu.cuh"

namespace flashsvd {

// v = activation(v) for kCount registers whose values are about to be rounded to T. One branch for
// all of them: for kernels that are not instantiated for each activation.
template <class T, int kCount>
__device__ __forceinline__ void ActivateAll(float* v, Activation activation) {
  const auto apply = [&](const auto& activate) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = activate(v[i]);
  };
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kGelu:
      return apply([](float x) { return GeluRoundedTo<T>(x); });
    case Activation::kGeluTanh:
      return apply([](float x) { return Activate<Activation::kGeluTanh>(x); });
    case Activation::kRelu:
      return apply([](float x) { return Activate<Activation::kRelu>(x); });
    case Activation::kSilu:
      return apply([](float x) { return Activate<Activation::kSilu>(x); });
  }
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ACTIVATION_SWITCH_CUH_
