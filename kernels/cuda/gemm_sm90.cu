#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/gemm_mainloop.cuh"
#include "kernels/cuda/gemm_store.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"

// y = activation(x W' + bias), compute capability 9.0.
//   x: [n, k]   w: [m, k]   y: [n, m]
//
// Tiles of 64 and 128 rows: as many blocks as multiprocessors walk over the tiles, those of one row
// band next to each other. The producer runs ahead into the next tile while the consumers write
// theirs.
//
// Tiles of 192 rows: three warpgroups share each column of W, which makes the tile that needs least
// of the multiprocessor's two narrow paths, from L2 and from shared memory to the tensor cores. Its
// loads and its epilogue are exposed, but for the warpgroups' turns at the end: it is for shapes
// that it covers in one wave.
//
// Any n, m and k. Tiles (rows x cols): 64 x {48, 128, 192}, 128 x {96, 104, 128, 192, 200, 240} and
// 192 x {192, 240}; with an activation only 64 x 48 and 128 x 128. `depth` and `stages` are not
// read. y may start at any even address; unless it is a multiple of 16, writes are slow.

namespace flashsvd {
namespace {

constexpr int kPrefetchBytes = 48 * 1024;  // of weights; of 32 KiB to the whole ring the fastest

struct Args {
  CUtensorMap x;
  CUtensorMap w;
  const float* bias;
  void* y;
  int64_t y_stride;
  int n;
  int m;
  int k_padded;
  bool in_turn;
  bool x_settled;
};

// Shared memory. Without a producer, warps stage y where their rows of x were.
template <class Loop>
struct Layout {
  static constexpr int kStaging = Loop::kRingBytes;
  static constexpr int kBias =
      kStaging + (Loop::kProducer ? 4 * Loop::kGroups * kStagedBytes : 0);  // [groups][2][kN]
  static constexpr int kBarriers = kBias + 2 * Loop::kGroups * Loop::kN * 4;
  static constexpr int kBytes = kBarriers + sizeof(typename Loop::Barriers);
  static_assert(kBytes <= 227 * 1024);
};

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

// What a consumer warpgroup does with its tiles.
template <class Loop, Activation kActivation>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const Args& args, char* shared)
      : args_(args),
        shared_(shared),
        group_(Loop::Group()),
        warp_row_(group_ / Loop::kColGroups * 64 + static_cast<int>(threadIdx.x) / 32 % 4 * 16) {}

  // The tile at (tile_row, tile_col), the turn-th of this block.
  template <class BeforeStep>
  __device__ __forceinline__ void Run(typename Loop::Barriers* barriers, int tile_row, int tile_col,
                                      int turn, const BeforeStep& before_step) {
    constexpr int kBiasPerThread = (kN + 127) / 128;
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const int row = tile_row + warp_row_;
    const int col = tile_col + group_ % Loop::kColGroups * kN;
    float thread_bias[kBiasPerThread];  // on its way while the tile is multiplied
#pragma unroll
    for (int i = 0; i < kBiasPerThread; ++i) {
      const int c = col + thread + 128 * i;
      thread_bias[i] = args_.bias != nullptr && c < args_.m ? args_.bias[c] : 0.0f;
    }
    float acc[kN / 2];
    Loop::Multiply(acc, shared_, barriers, at_, group_, args_.k_padded, args_.in_turn, before_step);

    // The other half may still be read by slower warps.
    float* bias =
        reinterpret_cast<float*>(shared_ + Layout<Loop>::kBias) + (2 * group_ + turn % 2) * kN;
#pragma unroll
    for (int i = 0; i < kBiasPerThread; ++i) {
      if (thread + 128 * i < kN) bias[thread + 128 * i] = thread_bias[i];
    }
    NamedBarrierSync(1 + group_, 128);
    if (turn == 0) WaitForPredecessor();  // y may still be read
    WriteTile<T, kN, kActivation>(
        acc, bias, [&](int i) { return Staging(i); },
        static_cast<T*>(args_.y) + row * args_.y_stride + col, args_.y_stride, args_.n - row,
        args_.m - col);
  }

 private:
  using T = typename Loop::Element;
  static constexpr int kN = Loop::kN;

  __device__ char* Staging(int i) const {
    if constexpr (Loop::kProducer) {
      return shared_ + Layout<Loop>::kStaging + static_cast<int>(threadIdx.x) / 32 * kStagedBytes;
    } else {
      // Nobody else reads these rows of x, and this warpgroup is done with all of them.
      static_assert(kN <= kStagedCols * Loop::kXSlots);
      return shared_ + i * Loop::kXBytes + warp_row_ * 128;
    }
  }

  const Args& args_;
  char* shared_;
  int group_;
  int warp_row_;  // the warp's first row in the tile
  typename Loop::Position at_;
};

// Initialises the barriers and returns, in the loading thread, how many steps of the first tile
// have their weights under way.
template <class Loop>
__device__ __forceinline__ int Start(const Args& args, char* shared,
                                     typename Loop::Barriers* barriers, int first_col) {
  int count = 0;
  if (threadIdx.x == Loop::kLoader) {
    Loop::Init(barriers);
    BarrierInitFence();
    count = Loop::Prefetch(shared, barriers, &args.w, args.k_padded, first_col, kPrefetchBytes);
    PrefetchTensorMap(&args.x);
  }
  __syncthreads();
  return count;
}

