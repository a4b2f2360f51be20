#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/add_norm_epilogue.cuh"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/gemm_mainloop.cuh"
#include "kernels/cuda/gemm_pair_products.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ring_position.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

// x = LayerNorm(x + (y A') B' + bias), compute capability 9.0.
//   y: [n, k]   a: [r, k]   b: [d, r]   x: [n, d] in, out
//
// A cluster of two blocks owns 64 whole rows of x, each block half of their columns. Each
// multiplies by half of A's rows and sends the columns of y A' that this gives, rounded to T, to
// the other's shared memory; with all r of them there it goes on as gemm_add_norm_sm90.cu does.
// Both products stream through one ring, so that B is on its way while y A' is exchanged, and the
// residual is added meanwhile.
//
// Shapes: d == 768, r at most 336; any n and k. Anything else is refused. bias, gamma and beta
// start at 16-byte aligned addresses.

namespace flashsvd {
namespace {

// From x + y A' B' + bias in acc to the rows of x.
template <class S>
__device__ __forceinline__ void Finish(const PairArgs& args, const float (&acc)[S::kN / 2],
                                       const WarpRows<typename S::Element, S::kN>& x,
                                       const float* params, Moments* stats, uint64_t* stats_barrier,
                                       uint32_t parity, int tile_row, int warp_row, int first_col) {
  using T = typename S::Element;
  const int row = warp_row + static_cast<int>(threadIdx.x) % 32 / 4;
  SendMoments<S>(acc, stats, stats_barrier, first_col / kUnit<S>, row, kPairCluster);
  BarrierWaitCluster(stats_barrier, parity);
  float scale[2];
  float shift[2];
  Moments rows[2];
  PairMoments<S>(rows, stats, row, args.d, args.inverse_d);
  ScaleAndShift(rows, args.inverse_d, args.epsilon, scale, shift);
  const int64_t first_row = tile_row + warp_row;
  T* to = static_cast<T*>(args.x_data) + first_row * args.x_stride + first_col;
#pragma unroll
  for (int box = 0; box < S::kN / 64; ++box) {
#pragma unroll
    for (int p = 4 * box; p < 4 * box + 4; ++p) {
      NormalizeUnit<T, S::kN>(p, acc, scale, shift, params + S::kCols, params + 2 * S::kCols, x);
    }
    __syncwarp();
    x.StoreBox(box, to, args.x_stride, args.n - tile_row - warp_row);
  }
}

template <class S>
__device__ __forceinline__ void Consume(const PairArgs& args, char* shared, int first_tile,
                                        int tile_step, int rank) {
  using T = typename S::Element;
  using L = PairLayout<S>;
  constexpr int kN = S::kN;
  auto* barriers = reinterpret_cast<typename L::Barriers*>(shared + L::kBarriers);
  auto* all_stats = reinterpret_cast<Moments*>(shared + L::kStats);
  const int peer = 1 - rank;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  // Through a shuffle, so that the compiler knows it to be the same for the whole warp.
  const int group = __shfl_sync(0xffffffff, warp / 4, 0);
  const int first_col = rank * S::kCols + group * kN;
  const int warp_row = warp % 4 * 16;  // in the tile
  const float* params = reinterpret_cast<const float*>(shared + L::kParams) + group * kN;
  const WarpRows<T, kN> x(shared + L::kX + warp * L::kWarpXBytes);
  // This warpgroup's columns of y A'.
  const int units = min(args.share - group * S::kFirstN, S::kFirstN) / 8;
  char* middle =
      shared + L::kMiddle + (rank * args.share + group * S::kFirstN) / 8 * (kPairRows * 16);

  BarrierWait(&barriers->params, 0);
  WaitForPredecessor();
  AllowSuccessor();  // not before: see LastWrite
  RingPosition<S::kSlots> at;
  int turn = 0;
  for (int tile_row = first_tile * kPairRows; tile_row < args.n;
       tile_row += tile_step * kPairRows, ++turn) {
    uint64_t* stats_barrier = &barriers->stats[turn % 2];
    if (threadIdx.x == 0) {
      BarrierExpect(stats_barrier, L::kStatsSize * sizeof(Moments));
      BarrierExpect(&barriers->middle, args.share * kPairRows * 2);
    }
    __syncwarp();
    {
      float acc[S::kFirstN / 2];
      const int x_step = min(args.first_steps - 1, 1);  // y is needed first
      FirstProduct<S>(acc, args, shared, barriers, at, group, [&](int step) {
        if (step != x_step) return;
        if (threadIdx.x % 32 == 0) {
          x.Load(&args.x, tile_row + warp_row, first_col, &barriers->x[warp]);
        }
        __syncwarp();
      });
      // The tile before is done with the middle in both blocks: its statistics were here.
      StoreMiddle<S>(acc, middle, warp_row, units);
    }
    FenceAsyncProxy();
    if (turn == 0) ClusterWait();
    NamedBarrierSync(2 + group, 128);
    if (threadIdx.x % 128 == 0 && units > 0) {
      CopyToCluster(ClusterAddress(middle, peer), middle, units * (kPairRows * 16),
                    ClusterAddress(&barriers->middle, peer));
    }
    __syncwarp();
    float acc[kN / 2];
    StartWithBias<kN>(acc, params);
    BarrierWait(&barriers->x[warp], turn % 2);
    AddResidual<T, kN, false>(acc, x, params);
    PinRegisters(acc);
    WgmmaFence();  // or the compiler waits for every product by itself
    NamedBarrierSync(1, S::kConsumers);
    BarrierWaitCluster(&barriers->middle, turn % 2);
    LastProduct<S>(acc, args, shared, barriers, at, group);
    Finish<S>(args, acc, x, params, all_stats + turn % 2 * L::kStatsSize, stats_barrier,
              turn / 2 % 2, tile_row, warp_row, first_col);
    // The next tile's rows are copied to where these were. The fence is slow, so not without need.
    if (tile_row + tile_step * kPairRows < args.n) FenceAsyncProxy();
    __syncwarp();
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    GemmPairAddNormKernel(const __grid_constant__ PairArgs args) {
  using L = PairLayout<S>;
  extern __shared__ __align__(1024) char shared[];
  auto* barriers = reinterpret_cast<typename L::Barriers*>(shared + L::kBarriers);
  const int rank = static_cast<int>(ClusterRank());
  const int first_tile = static_cast<int>(blockIdx.x) / kPairCluster;
  const int tile_step = static_cast<int>(gridDim.x) / kPairCluster;
  const bool loads = threadIdx.x == S::kConsumers;

  float* params = reinterpret_cast<float*>(shared + L::kParams);
  PairProducer<S> producer(args, shared, barriers, rank);
  if (loads) {
    for (int i = 0; i < S::kSlots; ++i) {
      BarrierInit(&barriers->full[i], 1);
      BarrierInit(&barriers->empty[i], 4 * S::kGroups);
    }
    for (uint64_t& barrier : barriers->x) BarrierInit(&barrier, 1);
    for (uint64_t& barrier : barriers->stats) BarrierInit(&barrier, 1);
    BarrierInit(&barriers->middle, 1);
    BarrierInit(&barriers->params, 1);
    BarrierInitFence();
    producer.Prefetch();
    PrefetchTensorMap(&args.y);
    PrefetchTensorMap(&args.b);
    PrefetchTensorMap(&args.x);
    LoadParams<S>(args, params, rank * S::kCols, &barriers->params);
  }
  if (args.bias == nullptr) {
    for (int i = threadIdx.x; i < S::kCols; i += S::kThreads) params[i] = 0;
  }
  // The cluster's barriers are ready before anyone sends to them: Consume waits for that. Nothing
  // remote is under way when a block ends: it has received all that its peer sends, and its peer
  // all of its own, whose statistics come after.
  __syncwarp();
  __syncthreads();
  ClusterArriveRelaxed();
  if (threadIdx.x < S::kConsumers) {
    Consume<S>(args, shared, first_tile, tile_step, rank);
  } else if (loads) {
    WaitForPredecessor();
    AllowSuccessor();
    for (int row = first_tile * kPairRows; row < args.n; row += tile_step * kPairRows) {
      producer.LoadTile(row);
    }
  }
}

cudaError_t NumMultiprocessors(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

template <class S>
cudaError_t Launch(const GemmPairAddNormParams& params, cudaStream_t stream) {
  PairArgs args;
  args.r_padded = params.b.k_padded;
  args.share = args.r_padded / kPairCluster;
  args.first_steps = (params.a.k_padded + kPairDepth - 1) / kPairDepth;
  cudaError_t error = SwizzledRowsMap(params.y, kPairRows, &args.y);
  if (error == cudaSuccess) error = PackedMatrixMap(params.a, args.share, kPairDepth, &args.a);
  if (error == cudaSuccess) error = PackedMatrixMap(params.b, S::kCols, kPairLastDepth, &args.b);
  if (error == cudaSuccess) error = SwizzledRowsMap(params.x, 16, &args.x);
  int num_sms = 0;
  if (error == cudaSuccess) error = NumMultiprocessors(&num_sms);
  if (error != cudaSuccess) return error;
  args.x_data = params.x.data;
  args.x_stride = params.x.stride;
  args.bias = params.bias;
  args.gamma = params.norm.gamma;
  args.beta = params.norm.beta;
  args.epsilon = params.norm.epsilon;
  args.d = params.b.n;
  args.inverse_d = 1.0f / static_cast<float>(args.d);
  args.n = static_cast<int>(params.x.rows);

  const int tiles = (args.n + kPairRows - 1) / kPairRows;
  LaunchShape shape;
  shape.grid =
      static_cast<unsigned>(kPairCluster * std::min(tiles, std::max(num_sms / kPairCluster, 1)));
  shape.block = S::kThreads;
  shape.shared_bytes = PairLayout<S>::kBytes;
  shape.cluster = kPairCluster;
  return LaunchKernel(GemmPairAddNormKernel<S>, shape, stream, args);
}

}  // namespace

cudaError_t LaunchGemmPairAddNormSm90(const GemmPairAddNormParams& params, DType dtype,
                                      cudaStream_t stream) {
  if (params.b.n != 768 || params.x.cols != params.b.n || params.a.n != params.b.k ||
      params.y.cols > params.a.k_padded) {
    return cudaErrorInvalidValue;
  }
  if (params.x.rows == 0) return cudaSuccess;
  const int share = params.b.k_padded / kPairCluster;
  return VisitFloat(dtype, [&]<typename T>() -> cudaError_t {
    return VisitAtLeast<24, 40, 56>((share + 2) / 3, [&]<int kFirstN>() {
      return Launch<PairShape<T, 128, 3, kFirstN>>(params, stream);
    });
  });
}

}  // namespace flashsvd
