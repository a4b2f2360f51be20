#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/gemm_mainloop.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

// y = activation(x W' + bias), compute capability 9.0.
//   x: [n, k]   w: [m, k]   y: [n, m]
//
// As many blocks as multiprocessors walk over the tiles, those of one row band next to each other.
// The producer runs ahead into the next tile while the consumers write theirs: each warp passes its
// 16 rows, 64 columns at a time, through shared memory, to write whole 128-byte pieces of rows.
//
// Any n, m and k. Tiles (rows x cols): 64 x {48, 128, 192} and 128 x {96, 128, 192, 240}; with an
// activation only 64 x 48 and 128 x 128. `depth` and `stages` are not read. y may start at any even
// address; unless it is a multiple of 16, writes are slow.

namespace flashsvd {
namespace {

struct Args {
  CUtensorMap x;
  CUtensorMap w;
  const float* bias;
  void* y;
  int64_t y_stride;
  int n;
  int m;
  int k_padded;
};

constexpr int kChunk = 64;               // columns that a warp stages at a time
constexpr int kStagePitch = kChunk + 8;  // elements; rows then start in different banks
constexpr int kStagingBytes = 16 * kStagePitch * 2;

// Shared memory.
template <class Loop>
struct Layout {
  static constexpr int kStaging = Loop::kRingBytes;
  static constexpr int kBias = kStaging + 4 * Loop::kGroups * kStagingBytes;  // [groups][2][kN]
  static constexpr int kBarriers = kBias + 2 * Loop::kGroups * Loop::kN * 4;
  static constexpr int kBytes = kBarriers + sizeof(typename Loop::Barriers);
  static_assert(kBytes <= 227 * 1024);
};

// Writes 16 rows x `cols` columns (0 to kChunk) of `staged` to y, clipped to `rows` rows.
// aligned: y is 16-byte aligned.
template <class T>
__device__ __forceinline__ void WriteRows(const T* staged, T* y, int64_t stride, int rows, int cols,
                                          bool aligned) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int whole = aligned ? cols & ~7 : 0;  // columns in units of 16 bytes
  const int col = lane % 8 * 8;
  const T* from = staged + lane / 8 * kStagePitch + col;
  T* to = y + lane / 8 * stride + col;
#pragma unroll
  for (int i = 0; i < 16; i += 4) {
    if (lane / 8 + i < rows && col < whole) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    }
    from += 4 * kStagePitch;
    to += 4 * stride;
  }
  if (whole == cols) return;
#pragma unroll 1
  for (int row = 0; row < min(rows, 16); ++row) {
    for (int c = whole + lane; c < cols; c += 32) {
      y[row * stride + c] = staged[row * kStagePitch + c];
    }
  }
}

// y = activation(acc + bias) for this warp's 16 rows x kN columns, clipped to rows x cols.
// bias: [kN] of this warpgroup in shared memory.
template <class T, int kN, Activation kActivation>
__device__ __forceinline__ void WriteTile(const float (&acc)[kN / 2], const float* bias, T* staging,
                                          T* y, int64_t stride, int rows, int cols) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  T* place = staging + (lane / 8 % 2 * 8 + lane % 8) * kStagePitch + lane / 16 * 8;
  const bool aligned = reinterpret_cast<uintptr_t>(y) % 16 == 0;
#pragma unroll
  for (int chunk = 0; chunk < kN; chunk += kChunk) {
#pragma unroll
    for (int c = chunk; c < chunk + kChunk && c < kN; c += 16) {
      uint32_t r[4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const auto b = *reinterpret_cast<const float2*>(bias + c + 8 * j + 2 * (lane % 4));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float* a = acc + c / 2 + 4 * j + 2 * i;
          r[2 * j + i] =
              Pack2<T>(Activate<kActivation>(a[0] + b.x), Activate<kActivation>(a[1] + b.y));
        }
      }
      StoreMatrix4(place + c - chunk, r[0], r[1], r[2], r[3]);
    }
    __syncwarp();
    const int wide = kN - chunk < kChunk ? kN - chunk : kChunk;
    WriteRows(staging, y + chunk, stride, rows, max(min(cols - chunk, wide), 0), aligned);
    __syncwarp();
  }
}

// The tiles of y; those of one band of rows follow each other, so that blocks side by side share x.
template <class Loop>
struct Tiles {
  int cols;  // tiles beside each other
  int end;

  explicit __device__ Tiles(const Args& args)
      : cols((args.m + Loop::kCols - 1) / Loop::kCols),
        end((args.n + Loop::kRows - 1) / Loop::kRows * cols) {}
  __device__ int FirstRow(int tile) const { return tile / cols * Loop::kRows; }
  __device__ int FirstCol(int tile) const { return tile % cols * Loop::kCols; }
};

