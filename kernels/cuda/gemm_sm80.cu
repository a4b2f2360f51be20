// y = activation(x W' + bias) with mma.sync m16n8k16 and cp.async, for any device from 8.0 on and
// any n, k, m. Tiles (rows, cols, depth, stages), and what they are for:
//   128, 128, 64, 3   many rows (two blocks a multiprocessor need 192 KiB of shared memory)
//   128, 128, 32, 4   the same with less shared memory (128 KiB)
//   64, 64, 64, 4     too few tiles of 128 x 128 for all multiprocessors
//   32, 64, 128, 3    a few hundred rows and fewer
//
// A block walks k through a ring of kStages buffers. Fragments of the next 16 of k are loaded while
// the current ones are multiplied. The epilogue goes through shared memory in float32, warp by
// warp, so that y is written 16 bytes at a time.

#include <algorithm>

#include "kernels/cuda/activation_switch.cuh"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/mma_operand.cuh"
#include "kernels/cuda/row_unit.cuh"

namespace flashsvd {
namespace {

// kMinBlocks: blocks that the registers of a multiprocessor are shared out for.
template <int kRows_, int kCols_, int kDepth_, int kStages_, int kWarpRows_, int kWarpCols_,
          int kMinBlocks_>
struct Shape {
  static constexpr int kRows = kRows_;  // of y, a block
  static constexpr int kCols = kCols_;
  static constexpr int kDepth = kDepth_;
  static constexpr int kStages = kStages_;
  static constexpr int kWarpRows = kWarpRows_;  // of y, a warp
  static constexpr int kWarpCols = kWarpCols_;

  static constexpr int kWarps = kRows / kWarpRows * (kCols / kWarpCols);
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kUnits = kDepth / 8;
  using LayoutX = RowLayout<kUnits>;
  using LayoutW = PackedLayout<kCols>;
  static constexpr int kElementsX = kRows * LayoutX::kRowUnits * 8;
  static constexpr int kStageElements = kElementsX + kCols * kDepth;
  // A warp's 16 rows of float32 on their way out; padded against bank conflicts.
  static constexpr int kStagingStride = kWarpCols + 8;
  static constexpr int kStagingElements = 16 * kStagingStride;
  static constexpr size_t kSharedBytes =
      std::max(size_t{2} * kStages * kStageElements, size_t{4} * kWarps * kStagingElements);
  static constexpr int kMinBlocks = kMinBlocks_;
};

// The fragments of one k-step, and a warp's accumulator.
template <class S>
struct Fragments {
  uint32_t a[S::kWarpRows / 16][4];
  uint32_t b[S::kWarpCols / 16][4];

  template <class T>
  __device__ __forceinline__ void Load(const T* stage, int row, int col, int unit) {
#pragma unroll
    for (int i = 0; i < S::kWarpRows / 16; ++i) {
      LoadFragmentA<typename S::LayoutX>(a[i], stage, row + 16 * i, unit);
    }
#pragma unroll
    for (int j = 0; j < S::kWarpCols / 16; ++j) {
      LoadFragmentsB<typename S::LayoutW>(b[j], stage + S::kElementsX, col + 16 * j, unit);
    }
  }
};

template <class S>
using Accumulator = float[S::kWarpRows / 16][S::kWarpCols / 8][4];

template <class T, class S>
__device__ __forceinline__ void Multiply(Accumulator<S>& sum, const Fragments<S>& f) {
#pragma unroll
  for (int i = 0; i < S::kWarpRows / 16; ++i) {
#pragma unroll
    for (int j = 0; j < S::kWarpCols / 16; ++j) {
      Mma16x8x16<T>(sum[i][2 * j], f.a[i], f.b[j][0], f.b[j][1]);
      Mma16x8x16<T>(sum[i][2 * j + 1], f.a[i], f.b[j][2], f.b[j][3]);
    }
  }
}

// sum = x W' + bias for the block's tile. Only weights are read before the predecessor is done.
template <class T, class S>
__device__ __forceinline__ void Mainloop(Accumulator<S>& sum, T* ring, const GemmParams& p,
                                         int64_t first_row, int first_col, int warp_row,
                                         int warp_col) {
  const int steps = (static_cast<int>(p.x.cols) + S::kDepth - 1) / S::kDepth;
  const auto copy_x = [&](int step, T* stage) {
    CopyTile<S::kRows, S::kUnits, S::kThreads>(stage, p.x, first_row, step * S::kDepth);
  };
  const auto copy_w = [&](int step, T* stage) {
    CopyTile<S::kCols, S::kUnits, S::kThreads>(stage + S::kElementsX, p.w, first_col,
                                               step * S::kUnits);
  };
#pragma unroll
  for (int s = 0; s < S::kStages - 1; ++s) copy_w(s, ring + s * S::kStageElements);
#pragma unroll
  for (int i = 0; i < S::kWarpRows / 16; ++i) {
    StartWithBias(sum[i], p.bias, first_col + warp_col, static_cast<int>(p.y.cols));
  }
  WaitForPredecessor();
#pragma unroll
  for (int s = 0; s < S::kStages - 1; ++s) {
    copy_x(s, ring + s * S::kStageElements);
    CopyAsyncCommit();
  }
  CopyAsyncWait<S::kStages - 2>();
  __syncthreads();

  T* const ring_end = ring + S::kStages * S::kStageElements;
  const T* read = ring;
  T* write = ring_end - S::kStageElements;
  Fragments<S> fragments[2];
  fragments[0].Load(read, warp_row, warp_col, 0);
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int k = 0; k < S::kDepth / 16; ++k) {
      if (k == S::kDepth / 16 - 1) {
        // Every warp has this step's last fragments, and the next step has arrived.
        CopyAsyncWait<S::kStages - 2>();
        __syncthreads();
        read += S::kStageElements;
        if (read == ring_end) read = ring;
      }
      fragments[(k + 1) % 2].Load(read, warp_row, warp_col, (k + 1) % (S::kDepth / 16) * 2);
      if (k == 0) {
        if (step + S::kStages - 1 < steps) {
          copy_x(step + S::kStages - 1, write);
          copy_w(step + S::kStages - 1, write);
        }
        CopyAsyncCommit();
        write += S::kStageElements;
        if (write == ring_end) write = ring;
      }
      Multiply<T, S>(sum, fragments[k % 2]);
    }
  }
  AllowSuccessor();
  CopyAsyncWait<0>();
  __syncthreads();  // the ring may be overwritten
}

