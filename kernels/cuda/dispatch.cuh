#ifndef FLASHSVD_KERNELS_CUDA_DISPATCH_CUH_
#define FLASHSVD_KERNELS_CUDA_DISPATCH_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/backend.h"
#include "kernels/tensor.h"

namespace flashsvd {

// visit.template operator()<T>() with the device type of `dtype`.
template <class Visit>
auto VisitFloat(DType dtype, const Visit& visit) {
  return dtype == DType::kF16 ? visit.template operator()<__half>()
                              : visit.template operator()<__nv_bfloat16>();
}

// visit.template operator()<kActivation>().
template <class Visit>
auto VisitActivation(Activation activation, const Visit& visit) {
  switch (activation) {
    case Activation::kNone:
      return visit.template operator()<Activation::kNone>();
    case Activation::kGelu:
      return visit.template operator()<Activation::kGelu>();
    case Activation::kGeluTanh:
      return visit.template operator()<Activation::kGeluTanh>();
    case Activation::kRelu:
      return visit.template operator()<Activation::kRelu>();
    case Activation::kSilu:
      break;
  }
  return visit.template operator()<Activation::kSilu>();
}

// visit.template operator()<v>() with the smallest v of kValues (ascending) that is at least
// `value`; cudaErrorInvalidValue when there is none.
template <int... kValues, class Visit>
cudaError_t VisitAtLeast(int value, const Visit& visit) {
  cudaError_t result = cudaErrorInvalidValue;
  (void)((value <= kValues ? (result = visit.template operator()<kValues>(), true) : false) || ...);
  return result;
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_DISPATCH_CUH_
