#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/gemm_mainloop.cuh"
#include "kernels/cuda/gemm_store.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ring_position.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

// y_g = x_g W_g' + bias_g for groups side by side, compute capability 9.0, k
// small.
//   x: [n, groups * x_step], of which group g reads k columns from g * x_step
//   on w: of each group [m, k]   y: [n, groups * m]
//
// A block holds kN columns of one W', for all of k, and walks over units of 64
// rows of x, which are all that it loads from then on. Two warpgroups take the
// units in turn: while one writes its y, the other multiplies. What sets the
// pace is the bandwidth of shared memory, which both need: a third warpgroup
// gains nothing.
//
// Any n and groups up to kMaxGemmGroups; m a multiple of the tile's columns if
// there are several groups, else any. Tiles: 64 x 128, k at most 608, and 64 x
// 192, k at most 400. Anything else is refused. y may start at any even
// address; unless it is a multiple of 16, writes are slow.

namespace flashsvd {
namespace {

constexpr int kRows = 64;   // of a unit
constexpr int kDepth = 64;  // of k in a slot
constexpr int kSlots = 7;   // of x
constexpr int kSlotBytes = kRows * kDepth * 2;
constexpr int kMaxSteps = 10;  // slots that k fills
constexpr int kWarpgroups = 2;
constexpr int kConsumers = 128 * kWarpgroups;
constexpr int kThreads = kConsumers + 32;

struct Args {
  CUtensorMap x;
  const void* w[kMaxGemmGroups];
  const float* bias[kMaxGemmGroups];
  void* y;
  int64_t y_stride;
  int n;
  int m;  // of a group
  int groups;
  int x_step;
  int n_padded;  // of w
  int k_padded;
};

struct Barriers {
  uint64_t x_full[kSlots];
  uint64_t x_empty[kSlots];
  uint64_t w_full[kMaxSteps];
};

// Shared memory.
template <int kN>
struct Layout {
  static constexpr int kStaging = kSlots * kSlotBytes;
  static constexpr int kBias = kStaging + 4 * kWarpgroups * kStagedBytes;
  static constexpr int kBarriers = kBias + kN * 4;
  static constexpr int kW = (kBarriers + static_cast<int>(sizeof(Barriers)) + 127) / 128 * 128;
  static constexpr int Bytes(int k_padded) { return kW + k_padded * kN * 2; }  // [k / 8][kN][8]
};

// What a block does: the columns of group `group` from `col` on, units first,
// first + step, ...
struct Share {
  int group;
  int col;  // in the group
  int first;
  int step;
  int end;
};
template <int kN>
__device__ __forceinline__ Share ShareOf(const Args& args) {
  const int cols = (args.m + kN - 1) / kN;  // tiles of a group
  const int tiles = args.groups * cols;
  const int tile = static_cast<int>(blockIdx.x) % tiles;  // those that share x are neighbours
  return {tile / cols, tile % cols * kN, static_cast<int>(blockIdx.x) / tiles,
          static_cast<int>(gridDim.x) / tiles, (args.n + kRows - 1) / kRows};
}

__device__ __forceinline__ int Steps(const Args& args) {
  return (args.k_padded + kDepth - 1) / kDepth;
}

// The block's W, with a barrier for what meets a slot of x. Columns beyond W's
// are left as they are: they give none of y.
template <int kN>
__device__ __forceinline__ void LoadW(const Args& args, const Share& share, char* w,
                                      Barriers* barriers) {
  constexpr int kUnits = kDepth / 8;
  const auto bytes = static_cast<uint32_t>(min(kN, args.n_padded - share.col) * 16);
  const char* from = static_cast<const char*>(args.w[share.group]) + int64_t{share.col} * 16;
  const int units = args.k_padded / 8;
  for (int first = 0; first < units; first += kUnits) {
    uint64_t* full = &barriers->w_full[first / kUnits];
    const int end = min(first + kUnits, units);
    BarrierExpect(full, (end - first) * bytes);
    for (int i = first; i < end; ++i) {
      CopyBytes(w + i * (kN * 16), from + int64_t{i} * args.n_padded * 16, bytes, full);
    }
  }
}

__device__ __forceinline__ void LoadX(const Args& args, const Share& share, char* ring,
                                      Barriers* barriers) {
  const int steps = Steps(args);
  const int first_col = share.group * args.x_step;
  RingPosition<kSlots> at;
  for (int unit = share.first; unit < share.end; unit += share.step) {
    for (int step = 0; step < steps; ++step, at.Next()) {
      uint64_t* full = &barriers->x_full[at.slot];
      BarrierWait(&barriers->x_empty[at.slot], at.phase ^ 1);
      BarrierExpect(full, kSlotBytes);
      CopyBox2(ring + at.slot * kSlotBytes, &args.x, first_col + step * kDepth, unit * kRows, full);
    }
  }
}

// acc += kCount products of 16 columns of k, one group of them.
template <class T, int kN, int kCount>
__device__ __forceinline__ void Products(float (&acc)[kN / 2], uint64_t a, uint64_t b) {
  PinRegisters(acc);
  WgmmaFence();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    Wgmma<T, kN>::Shared(acc, Advance(a, 32 * i), Advance(b, 32 * kN * i));
  }
  WgmmaCommit();
}

template <class T, int kN>
__device__ __forceinline__ void Consume(const Args& args, const Share& share, char* shared,
                                        Barriers* barriers) {
  using L = Layout<kN>;
  // Through a shuffle, so that the compiler knows it to be the same for the
  // whole warp.
  const int group = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / 128, 0);
  const int warp_row = static_cast<int>(threadIdx.x) / 32 % 4 * 16;
  const int steps = Steps(args);
  const int last_products = args.k_padded / 16 - 4 * (steps - 1);
  const auto* bias = reinterpret_cast<const float*>(shared + L::kBias);
  const uint64_t a0 = Swizzle128Descriptor(shared);
  const uint64_t b0 = CoreMatrixDescriptor(shared + L::kW, 16 * kN, 128);
  char* staging = shared + L::kStaging + static_cast<int>(threadIdx.x) / 32 * kStagedBytes;
  RingPosition<kSlots> at;
  at.Advance(group * steps);
  bool w_here = false;
  for (int unit = share.first + group * share.step; unit < share.end;
       unit += kWarpgroups * share.step) {
    float acc[kN / 2];
    StartWithBias<kN>(acc, bias);
    // The other's products are under way. It has seen all x ahead of this
    // unit's come in, as it must: the barrier of a slot tells only two laps
    // apart.
    if (unit > share.first) NamedBarrierSync(1 + group, kConsumers);
    int old = 0;
    for (int step = 0; step < steps; ++step) {
      if (!w_here) BarrierWait(&barriers->w_full[step], 0);
      BarrierWait(&barriers->x_full[at.slot], at.phase);
      const uint64_t a = Advance(a0, at.slot * kSlotBytes);
      const uint64_t b = Advance(b0, step * (kDepth * kN * 2));
      if (step + 1 < steps || last_products == 4) {
        Products<T, kN, 4>(acc, a, b);
      } else if (last_products == 3) {
        Products<T, kN, 3>(acc, a, b);
      } else if (last_products == 2) {
        Products<T, kN, 2>(acc, a, b);
      } else {
        Products<T, kN, 1>(acc, a, b);
      }
      WgmmaWait<1>();  // of the step before
      if (step > 0 && threadIdx.x % 32 == 0) BarrierArrive(&barriers->x_empty[old]);
      old = at.slot;
      at.Next();
    }
    w_here = true;
    if (unit + share.step < share.end) NamedBarrierArrive(2 - group, kConsumers);
    WgmmaWait<0>();
    PinRegisters(acc);
    if (threadIdx.x % 32 == 0) BarrierArrive(&barriers->x_empty[old]);
    at.Advance(steps);
    const int row = unit * kRows + warp_row;
    const int col = share.group * args.m + share.col;
    WriteTile<T, kN, Activation::kNone, false>(
        acc, nullptr, [&](int) { return staging; },
        static_cast<T*>(args.y) + row * args.y_stride + col, args.y_stride, args.n - row,
        args.m - share.col);
  }
}