// Writes activation(sum), the warp's rows from first_row and columns from first_col; `staging` is
// the warp's own.
template <class T, class S>
__device__ __forceinline__ void StoreTile(const Accumulator<S>& sum, float* staging,
                                          const GemmParams& p, int64_t first_row, int first_col) {
  constexpr int kUnitsOfRow = S::kWarpCols / kUnit;
  constexpr int kUnitsOfLane = 16 * kUnitsOfRow / 32;
  const int lane = threadIdx.x % 32;
  const int cols = static_cast<int>(p.y.cols);
  // A column slice may start anywhere.
  const bool aligned = reinterpret_cast<uintptr_t>(p.y.data) % 16 == 0 && p.y.stride % kUnit == 0;
#pragma unroll
  for (int i = 0; i < S::kWarpRows / 16; ++i) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < S::kWarpCols / 8; ++j) {
      float* target = staging + lane / 4 * S::kStagingStride + 8 * j + lane % 4 * 2;
      *reinterpret_cast<float2*>(target) = make_float2(sum[i][j][0], sum[i][j][1]);
      *reinterpret_cast<float2*>(target + 8 * S::kStagingStride) =
          make_float2(sum[i][j][2], sum[i][j][3]);
    }
    __syncwarp();
    float v[kUnitsOfLane][kUnit];
#pragma unroll
    for (int k = 0; k < kUnitsOfLane; ++k) {
      const int u = lane + 32 * k;
      LoadFloatUnit<true>(v[k], staging + u / kUnitsOfRow * S::kStagingStride,
                          u % kUnitsOfRow * kUnit, S::kWarpCols);
    }
    ActivateAll<T, kUnitsOfLane * kUnit>(v[0], p.activation);
#pragma unroll
    for (int k = 0; k < kUnitsOfLane; ++k) {
      const int u = lane + 32 * k;
      const int64_t row = first_row + 16 * i + u / kUnitsOfRow;
      if (row < p.y.rows) {
        StoreUnit<false>(static_cast<T*>(p.y.data) + row * p.y.stride,
                         first_col + u % kUnitsOfRow * kUnit, cols, v[k], aligned);
      }
    }
  }
}

// Grid: (tiles of columns, tiles of rows), so that blocks running at the same time share rows of x.
template <class T, class S>
__global__ void __launch_bounds__(S::kThreads, S::kMinBlocks) GemmKernel(GemmParams p) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int warp = threadIdx.x / 32;
  const int warp_row = warp % (S::kRows / S::kWarpRows) * S::kWarpRows;
  const int warp_col = warp / (S::kRows / S::kWarpRows) * S::kWarpCols;
  const int64_t first_row = int64_t{blockIdx.y} * S::kRows;
  const int first_col = blockIdx.x * S::kCols;

  Accumulator<S> sum;
  Mainloop<T, S>(sum, reinterpret_cast<T*>(shared), p, first_row, first_col, warp_row, warp_col);
  StoreTile<T, S>(sum, reinterpret_cast<float*>(shared) + warp * S::kStagingElements, p,
                  first_row + warp_row, first_col + warp_col);
}

// The kernel of one of the tiles, or cudaErrorInvalidValue.
template <class T, class... Shapes>
cudaError_t LaunchTile(const GemmParams& params, const GemmTile& tile, cudaStream_t stream) {
  cudaError_t result = cudaErrorInvalidValue;
  const auto try_shape = [&]<class S>() {
    if (tile.rows != S::kRows || tile.cols != S::kCols || tile.depth != S::kDepth ||
        tile.stages != S::kStages) {
      return false;
    }
    LaunchShape shape;
    shape.grid = dim3(static_cast<unsigned>((params.y.cols + S::kCols - 1) / S::kCols),
                      static_cast<unsigned>((params.y.rows + S::kRows - 1) / S::kRows));
    if (shape.grid.y > 65535) return false;
    shape.block = S::kThreads;
    shape.shared_bytes = S::kSharedBytes;
    result = LaunchKernel(GemmKernel<T, S>, shape, stream, params);
    return true;
  };
  (void)(try_shape.template operator()<Shapes>() || ...);
  return result;
}

}  // namespace

cudaError_t LaunchGemmSm80(const GemmParams& params, DType dtype, const GemmTile& tile,
                           cudaStream_t stream) {
  if (params.y.rows <= 0 || params.y.cols <= 0) return cudaSuccess;
  return VisitFloat(dtype, [&]<typename T>() {
    return LaunchTile<T, Shape<128, 128, 64, 3, 64, 64, 2>, Shape<128, 128, 32, 4, 64, 64, 2>,
                      Shape<64, 64, 64, 4, 32, 32, 3>, Shape<32, 64, 128, 3, 16, 32, 3>>(
        params, tile, stream);
  });
}

}  // namespace flashsvd
