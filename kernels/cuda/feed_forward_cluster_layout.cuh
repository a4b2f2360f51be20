#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_LAYOUT_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_LAYOUT_CUH_

#include <cuda.h>

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/tensor.h"

// What the host and the parts of feed_forward_cluster.cuh agree on.

namespace flashsvd {

constexpr int kGroups = 2;  // warpgroups that compute; another one has the producers
constexpr int kConsumerWarps = kGroups * 4;
constexpr int kConsumers = kGroups * 128;
constexpr int kClusterThreads = kConsumers + 128;

// Compile-time sizes. kTokens: rows of x of a cluster. Both ranks are padded to kRankTiles tiles of
// 64; tile i of S is warpgroup i % kGroups's.
//   kHalfSums: sums travel as scaled float16, else in float32
//   kGelu: the activation is GELU, else any. Code for all of them takes time to fetch.
template <int kTokens_, int kRankTiles_, bool kHalfSums_, bool kGelu_>
struct ClusterShape {
  static constexpr int kTokens = kTokens_;
  static constexpr int kRankTiles = kRankTiles_;
  static constexpr bool kHalfSums = kHalfSums_;
  static constexpr bool kGelu = kGelu_;
  // Whether a block may have more than 128 columns of the result.
  static constexpr bool kWideColumns = kTokens <= 32;
  static constexpr int kRank = kRankTiles * 64;
  static constexpr int kStrips = kRankTiles * 4;
  static constexpr int kTiles = (kRankTiles + kGroups - 1) / kGroups;  // of a warpgroup

  // A slot of the ring of weights holds
  //   A1  [64 columns of d, x_boxes p_chunks times][columns of P of a block]
  //   B1  [kUpDepth ranks][64 units of F], of kGroups tiles of 64 units after another
  //   A2  [kDownDepth units of F][ranks]
  //   B2  [16 kTailSteps ranks][columns of d of a block]
  // each as packed, [depth / 8][.][8].
  static constexpr int kUpDepth = 128 / kGroups;
  static constexpr int kUpBytes = 64 * kUpDepth * 2;
  static constexpr int kUpChunks = kRank / kUpDepth;
  static constexpr int kDownDepth = kRankTiles <= 2 ? 64 : 32;
  static constexpr int kDownChunks = kGroups * 64 / kDownDepth;  // of a tile
  static constexpr int kUnitChunks = 64 / kDownDepth;            // of 64 units
  static constexpr int kSlotBytes = kRank * kDownDepth * 2;
  static_assert(kGroups * kUpBytes <= kSlotBytes);
  // kCount: tiles of 64 columns of d that a warpgroup has.
  template <int kCount>
  static constexpr int kTailSteps = kCount == 1 ? 4 : 2;
  static_assert(kTailSteps<1> * 128 * 32 <= kSlotBytes);

  // Chunks whose products may be under way at a time.
  static constexpr int kPending = 2;
  static_assert(kDownChunks >= kPending && kUpChunks >= kPending);

  static constexpr int kQuads = kTokens / 8;
  static constexpr int kXBytes = kTokens * 128;     // 64 columns of x
  static constexpr int kStripBytes = kTokens * 32;  // 16 columns of P or S, [2][kTokens][8]
  // A strip of sums: in float32 [kQuads][32 lanes][4]; as float16 two quads at a time, [kQuads / 2]
  // [32 lanes][8], and the last of an odd number [32 lanes][4].
  static constexpr int kStripSumBytes = kTokens * (kHalfSums ? 32 : 64);
  static constexpr int kRankBytes = kStrips * kStripBytes;  // P or S
  static constexpr int kHiddenBytes = kGroups * 4 * kStripBytes;
  // Rows of the result on their way from products: kRowLanes threads read a row, unit after unit of
  // eight columns; units lie so far apart that they do not get into each other's way.
  static constexpr int kRowLanes = kTokens <= 32 ? 8 : kTokens <= 64 ? 4 : 3;
  static constexpr int kUnitPitch = kTokens * 16 + (kRowLanes == 3 ? 48 : 128 / kRowLanes);
  static_assert(kConsumerWarps * (32 / kRowLanes) >= kTokens);
  static_assert(kTokens % 8 == 0);
};

constexpr int kMaxClusterBlocks = 16;
constexpr int kMaxClusterSlots = 12;
constexpr int kMaxXStages = 16;

struct ClusterMaps {
  CUtensorMap x;
  CUtensorMap a1;
  CUtensorMap b1;
  CUtensorMap a2;
  CUtensorMap b2;
};

struct ClusterArgs {
  Rows x;
  const float* bias;
  const float* b2_bias;
  LayerNormParams norm;
  uint8_t* exchange;  // of each cluster, P and then S
  Activation activation;
  int hidden;
  int blocks;        // of a cluster
  int x_boxes;       // of 64 columns of x, to a stage
  int x_stages_all;  // stages that x has
  int x_stages;      // of these are in shared memory at a time
  int p_cols;        // columns of P of a block, a multiple of 16, at most 128
  int p_chunks;      // stages to a slot of A1
  int strips;        // of S, of a block
  int d_cols;        // columns of the result of a block, a multiple of 16
  int d_tiles;       // of 64 of them, of a warpgroup: 1 or 2
  int slots;
  // Places in shared memory, after the barriers.
  int p_offset;
  int hidden_offset;
  int slots_offset;
  int shared_bytes;
};

struct ClusterBarriers {
  uint64_t weights_full[kMaxClusterSlots];
  uint64_t weights_empty[kMaxClusterSlots];
  uint64_t x_full[kMaxXStages];
  uint64_t x_empty[kMaxXStages];
  uint64_t p_full;        // all of P
  uint64_t sum_full;      // all blocks' sums for this block's strips of S
  uint64_t s_full;        // all of S
  uint64_t moments_full;  // of all columns
};
// Behind the barriers: the scales of the sums, 256 bytes for each consumer warp, then the rest.
constexpr int kClusterScalesOffset = 512;
constexpr int kClusterScratchOffset = 1024;
template <class Shape>
constexpr int kClusterScratchBytes = Shape::kTokens <= 32 ? 256 : 640;  // a warp's
template <class Shape>
constexpr int kClusterDataOffset = (kClusterScratchOffset +
                                    kConsumerWarps * kClusterScratchBytes<Shape> + 1023) /
                                   1024 * 1024;
static_assert(sizeof(ClusterBarriers) <= kClusterScalesOffset);

// Shared memory after the barriers. `exchange` is in turn
//   x                  [x_stages][x_boxes][kTokens][64], swizzled
//   sums               [blocks][strips][kStripSumBytes]
//   moments            [blocks][kTokens] mean and squares
// A block sends sums when it has all of P, that is when no block reads x any more; and moments when
// it has all of S, that is when no block reads sums any more.
// `p` is P, then S, [rank / 8][kTokens][8]. S comes from blocks that have this one's sums, which it
// sent when all its warpgroups had done with P.
template <class Shape>
struct ClusterStorage {
  uint8_t* shared;
  const ClusterArgs& args;

