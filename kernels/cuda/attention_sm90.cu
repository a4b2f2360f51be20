#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/attention_consumer.cuh"
#include "kernels/cuda/attention_producer.cuh"
#include "kernels/cuda/attention_range.cuh"
#include "kernels/cuda/attention_ring.cuh"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"

// Attention on Hopper: persistent blocks of three consumer warpgroups and three producer warps. A
// block owns a contiguous range of units, 64 query rows of one head each (attention_range.cuh);
// units of one head share its keys and values, which stay in shared memory while they are worked
// at. Each warpgroup takes whole units: Q in registers, S = Q K' and O += P V by wgmma, softmax in
// registers (softmax_sm90.cuh).
//
// Serves d_qk and d_v up to 64 (padded to 24, 32, 40, 48 or 64 together), tile.rows 64 or 128,
// scale > 0, any sequence length; cudaErrorInvalidValue for the rest.
// REQUIRES: what FindUnitPlace does of the schedule. Rows of other sequences have no influence,
// whatever they contain.

namespace flashsvd {
namespace {

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    AttentionKernel(const __grid_constant__ AttentionKernelParams params,
                    const __grid_constant__ CUtensorMap map) {
  extern __shared__ __align__(1024) char shared[];
  auto* tail = reinterpret_cast<AttentionTail<S>*>(shared + S::kTailOffset);
  static_assert(sizeof(AttentionTail<S>) <= S::kTailBytes);

  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  const int warp = __shfl_sync(~0u, threadIdx.x % 128 / 32, 0);
  if (threadIdx.x == 0) {  // alone: addresses that differ by lane take the compiler 2,500 clocks
    PrefetchTensorMap(&map);
    for (int i = 0; i < S::kSlots; ++i) {
      BarrierInit(&tail->slot_full[i], 1);
      BarrierInit(&tail->slot_clean[i], 1);
      BarrierInit(&tail->slot_empty[i], 4 * kAttentionWarpgroups + 1);
    }
    for (int i = 0; i < kAttentionWarpgroups; ++i) {
      BarrierInit(&tail->unit_given[i], 1);
      BarrierInit(&tail->query_full[i], 1);
      BarrierInit(&tail->unit_taken[i], 4);
    }
    BarrierInitFence();
  }
  if (warpgroup == kAttentionWarpgroups && warp < 2) {
    FindUnitPlace<S::kKeys>(params.schedule, params.max_tiles, params.num_heads, blockIdx.x + warp,
                            &tail->range[warp]);
  }
  __syncthreads();
  AllowSuccessor();

  if (warpgroup == kAttentionWarpgroups) {
    ShrinkRegisters<56>();
    AttentionProducer<S> producer(params, &map, shared);
    if (warp == 2) {
      producer.CleanValues();
    } else if (warp < 2 && ElectOne()) {
      warp == 0 ? producer.LoadKeys() : producer.LoadQueries();
    }
  } else {
    GrowRegisters<152>();
    // Also with nothing to do: the kernels behind this one rely on those before it.
    WaitForPredecessor();
    AttentionConsumer<S>(params, shared, warpgroup).Run();
  }
}

template <class S>
cudaError_t Launch(const AttentionParams& params, const AttentionTiling& tile,
                   cudaStream_t stream) {
  static_assert(S::kKeys == kUnitRows);  // one map for Q, K and V
  CUtensorMap map;
  cudaError_t error = SwizzledColumnsMap(params.qkv, S::kKeys, S::kBoxColumns, &map);
  if (error != cudaSuccess) return error;
  int device = 0, num_sms = 0;
  error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;

  const AttentionKernelParams kernel = {static_cast<const AttentionSchedule*>(params.schedule),
                                        params.context.data,
                                        params.context.stride,
                                        params.max_tiles,
                                        params.num_heads,
                                        tile.rows / kUnitRows,
                                        params.d_qk,
                                        params.d_v,
                                        params.scale * 1.4426950408889634f};
  const int units = params.max_tiles * (tile.rows / kUnitRows) * params.num_heads;
  LaunchShape shape;
  shape.grid = dim3(std::min(num_sms, units));
  shape.block = dim3(S::kThreads);
  shape.shared_bytes = S::kSharedBytes;
  return LaunchKernel(AttentionKernel<S>, shape, stream, kernel, map);
}

}  // namespace

cudaError_t LaunchAttentionSm90(const AttentionParams& params, DType dtype,
                                const AttentionTiling& tile, cudaStream_t stream) {
  if (tile.rows != 64 && tile.rows != 128) return cudaErrorInvalidValue;
  if (params.d_qk % 8 != 0 || params.d_v % 8 != 0 || !(params.scale > 0))
    return cudaErrorInvalidValue;
  if (params.max_tiles <= 0) return cudaSuccess;
  return VisitFloat(dtype, [&]<class T>() {
    return VisitAtLeast<24, 32, 40, 48, 64>(std::max(params.d_qk, params.d_v), [&]<int kDim>() {
      return Launch<AttentionShape<T, kDim>>(params, tile, stream);
    });
  });
}

}  // namespace flashsvd
