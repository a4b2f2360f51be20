#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/attention_norm_consumer.cuh"
#include "kernels/cuda/attention_norm_producer.cuh"
#include "kernels/cuda/attention_norm_shape.cuh"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"

// x = LayerNorm(x + context W' + bias) with context = attention(qkv), in one kernel on Hopper: the
// context never leaves the chip.
//
// A cluster of two blocks owns 64 rows of x, whatever sequences they are of. Each block attends
// with them for half of the heads, three consumer warpgroups with a head each at a time
// (attention_core.cuh); the context, rounded, goes into the shared memory of both blocks, where it
// is the A operand of the product. Each block then computes half of the columns of x; the row
// statistics cross the cluster once (add_norm_epilogue.cuh). Keys, values, weights and x pass
// through the same slots of shared memory, the weights as soon as keys and values leave them free.
//
// All blocks do their row tiles at the same time, so the most expensive tile sets the pace:
// sequences of like lengths, and about one tile for every two multiprocessors. Keys and values are
// not shared between tiles.
//
// Shapes: d 768; an even number of heads up to 24; d_qk and d_v multiples of 8 up to 48 (padded to
// 24, 32, 40 or 48 together); H d_v a multiple of 32 up to 480, or 576 where a head has more than
// 40 columns; any n and lengths of sequences; scale > 0. cudaErrorInvalidValue for the rest. bias,
// gamma and beta start at 16-byte aligned addresses. REQUIRES of the schedule: tiles of at least 64
// rows, those of a sequence next to each other and ascending; max_tiles may be read.

