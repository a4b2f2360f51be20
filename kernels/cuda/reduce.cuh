#ifndef FLASHSVD_KERNELS_CUDA_REDUCE_CUH_
#define FLASHSVD_KERNELS_CUDA_REDUCE_CUH_

namespace flashsvd {

// The sum over `kLanes` neighbouring lanes (a power of two), in each of them.
template <int kLanes = 32>
__device__ __forceinline__ float LaneSum(float v) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    v += __shfl_xor_sync(0xffffffff, v, distance);
  }
  return v;
}

template <int kLanes = 32>
__device__ __forceinline__ float LaneMax(float v) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, distance));
  }
  return v;
}

// The sum over a group of kThreads threads that is one warp or else the whole block, in each of
// them. Always in the same order.
template <int kThreads>
__device__ __forceinline__ float GroupSum(float v) {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024);
  v = LaneSum(v);
  if constexpr (kThreads > 32) {
    __shared__ float warps[kThreads / 32];
    __syncthreads();  // an earlier sum may still be read
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
#pragma unroll
    for (int i = 0; i < kThreads / 32; ++i) v += warps[i];
  }
  return v;
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_REDUCE_CUH_
