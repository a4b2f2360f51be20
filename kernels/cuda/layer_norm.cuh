#ifndef FLASHSVD_KERNELS_CUDA_LAYER_NORM_CUH_
#define FLASHSVD_KERNELS_CUDA_LAYER_NORM_CUH_

#include "kernels/backend.h"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/row_unit.cuh"

namespace flashsvd {

// How a row of d columns is spread over a group of kThreads threads, one warp or a block: unit u of
// the row is unit u / kThreads of thread u % kThreads. kWhole: d is a multiple of 8.
template <int kThreads_, int kUnits_, bool kWhole_>
struct RowGroup {
  static constexpr int kThreads = kThreads_;
  static constexpr int kUnits = kUnits_;
  static constexpr bool kWhole = kWhole_;
  static constexpr int kMaxThreads = kThreads > 128 ? kThreads : 128;  // of a block
  static constexpr int kMinBlocks = kMaxThreads > 128 ? 2 : 3;

  // The first column of unit i of this thread.
  static __device__ __forceinline__ int Column(int i) {
    return (i * kThreads + static_cast<int>(threadIdx.x) % kThreads) * kUnit;
  }
  // The row of this thread's group.
  static __device__ __forceinline__ int64_t Row() {
    return int64_t{blockIdx.x} * (blockDim.x / kThreads) + threadIdx.x / kThreads;
  }
  // This thread's units of a row. All are requested before the first is needed.
  template <class T>
  static __device__ __forceinline__ void Load(uint4 (&units)[kUnits], const T* row, int d,
                                              bool aligned = true) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) units[i] = LoadUnit<kWhole>(row, Column(i), d, aligned);
  }
};

// gamma and beta of a thread's columns. They are weights: read them before the predecessor is done.
template <class Group>
struct NormWeights {
  __device__ __forceinline__ NormWeights(const LayerNormParams& norm, int d) {
#pragma unroll
    for (int i = 0; i < Group::kUnits; ++i) {
      LoadFloatUnit<Group::kWhole>(gamma[i], norm.gamma, Group::Column(i), d);
      LoadFloatUnit<Group::kWhole>(beta[i], norm.beta, Group::Column(i), d);
    }
  }
  float gamma[Group::kUnits][kUnit];
  float beta[Group::kUnits][kUnit];
};

// row = LayerNorm(v), the variance from the centred values. v is 0 past column d.
template <class Group, class T>
__device__ __forceinline__ void StoreNormalized(T* row, int d, float (&v)[Group::kUnits][kUnit],
                                                const NormWeights<Group>& weights, float epsilon) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < Group::kUnits; ++i) {
#pragma unroll
    for (int j = 0; j < kUnit; ++j) sum += v[i][j];
  }
  const float mean = GroupSum<Group::kThreads>(sum) / d;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < Group::kUnits; ++i) {
    const int columns = d - Group::Column(i);
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      v[i][j] -= mean;
      if ((Group::kWhole ? 0 : j) < columns) squares += v[i][j] * v[i][j];
    }
  }
  const float scale = rsqrtf(GroupSum<Group::kThreads>(squares) / d + epsilon);
#pragma unroll
  for (int i = 0; i < Group::kUnits; ++i) {
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      v[i][j] = v[i][j] * scale * weights.gamma[i][j] + weights.beta[i][j];
    }
    StoreUnit<Group::kWhole>(row, Group::Column(i), d, v[i]);
  }
}

// visit.template operator()<Group>(shape) with the group for rows of d columns and its launch;
// cudaErrorInvalidValue for d over 8192.
template <class Visit>
cudaError_t VisitRowGroup(int64_t rows, int64_t d, const Visit& visit) {
  if (rows <= 0) return cudaSuccess;
  const auto with_group = [&]<class Group>(int block) {
    const int groups = block / Group::kThreads;
    return visit.template operator()<Group>(LaunchShape{
        .grid = dim3(static_cast<unsigned>((rows + groups - 1) / groups)), .block = dim3(block)});
  };
  const auto with_width = [&]<bool kWhole>() {
    if (kWhole && d <= 512) return with_group.template operator()<RowGroup<32, 2, kWhole>>(128);
    if (kWhole && d <= 768) return with_group.template operator()<RowGroup<32, 3, kWhole>>(128);
    if (d <= 1024) return with_group.template operator()<RowGroup<32, 4, kWhole>>(128);
    if (d <= 2048) return with_group.template operator()<RowGroup<128, 2, kWhole>>(128);
    if (d <= 8192) return with_group.template operator()<RowGroup<256, 4, kWhole>>(256);
    return cudaErrorInvalidValue;
  };
  return d % kUnit == 0 ? with_width.template operator()<true>()
                        : with_width.template operator()<false>();
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_LAYER_NORM_CUH_