namespace flashsvd {
namespace {

template <class S>
__device__ __forceinline__ void Prepare(const AttentionNormArgs& args,
                                        const AttentionNormShared<S>& shared, int rank) {
  typename S::Barriers& barriers = shared.Barriers();
  for (int g = 0; g < S::kGroups; ++g) {
    for (int i = 0; i < S::kSlots; ++i) {
      BarrierInit(&barriers.k_full[g][i], 1);
      BarrierInit(&barriers.v_full[g][i], 1);
      BarrierInit(&barriers.kv_empty[g][i], 4);
    }
  }
  for (int g = 0; g < S::kGroups; ++g) {
    BarrierInit(&barriers.q_full[g], 1);
    BarrierInit(&barriers.q_taken[g], 4);
  }
  for (int i = 0; i < S::kWSlots; ++i) {
    BarrierInit(&barriers.w_full[i], 1);
    BarrierInit(&barriers.w_empty[i], 4 * S::kGroups);
  }
  for (uint64_t& x : barriers.x) BarrierInit(&x, 1);
  for (int i = 0; i < S::kMaxTurns; ++i) {
    BarrierInit(&barriers.own[i], 4 * S::kGroups);
    BarrierInit(&barriers.peer[i], 1);
  }
  BarrierInit(&barriers.params, 1);
  BarrierInit(&barriers.stats, 1);
  BarrierInitFence();
  const HeadPlan<S> plan(args, rank);
  for (int i = 0; i < plan.turns; ++i) {
    BarrierExpect(&barriers.peer[i], (plan.Octets(i + 1) - plan.Octets(i)) * S::kOctetBytes);
  }
  BarrierExpect(&barriers.stats, S::kCluster * S::kCols / kUnit<S> * S::kRows * sizeof(Moments));

  LoadParams<S>(args, shared.Params(), rank * S::kCols, &barriers.params);
  PrefetchTensorMap(&args.qkv);
  PrefetchTensorMap(&args.x);
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    AttentionNormKernel(const __grid_constant__ AttentionNormArgs args) {
  extern __shared__ __align__(1024) char base[];
  const AttentionNormShared<S> shared = {base};
  typename S::Barriers& barriers = shared.Barriers();
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
  const int warp = __shfl_sync(~0u, threadIdx.x % 128 / 32, 0);
  const int rank = static_cast<int>(ClusterRank());
  const int tile_row = static_cast<int>(blockIdx.x) / S::kCluster * S::kRows;
  if (threadIdx.x == 0) Prepare<S>(args, shared, rank);
  if (group == S::kGroups && warp == 3) {
    FindSegments<S>(args, tile_row, shared.Segments(), &barriers.num_segments,
                    &barriers.num_blocks);
  }
  if (args.bias == nullptr && threadIdx.x < S::kCols) shared.Params()[threadIdx.x] = 0;
  __syncthreads();
  ClusterArriveRelaxed();

  if (group == S::kGroups) {
    ShrinkRegisters<56>();
    if (barriers.num_segments == 0) return;
    if (warp == 3) {
      ClusterWait();
      if (ElectOne()) SendContext<S>(args, shared, rank);
    } else if (ElectOne()) {
      FillRing<S>(args, shared, warp, rank);
    }
    return;
  }
  GrowRegisters<152>();
  BarrierWait(&barriers.params, 0);
  WaitForPredecessor();
  AllowSuccessor();
  if (barriers.num_segments == 0) return;  // rows of no sequence
  AttentionNormConsumer<S> consumer(args, shared, group, rank);
  consumer.Attend();
  float acc[S::kN / 2];
  ClusterWait();
  consumer.Multiply(acc);
  consumer.Finalize(acc);
}

template <class S>
cudaError_t Launch(const AttentionParams& attention, const GemmAddNormParams& output,
                   cudaStream_t stream) {
  const int context_cols = attention.num_heads * attention.d_v;
  const int shared_bytes = S::Bytes(context_cols);
  if (shared_bytes > 227 * 1024) return cudaErrorInvalidValue;
  AttentionNormArgs args;
  cudaError_t error = SwizzledColumnsMap(attention.qkv, S::kKeys, S::kBoxColumns, &args.qkv);
  if (error == cudaSuccess) error = SwizzledRowsMap(output.x, 16, &args.x);
  if (error != cudaSuccess) return error;
  args.schedule = static_cast<const AttentionSchedule*>(attention.schedule);
  args.qkv_data = attention.qkv.data;
  args.qkv_stride = attention.qkv.stride;
  args.x_data = output.x.data;
  args.x_stride = output.x.stride;
  args.w_data = static_cast<const char*>(output.w.data);
  args.w_stride = 16 * output.w.n_padded;
  args.bias = output.bias;
  args.gamma = output.norm.gamma;
  args.beta = output.norm.beta;
  args.epsilon = output.norm.epsilon;
  args.inverse_d = 1.0f / static_cast<float>(output.w.n);
  args.scale_log2 = attention.scale * 1.4426950408889634f;
  args.max_tiles = attention.max_tiles;
  args.num_heads = attention.num_heads;
  args.d_qk = attention.d_qk;
  args.d_v = attention.d_v;
  args.n = static_cast<int>(output.x.rows);
  args.d = output.w.n;
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(S::kCluster * ((args.n + S::kRows - 1) / S::kRows));
  shape.block = S::kThreads;
  shape.shared_bytes = static_cast<size_t>(shared_bytes);
  shape.cluster = S::kCluster;
  return LaunchKernel(AttentionNormKernel<S>, shape, stream, args);
}

}  // namespace

cudaError_t LaunchAttentionNormSm90(const AttentionNormParams& params, DType dtype,
                                    cudaStream_t stream) {
  const AttentionParams& attention = params.attention;
  const GemmAddNormParams& output = params.output;
  const int d = output.w.n;
  const int heads = attention.num_heads;
  if (attention.d_qk % 8 != 0 || attention.d_v % 8 != 0 || !(attention.scale > 0) ||
      heads % 2 != 0 || heads > 24 || heads / 2 * attention.d_v % 16 != 0 ||
      output.w.k != heads * attention.d_v || output.x.cols != d || d != 768) {
    return cudaErrorInvalidValue;
  }
  if (attention.max_tiles <= 0 || output.x.rows == 0) return cudaSuccess;
  return VisitFloat(dtype, [&]<class T>() {
    return VisitAtLeast<24, 32, 40, 48>(std::max(attention.d_qk, attention.d_v), [&]<int kDim>() {
      return Launch<AttentionNormShape<T, kDim, 128>>(attention, output, stream);
    });
  });
}

}  // namespace flashsvd