template <class T, int kN>
__global__ void __launch_bounds__(kThreads, 1) GemmHeldKernel(const __grid_constant__ Args args) {
  using L = Layout<kN>;
  extern __shared__ __align__(1024) char shared[];
  auto* barriers = reinterpret_cast<Barriers*>(shared + L::kBarriers);
  const Share share = ShareOf<kN>(args);
  if (threadIdx.x == kConsumers) {
    for (int i = 0; i < kSlots; ++i) {
      BarrierInit(&barriers->x_full[i], 1);
      BarrierInit(&barriers->x_empty[i], 4);
    }
    for (uint64_t& full : barriers->w_full) BarrierInit(&full, 1);
    BarrierInitFence();
    LoadW<kN>(args, share, shared + L::kW, barriers);
    PrefetchTensorMap(&args.x);
  } else if (threadIdx.x < kN) {
    const float* bias = args.bias[share.group];
    const int col = share.col + static_cast<int>(threadIdx.x);
    reinterpret_cast<float*>(shared + L::kBias)[threadIdx.x] =
        bias != nullptr && col < args.m ? bias[col] : 0.0f;
  }
  __syncthreads();
  AllowSuccessor();
  if (threadIdx.x < kConsumers) {
    WaitForPredecessor();  // y may still be read
    Consume<T, kN>(args, share, shared, barriers);
  } else if (threadIdx.x == kConsumers) {
    WaitForPredecessor();
    LoadX(args, share, shared, barriers);
  }
}