  __device__ __forceinline__ ClusterBarriers& Barriers() const {
    return *reinterpret_cast<ClusterBarriers*>(shared);
  }
  __device__ __forceinline__ float* Scales() const {
    return reinterpret_cast<float*>(shared + kClusterScalesOffset);
  }
  __device__ __forceinline__ uint8_t* Scratch(int warp) const {
    return shared + kClusterScratchOffset + warp * kClusterScratchBytes<Shape>;
  }
  __device__ __forceinline__ uint8_t* Exchange() const {
    return shared + kClusterDataOffset<Shape>;
  }
  __device__ __forceinline__ float2* Moments() const {
    return reinterpret_cast<float2*>(Exchange());
  }
  __device__ __forceinline__ uint8_t* P() const { return shared + args.p_offset; }
  __device__ __forceinline__ uint8_t* Hidden() const { return shared + args.hidden_offset; }
  // The block's columns of S B2', [d_cols / 8] units of kUnitPitch bytes.
  __device__ __forceinline__ uint8_t* Rows() const { return Hidden(); }
  __device__ __forceinline__ uint8_t* Slots() const { return shared + args.slots_offset; }

  // Strips of P, and of S, that are block b's own.
  __device__ __forceinline__ int StripsOfP(int b) const {
    return max(0, min(args.p_cols / 16, Shape::kStrips - b * (args.p_cols / 16)));
  }
  __device__ __forceinline__ int StripsOfS(int b) const {
    return max(0, min(args.strips, Shape::kStrips - b * args.strips));
  }
  // Blocks 0 to this - 1 have columns of P.
  __device__ __forceinline__ int BlocksOfP() const {
    return (Shape::kStrips + args.p_cols / 16 - 1) / (args.p_cols / 16);
  }
  // Columns of the result that are block b's own.
  __device__ __forceinline__ int ColumnsOf(int b) const {
    return max(0, min(args.d_cols, static_cast<int>(args.x.cols) - b * args.d_cols));
  }
  // Blocks 0 to this - 1 have columns of the result.
  __device__ __forceinline__ int BlocksOfResult() const {
    return (static_cast<int>(args.x.cols) + args.d_cols - 1) / args.d_cols;
  }
};

// The 64 units of F that block b walks through: first, first + 1, ...; kGroups of them to a tile.
template <class Shape>
struct UnitRange {
  int first;
  int count;
  __device__ __forceinline__ UnitRange(const ClusterArgs& args, int b) {
    const int all = (args.hidden + 63) / 64;
    first = b * all / args.blocks;
    count = (b + 1) * all / args.blocks - first;
  }
  __device__ __forceinline__ int Tiles() const { return (count + kGroups - 1) / kGroups; }
  // Units of tile t; the last one may have fewer.
  __device__ __forceinline__ int UnitsOf(int t) const { return min(kGroups, count - kGroups * t); }
};

// A place in a ring of run-time length, with its barriers.
struct ClusterRing {
  uint64_t* full;
  uint64_t* empty;
  int length;
  int slot = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ ClusterRing(uint64_t* full, uint64_t* empty, int length)
      : full(full), empty(empty), length(length) {}
  __device__ __forceinline__ void WaitFull() const { BarrierWait(&full[slot], phase); }
  __device__ __forceinline__ void WaitEmpty() const { BarrierWait(&empty[slot], phase ^ 1); }
  __device__ __forceinline__ void Next() {
    if (++slot == length) {
      slot = 0;
      phase ^= 1;
    }
  }
  // By all threads of a consumer warp.
  __device__ __forceinline__ void Release() {
    if (threadIdx.x % 32 == 0) BarrierArrive(&empty[slot]);
    Next();
  }
};

template <class Shape>
__device__ __forceinline__ ClusterRing WeightRingOf(const ClusterStorage<Shape>& storage) {
  ClusterBarriers& b = storage.Barriers();
  return {b.weights_full, b.weights_empty, storage.args.slots};
}
template <class Shape>
__device__ __forceinline__ ClusterRing XRingOf(const ClusterStorage<Shape>& storage) {
  ClusterBarriers& b = storage.Barriers();
  return {b.x_full, b.x_empty, storage.args.x_stages};
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_LAYOUT_CUH_