template <class Loop, Activation kActivation>
__device__ __forceinline__ void Consume(const Args& args, char* shared,
                                        typename Loop::Barriers* barriers) {
  using T = typename Loop::Element;
  using L = Layout<Loop>;
  constexpr int kN = Loop::kN;
  constexpr int kBiasPerThread = (kN + 127) / 128;
  const Tiles<Loop> tiles(args);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int group = Loop::Group();
  const int warp_row = group / Loop::kColGroups * 64 + warp % 4 * 16;
  const int group_col = group % Loop::kColGroups * kN;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  T* staging = reinterpret_cast<T*>(shared + L::kStaging + warp * kStagingBytes);
  float* both_biases = reinterpret_cast<float*>(shared + L::kBias) + 2 * group * kN;
  typename Loop::Position at;
  int turn = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles.end;
       tile += static_cast<int>(gridDim.x), ++turn) {
    const int row = tiles.FirstRow(tile) + warp_row;
    const int col = tiles.FirstCol(tile) + group_col;
    float thread_bias[kBiasPerThread];  // on its way while the tile is multiplied
#pragma unroll
    for (int i = 0; i < kBiasPerThread; ++i) {
      const int c = col + thread + 128 * i;
      thread_bias[i] = args.bias != nullptr && c < args.m ? args.bias[c] : 0.0f;
    }
    float acc[kN / 2];
    Loop::template Multiply<false>(acc, shared, barriers, at, group, args.k_padded, [] {});

    float* bias = both_biases + turn % 2 * kN;  // slower warps may still read the other
#pragma unroll
    for (int i = 0; i < kBiasPerThread; ++i) {
      if (thread + 128 * i < kN) bias[thread + 128 * i] = thread_bias[i];
    }
    NamedBarrierSync(1 + group, 128);
    WriteTile<T, kN, kActivation>(acc, bias, staging,
                                  static_cast<T*>(args.y) + row * args.y_stride + col,
                                  args.y_stride, args.n - row, args.m - col);
  }
}

template <class Loop, Activation kActivation>
__global__ void __launch_bounds__(Loop::kThreads, 1) GemmKernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) char shared[];
  auto* barriers = reinterpret_cast<typename Loop::Barriers*>(shared + Layout<Loop>::kBarriers);
  const Tiles<Loop> tiles(args);
  const bool producer = threadIdx.x == Loop::kThreads - 32;

  int prefetched = 0;
  if (producer) {
    Loop::Init(barriers);
    BarrierInitFence();
    prefetched = Loop::Prefetch(shared, barriers, &args.w, args.k_padded,
                                tiles.FirstCol(static_cast<int>(blockIdx.x)));
    PrefetchTensorMap(&args.x);
  }
  __syncthreads();
  AllowSuccessor();
  if (threadIdx.x < Loop::kThreads - 32) {
    WaitForPredecessor();  // y may still be read
    Consume<Loop, kActivation>(args, shared, barriers);
  } else if (producer) {
    WaitForPredecessor();
    typename Loop::Position at;
    for (int tile = static_cast<int>(blockIdx.x); tile < tiles.end;
         tile += static_cast<int>(gridDim.x)) {
      Loop::Load(shared, barriers, at, &args.x, &args.w, args.k_padded, prefetched,
                 tiles.FirstRow(tile), tiles.FirstCol(tile));
      prefetched = 0;
    }
  }
}

int NumMultiprocessors() {
  static const int count = [] {
    int device = 0;
    int value = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return 0;
    cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device);
    return value;
  }();
  return count;
}

template <class Loop, Activation kActivation>
cudaError_t Launch(const GemmParams& params, cudaStream_t stream) {
  Args args = {};
  cudaError_t error = SwizzledRowsMap(params.x, Loop::kRows, &args.x);
  if (error == cudaSuccess) error = PackedMatrixMap(params.w, Loop::kCols, Loop::kWDepth, &args.w);
  if (error != cudaSuccess) return error;
  args.bias = params.bias;
  args.y = params.y.data;
  args.y_stride = params.y.stride;
  args.n = static_cast<int>(params.y.rows);
  args.m = params.w.n;
  args.k_padded = params.w.k_padded;

  const int tiles =
      (args.n + Loop::kRows - 1) / Loop::kRows * ((args.m + Loop::kCols - 1) / Loop::kCols);
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(std::min(tiles, NumMultiprocessors()));
  shape.block = Loop::kThreads;
  shape.shared_bytes = Layout<Loop>::kBytes;
  return LaunchKernel(GemmKernel<Loop, kActivation>, shape, stream, args);
}

}  // namespace

cudaError_t LaunchGemmSm90(const GemmParams& params, DType dtype, const GemmTile& tile,
                           cudaStream_t stream) {
  if (params.x.cols > params.w.k_padded || params.y.cols != params.w.n) {
    return cudaErrorInvalidValue;
  }
  if (params.y.rows == 0) return cudaSuccess;
  return VisitFloat(dtype, [&]<typename T>() -> cudaError_t {
    const auto with_activation = [&]<class Loop>() {
      return VisitActivation(params.activation, [&]<Activation kActivation>() {
        return Launch<Loop, kActivation>(params, stream);
      });
    };
    const auto plain = [&]<class Loop>() {
      return params.activation == Activation::kNone
                 ? Launch<Loop, Activation::kNone>(params, stream)
                 : cudaErrorInvalidValue;
    };
    switch (1000 * tile.rows + tile.cols) {
      case 64'048:
        return with_activation.template operator()<GemmMainloop<T, 48, 1, 1, 8, 8, 64>>();
      case 64'128:
        return plain.template operator()<GemmMainloop<T, 128, 1, 1, 8, 8, 64>>();
      case 64'192:
        return plain.template operator()<GemmMainloop<T, 192, 1, 1, 6, 6, 64>>();
      case 128'128:
        return with_activation.template operator()<GemmMainloop<T, 128, 2, 1, 6, 6, 64>>();
      case 128'096:
        return plain.template operator()<GemmMainloop<T, 96, 2, 1, 7, 7, 64>>();
      case 128'192:
        return plain.template operator()<GemmMainloop<T, 192, 2, 1, 5, 5, 64>>();
      case 128'240:
        return plain.template operator()<GemmMainloop<T, 240, 2, 1, 4, 4, 64>>();
      default:
        return cudaErrorInvalidValue;
    }
  });
}

}  // namespace flashsvd