cudaError_t NumMultiprocessors(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

template <class T, int kN>
cudaError_t Launch(const GemmGroupsParams& params, cudaStream_t stream) {
  const PackedMatrix& w = params.w[0];
  if (Layout<kN>::Bytes(w.k_padded) > 227 * 1024 || w.k_padded > kDepth * kMaxSteps ||
      (params.groups > 1 && w.n % kN != 0)) {
    return cudaErrorInvalidValue;
  }
  Args args = {};
  cudaError_t error = SwizzledRowsMap(params.x, kRows, &args.x);
  int num_sms = 0;
  if (error == cudaSuccess) error = NumMultiprocessors(&num_sms);
  if (error != cudaSuccess) return error;
  for (int group = 0; group < params.groups; ++group) {
    args.w[group] = params.w[group].data;
    args.bias[group] = params.bias[group];
  }
  args.y = params.y.data;
  args.y_stride = params.y.stride;
  args.n = static_cast<int>(params.y.rows);
  args.m = w.n;
  args.groups = params.groups;
  args.x_step = params.x_step;
  args.n_padded = w.n_padded;
  args.k_padded = w.k_padded;

  const int tiles = params.groups * ((w.n + kN - 1) / kN);
  const int units = (args.n + kRows - 1) / kRows;
  LaunchShape shape;
  shape.grid = static_cast<unsigned>(tiles * std::min(units, std::max(num_sms / tiles, 1)));
  shape.block = kThreads;
  shape.shared_bytes = static_cast<size_t>(Layout<kN>::Bytes(w.k_padded));
  return LaunchKernel(GemmHeldKernel<T, kN>, shape, stream, args);
}

}  // namespace

cudaError_t LaunchGemmHeldSm90(const GemmGroupsParams& params, DType dtype, const GemmTile& tile,
                               cudaStream_t stream) {
  if (params.groups < 1 || params.groups > kMaxGemmGroups || tile.rows != kRows ||
      params.y.cols != int64_t{params.groups} * params.w[0].n) {
    return cudaErrorInvalidValue;
  }
  if (params.y.rows == 0) return cudaSuccess;
  return VisitFloat(dtype, [&]<typename T>() -> cudaError_t {
    switch (tile.cols) {
      case 128:
        return Launch<T, 128>(params, stream);
      case 192:
        return Launch<T, 192>(params, stream);
      default:
        return cudaErrorInvalidValue;
    }
  });
}

}  // namespace flashsvd