template <class Loop, Activation kActivation>
__global__ void __launch_bounds__(Loop::kThreads, 1) GemmKernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) char shared[];
  auto* barriers = reinterpret_cast<typename Loop::Barriers*>(shared + Layout<Loop>::kBarriers);
  const Tiles<Loop> tiles(args);
  const int first = static_cast<int>(blockIdx.x);
  const int step = static_cast<int>(gridDim.x);
  int prefetched = Start<Loop>(args, shared, barriers, tiles.FirstCol(first));
  if (threadIdx.x < Loop::kConsumers) {
    Consumer<Loop, kActivation> consumer(args, shared);
    int turn = 0;
    for (int tile = first; tile < tiles.end; tile += step, ++turn) {
      consumer.Run(barriers, tiles.FirstRow(tile), tiles.FirstCol(tile), turn, [](int) {});
    }
  } else if (threadIdx.x == Loop::kLoader) {
    if (!args.x_settled) WaitForPredecessor();
    AllowSuccessor();
    typename Loop::Position at;
    for (int tile = first; tile < tiles.end; tile += step) {
      Loop::Load(shared, barriers, at, &args.x, &args.w, args.k_padded, prefetched,
                 tiles.FirstRow(tile), tiles.FirstCol(tile));
      prefetched = 0;
    }
  }
}

// One tile in a block, loaded by its last warpgroup.
template <class Loop>
__global__ void __launch_bounds__(Loop::kThreads, 1)
    OneTileKernel(const __grid_constant__ Args args) {
  constexpr int kSlots = Loop::kWSlots;
  constexpr int kAhead = kSlots - 2;  // the slot of the step before the last is free everywhere
  extern __shared__ __align__(1024) char shared[];
  auto* barriers = reinterpret_cast<typename Loop::Barriers*>(shared + Layout<Loop>::kBarriers);
  const Tiles<Loop> tiles(args);
  const int row = tiles.FirstRow(static_cast<int>(blockIdx.x));
  const int col = tiles.FirstCol(static_cast<int>(blockIdx.x));
  const int prefetched = Start<Loop>(args, shared, barriers, col);
  AllowSuccessor();
  const int steps = Loop::Steps(args.k_padded);
  if (threadIdx.x == Loop::kLoader) {
    if (!args.x_settled) WaitForPredecessor();
    for (int step = 0; step < min(steps, kSlots); ++step) {
      if (step >= prefetched) Loop::LoadW(shared, barriers, step, &args.w, step, col);
      Loop::LoadX(shared, barriers, step, &args.x, step, row);
    }
  }
  __syncwarp();
  const bool loads = Loop::Group() == Loop::kGroups - 1 && threadIdx.x % 128 < 32;
  Consumer<Loop, Activation::kNone>(args, shared).Run(barriers, row, col, 0, [&](int step) {
    const int next = step + kAhead;
    if (!loads || next < kSlots || next >= steps) return;
    if (threadIdx.x == Loop::kLoader) {
      const int slot = next % kSlots;
      BarrierWait(&barriers->w_empty[slot], next / kSlots % 2 ^ 1);
      Loop::LoadW(shared, barriers, slot, &args.w, next, col);
      Loop::LoadX(shared, barriers, slot, &args.x, next, row);
    }
    __syncwarp();
  });
}

cudaError_t NumMultiprocessors(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

template <class Loop, Activation kActivation>
cudaError_t Launch(const GemmParams& params, cudaStream_t stream) {
  Args args = {};
  cudaError_t error = SwizzledRowsMap(params.x, Loop::kRows, &args.x);
  if (error == cudaSuccess) error = PackedMatrixMap(params.w, Loop::kCols, Loop::kWDepth, &args.w);
  int num_sms = 0;
  if (error == cudaSuccess) error = NumMultiprocessors(&num_sms);
  if (error != cudaSuccess) return error;
  args.bias = params.bias;
  args.y = params.y.data;
  args.y_stride = params.y.stride;
  args.n = static_cast<int>(params.y.rows);
  args.m = params.w.n;
  args.k_padded = params.w.k_padded;
  args.x_settled = params.x_settled;

  const int tiles =
      (args.n + Loop::kRows - 1) / Loop::kRows * ((args.m + Loop::kCols - 1) / Loop::kCols);
  args.in_turn = tiles <= 2 * num_sms;  // later waves are out of step by themselves
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(Loop::kProducer ? std::min(tiles, num_sms) : tiles);
  shape.block = Loop::kThreads;
  shape.shared_bytes = Layout<Loop>::kBytes;
  if constexpr (Loop::kProducer) {
    return LaunchKernel(GemmKernel<Loop, kActivation>, shape, stream, args);
  } else {
    return LaunchKernel(OneTileKernel<Loop>, shape, stream, args);
  }
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
      case 128'104:
        return plain.template operator()<GemmMainloop<T, 104, 2, 1, 7, 7, 64>>();
      case 128'200:
        return plain.template operator()<GemmMainloop<T, 200, 2, 1, 5, 5, 64>>();
      case 128'192:
        return plain.template operator()<GemmMainloop<T, 192, 2, 1, 5, 5, 64>>();
      case 128'240:
        return plain.template operator()<GemmMainloop<T, 240, 2, 1, 4, 4, 64>>();
      case 192'192:
        return plain.template operator()<GemmMainloop<T, 192, 3, 1, 4, 4, 64, false>>();
      case 192'240:
        return plain.template operator()<GemmMainloop<T, 240, 3, 1, 4, 4, 64, false>>();
      default:
        return cudaErrorInvalidValue;
    }
  });
}

}  // namespace flashsvd
