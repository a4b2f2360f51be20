#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_SHAPE_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_SHAPE_CUH_

#include <cuda.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ring_position.cuh"
#include "kernels/cuda/tensor_map.h"

namespace flashsvd {

constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }

// Compile-time sizes of the streamed feed-forward. Weights reach shared memory in chunks, all about
// as large, through one ring of slots in the order in which they are used:
//   A1  [kRank, kDepth of d]            for each kDepth columns of x, once
//   B1  [kHidden, 16 kUpSteps of rank]  kUpChunks, then
//   A2  [kRank, kDepth of F]            kDownChunks, for each tile of kHidden units
// Chunks smaller than a tile are released, and so requested, earlier.
//   kRank: both ranks padded, a multiple of 16   kHidden: a multiple of 32
//   kRegisterSteps: so many steps of 16 columns of P = x A1' stay in registers as A operand of the
//   first product, instead of being read from shared memory for every tile; that leaves room for
//   more slots.
//   kLongTurns: TileConsumer::Stream
template <int kRank_, int kHidden_, int kRegisterSteps_, bool kLongTurns_>
struct FeedForwardShape {
  static constexpr bool kLongTurns = kLongTurns_;
  static constexpr int kRank = kRank_;
  static constexpr int kHidden = kHidden_;
  static constexpr int kRegisterSteps = kRegisterSteps_;
  static constexpr int kDepth = kRank <= 128 && kHidden % 64 == 0 ? 64 : 32;
  static constexpr int kSlotBytes = kRank * kDepth * 2;

  static constexpr int kRankSteps = kRank / 16;
  static constexpr int kMaxUpSteps = kSlotBytes / (kHidden * 32);
  static constexpr int kUpChunks = CeilDiv(kRankSteps, kMaxUpSteps);
  static constexpr int kUpSteps = CeilDiv(kRankSteps, kUpChunks);
  static constexpr int kUpBytes = kUpSteps * kHidden * 32;
  static constexpr int kDownChunks = kHidden / kDepth;
  static constexpr int kDownSteps = kDepth / 16;

  // One wgmma covers at most 256 columns.
  static constexpr int kParts = kRank > 256 ? 2 : 1;
  static constexpr int kPartCols = kRank / kParts;

  // 64 columns of x at a time, and later the result on its way out: [kRank / 64][64 rows][64].
  static constexpr int kColumnBlocks = CeilDiv(kRank, 64);
  static constexpr int kBlockBytes = 64 * 128;

  static_assert(kRank % 16 == 0 && kPartCols % 8 == 0 && kHidden % kDepth == 0);
  static_assert(kMaxUpSteps >= 1 && kRegisterSteps <= kRankSteps);
};

// Two warpgroups of consumers, one of producers.
constexpr int kFeedForwardThreads = 384;
constexpr int kFeedForwardShared = 227 * 1024;

constexpr int kBiasTiles = 4;  // buffers for the bias of a tile

// Slots with a barrier that says full and one that says empty.
template <int kSlots_>
struct RingBarriers {
  static constexpr int kSlots = kSlots_;
  using Position = RingPosition<kSlots>;
  uint64_t full[kSlots];
  uint64_t empty[kSlots];

  __device__ __forceinline__ void Init(int consumer_warps) {
    for (int i = 0; i < kSlots; ++i) {
      BarrierInit(&full[i], 1);
      BarrierInit(&empty[i], consumer_warps);
    }
  }
  __device__ __forceinline__ void WaitFull(Position at) { BarrierWait(&full[at.slot], at.phase); }
  __device__ __forceinline__ void WaitEmpty(Position at) {
    BarrierWait(&empty[at.slot], at.phase ^ 1);
  }
  // By all threads of a consumer warp, each of which has waited for its products.
  __device__ __forceinline__ void Release(Position& at) {
    if (threadIdx.x % 32 == 0) BarrierArrive(&empty[at.slot]);
    at.Next();
  }
};

// What a launch hands the kernels. Tensor maps of x and s (x again where there is no s):
// SwizzledRowsMap; of the weights: PackedMatrixMap with the chunks above.
struct FeedForwardMaps {
  CUtensorMap x;
  CUtensorMap a1;
  CUtensorMap b1;
  CUtensorMap a2;
  CUtensorMap s;
};

template <class Shape>
cudaError_t EncodeMaps(const FeedForwardParams& params, int a1_rows, int a1_depth,
                       FeedForwardMaps* maps) {
  const cudaError_t errors[] = {
      SwizzledRowsMap(params.x, 64, &maps->x),
      PackedMatrixMap(params.a1, a1_rows, a1_depth, &maps->a1),
      PackedMatrixMap(params.b1, Shape::kHidden, Shape::kUpSteps * 16, &maps->b1),
      PackedMatrixMap(params.a2, Shape::kRank, Shape::kDepth, &maps->a2),
      SwizzledRowsMap(params.b2.data != nullptr ? params.x : params.s, 64, &maps->s),
  };
  for (const cudaError_t error : errors) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_SHAPE_CUH_
