#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "kernels/cuda/add_norm_epilogue.cuh"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/gemm_mainloop.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

// x = LayerNorm(x + y W' + bias), compute capability 9.0.
//   y: [n, k]   w: [d, k]   x: [n, d] in, out
//
// A cluster of d / kCols blocks owns kRows whole rows of x, each block kCols of their columns, and
// walks over row tiles. The product stays in the accumulators, where residual and bias are added;
// the row statistics, in float32, go round the cluster once, as means and sums of squares about
// them per 64 or 128 columns; the accumulators are normalised and leave through the shared memory
// that held the residual. Whatever the tile, the statistics are merged in the same order, so the
// result does not depend on it.
//
// Each consumer warp keeps its own 16 rows of x: it loads them, rewrites them in place and writes
// them out.
//
// Shapes: d a multiple of 128, at most 1024; any n and k. Tiles: rows 64, cols 128, 192, 256, 384
// or 512, cluster == d / cols, at most 8. Anything else is refused, and so is a tile that does not
// fit shared memory. bias, gamma and beta start at 16-byte aligned addresses.

namespace flashsvd {
namespace {

constexpr int kMaxCluster = 8;             // what every device can place
constexpr int kPrefetchBytes = 96 * 1024;  // of weights; all that the ring holds is slower

struct Args {
  CUtensorMap y;
  CUtensorMap w;
  CUtensorMap x;  // boxes of 16 rows x 64 columns
  void* x_data;
  int64_t x_stride;
  const float* bias;
  const float* gamma;
  const float* beta;
  float epsilon;
  int n;
  int d;
  float inverse_d;
  int k_padded;
};

// Shared memory.
template <class Loop>
struct Layout {
  struct alignas(16) Barriers {
    typename Loop::Barriers ring;
    uint64_t x[4 * Loop::kGroups];  // a warp's rows of x are there
    uint64_t params;                // bias, gamma and beta are there
    uint64_t stats[2];              // the tile's statistics are there; by tile parity
  };
  static constexpr int kWarpXBytes = 16 * Loop::kN * 2;
  static constexpr int kX = Loop::kRingBytes;
  static constexpr int kXBytes = 4 * Loop::kGroups * kWarpXBytes;
  static constexpr int kParams = kX + kXBytes;  // bias, gamma, beta
  static constexpr int kBarriers = kParams + 3 * Loop::kCols * 4;
  static constexpr int kStats = kBarriers + sizeof(Barriers);  // [2][d / kUnit][kRows] Moments
  static constexpr int Bytes(int d) { return kStats + 2 * (d / kUnit<Loop>)*Loop::kRows * 8; }
};

template <class Loop>
__device__ __forceinline__ void Produce(const Args& args, char* ring,
                                        typename Loop::Barriers* barriers, int first_tile,
                                        int tile_step, int first_col, int prefetched) {
  typename Loop::Position at;
  for (int row = first_tile * Loop::kRows; row < args.n; row += tile_step * Loop::kRows) {
    Loop::Load(ring, barriers, at, &args.y, &args.w, args.k_padded, prefetched, row, first_col);
    prefetched = 0;
  }
}

template <class Loop>
__device__ __forceinline__ void Consume(const Args& args, char* shared, int first_tile,
                                        int tile_step, uint32_t rank, uint32_t cluster) {
  using T = typename Loop::Element;
  using L = Layout<Loop>;
  static_assert(Loop::kRowGroups == 1);
  constexpr int kN = Loop::kN;
  constexpr bool kRoomy = kN < 256;  // for the widest tile registers are short
  auto* barriers = reinterpret_cast<typename L::Barriers*>(shared + L::kBarriers);
  auto* all_stats = reinterpret_cast<Moments*>(shared + L::kStats);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int group = Loop::Group();
  const int group_col = group * kN;  // in the block
  const int first_col = static_cast<int>(rank) * Loop::kCols + group_col;
  const int warp_row = warp % 4 * 16;  // in the tile
  const int row = warp_row + lane / 4;
  const float* params = reinterpret_cast<const float*>(shared + L::kParams) + group_col;
  const int stats_size = args.d / kUnit<Loop> * Loop::kRows;
  const WarpRows<T, kN> x(shared + L::kX + warp * L::kWarpXBytes);

  BarrierWait(&barriers->params, 0);
  WaitForPredecessor();
  AllowSuccessor();
  typename Loop::Position at;
  int turn = 0;
  for (int tile_row = first_tile * Loop::kRows; tile_row < args.n;
       tile_row += tile_step * Loop::kRows, ++turn) {
    float acc[kN / 2];
    const auto load_x = [&] {
      if (lane == 0) x.Load(&args.x, tile_row + warp_row, first_col, &barriers->x[warp]);
      __syncwarp();
    };
    if constexpr (kRoomy) {
      StartWithBias<kN>(acc, params);
      PinRegisters(acc);
      WgmmaFence();  // or the compiler waits for every product by itself
      const int x_step = min(Loop::Steps(args.k_padded) - 1, 1);  // y is needed first
      Loop::template Multiply<true>(acc, shared, &barriers->ring, at, group, args.k_padded, false,
                                    [&](int step) {
                                      if (step == x_step) load_x();
                                    });
    } else {
      load_x();
      Loop::template Multiply<false>(acc, shared, &barriers->ring, at, group, args.k_padded, false,
                                     [](int) {});
    }

    const int parity = turn % 2;
    uint64_t* stats_barrier = &barriers->stats[parity];
    if (cluster > 1 && threadIdx.x == 0) {
      BarrierExpect(stats_barrier, stats_size * sizeof(Moments));
    }
    __syncwarp();
    if (cluster > 1 && turn == 0) ClusterWait();
    BarrierWait(&barriers->x[warp], turn % 2);
    AddResidual<T, kN, !kRoomy>(acc, x, params);
    Moments* stats = all_stats + parity * stats_size;
    SendMoments<Loop>(acc, stats, stats_barrier, first_col / kUnit<Loop>, row,
                      static_cast<int>(cluster));
    if (cluster == 1) {
      NamedBarrierSync(1, 128 * Loop::kGroups);
    } else {
      BarrierWaitCluster(stats_barrier, turn / 2 % 2);
    }
    float scale[2];
    float shift[2];
    Moments rows[2];
    PairMoments<Loop>(rows, stats, row, args.d, args.inverse_d);
    ScaleAndShift(rows, args.inverse_d, args.epsilon, scale, shift);
#pragma unroll
    for (int p = 0; p < kN / 16; ++p) {
      NormalizeUnit<T, kN>(p, acc, scale, shift, params + Loop::kCols, params + 2 * Loop::kCols, x);
    }
    __syncwarp();
    const int64_t first_row = tile_row + warp_row;
    x.Store(static_cast<T*>(args.x_data) + first_row * args.x_stride + first_col, args.x_stride,
            args.n - tile_row - warp_row);
    // The next tile's rows are copied to where these were. The fence is slow, so not without need.
    if (tile_row + tile_step * Loop::kRows < args.n) FenceAsyncProxy();
    __syncwarp();
  }
}

template <class Loop>
__global__ void __launch_bounds__(Loop::kThreads, 1)
    GemmAddNormKernel(const __grid_constant__ Args args, int cluster) {
  using L = Layout<Loop>;
  extern __shared__ __align__(1024) char shared[];
  auto* barriers = reinterpret_cast<typename L::Barriers*>(shared + L::kBarriers);
  const uint32_t rank = ClusterRank();
  const int first_tile = static_cast<int>(blockIdx.x) / cluster;
  const int tile_step = static_cast<int>(gridDim.x) / cluster;
  const int first_col = static_cast<int>(rank) * Loop::kCols;
  const bool producer = threadIdx.x == Loop::kLoader;

  float* params = reinterpret_cast<float*>(shared + L::kParams);
  int prefetched = 0;
  if (producer) {
    Loop::Init(&barriers->ring);
    for (uint64_t& barrier : barriers->x) BarrierInit(&barrier, 1);
    for (uint64_t& barrier : barriers->stats) BarrierInit(&barrier, 1);
    BarrierInit(&barriers->params, 1);
    BarrierInitFence();
    prefetched =
        Loop::Prefetch(shared, &barriers->ring, &args.w, args.k_padded, first_col, kPrefetchBytes);
    PrefetchTensorMap(&args.y);
    PrefetchTensorMap(&args.x);
    LoadParams<Loop>(args, params, first_col, &barriers->params);
  }
  if (args.bias == nullptr) {
    for (int i = threadIdx.x; i < Loop::kCols; i += Loop::kThreads) params[i] = 0;
  }
  // The cluster's barriers are ready before anyone sends to them: Consume waits for that. Nothing
  // remote is under way when a block ends: it has received all that its peers send.
  __syncwarp();
  __syncthreads();
  if (cluster > 1) ClusterArriveRelaxed();
  if (threadIdx.x < Loop::kConsumers) {
    Consume<Loop>(args, shared, first_tile, tile_step, rank, static_cast<uint32_t>(cluster));
  } else if (producer) {
    WaitForPredecessor();
    AllowSuccessor();  // not before: see LastWrite
    Produce<Loop>(args, shared, &barriers->ring, first_tile, tile_step, first_col, prefetched);
  }
}

// How many clusters of `cluster` blocks are resident at once; asked of the driver once for a
// device.
template <class Loop>
cudaError_t ResidentClusters(int cluster, int d, int* count) {
  constexpr int kDevices = 16;  // others are asked every time
  static std::atomic<int> known[kDevices][kMaxCluster + 1] = {};
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  *count = device < kDevices ? known[device][cluster].load(std::memory_order_relaxed) : 0;
  if (*count > 0) return cudaSuccess;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = static_cast<unsigned>(cluster);
  config.blockDim = Loop::kThreads;
  config.dynamicSmemBytes = Layout<Loop>::Bytes(d);
  config.attrs = &attribute;
  config.numAttrs = 1;
  error = cudaOccupancyMaxActiveClusters(count, GemmAddNormKernel<Loop>, &config);
  if (error != cudaSuccess) return error;
  if (*count == 0) return cudaErrorInvalidValue;
  if (device < kDevices) known[device][cluster].store(*count, std::memory_order_relaxed);
  return cudaSuccess;
}

template <class Loop>
cudaError_t Launch(const GemmAddNormParams& params, int cluster, cudaStream_t stream) {
  const int d = params.w.n;
  Args args;
  cudaError_t error = SwizzledRowsMap(params.y, Loop::kRows, &args.y);
  if (error == cudaSuccess) error = PackedMatrixMap(params.w, Loop::kCols, Loop::kWDepth, &args.w);
  if (error == cudaSuccess) error = SwizzledRowsMap(params.x, 16, &args.x);
  if (error != cudaSuccess) return error;
  args.x_data = params.x.data;
  args.x_stride = params.x.stride;
  args.bias = params.bias;
  args.gamma = params.norm.gamma;
  args.beta = params.norm.beta;
  args.epsilon = params.norm.epsilon;
  args.n = static_cast<int>(params.x.rows);
  args.d = d;
  args.inverse_d = 1.0f / static_cast<float>(d);
  args.k_padded = params.w.k_padded;

  const int shared_bytes = Layout<Loop>::Bytes(d);
  error = cudaFuncSetAttribute(GemmAddNormKernel<Loop>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               shared_bytes);
  int resident = 0;
  if (error == cudaSuccess) error = ResidentClusters<Loop>(cluster, d, &resident);
  if (error != cudaSuccess) return error;
  const int tiles = (args.n + Loop::kRows - 1) / Loop::kRows;
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(cluster * std::min(tiles, resident));
  shape.block = Loop::kThreads;
  shape.shared_bytes = static_cast<size_t>(shared_bytes);
  shape.cluster = cluster;
  return LaunchKernel(GemmAddNormKernel<Loop>, shape, stream, args, cluster);
}

}  // namespace

cudaError_t LaunchGemmAddNormSm90(const GemmAddNormParams& params, DType dtype,
                                  const AddNormTile& tile, cudaStream_t stream) {
  const int d = params.w.n;
  if (d % 128 != 0 || d > 1024 || tile.cluster < 1 || tile.cluster > kMaxCluster ||
      tile.cols * tile.cluster != d || tile.rows != 64 || params.x.cols != d ||
      params.y.cols > params.w.k_padded) {
    return cudaErrorInvalidValue;
  }
  if (params.x.rows == 0) return cudaSuccess;
  return VisitFloat(dtype, [&]<typename T>() -> cudaError_t {
    switch (tile.cols) {
      case 128:
        return Launch<GemmMainloop<T, 64, 1, 2, 6, 6, 64>>(params, tile.cluster, stream);
      case 192:
        return Launch<GemmMainloop<T, 64, 1, 3, 5, 5, 64>>(params, tile.cluster, stream);
      case 256:
        return Launch<GemmMainloop<T, 128, 1, 2, 4, 4, 64>>(params, tile.cluster, stream);
      case 384:
        return Launch<GemmMainloop<T, 128, 1, 3, 3, 6, 32>>(params, tile.cluster, stream);
      case 512:
        return Launch<GemmMainloop<T, 256, 1, 2, 2, 4, 32>>(params, tile.cluster, stream);
      default:
        return cudaErrorInvalidValue;
    }
  });
}

}  // namespace flashsvd
