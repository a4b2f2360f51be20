#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_LAYOUT_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_LAYOUT_CUH_

#include <cuda.h>

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/tensor.h"

// What the host and the parts of feed_forward_cluster.cuh agree on.

namespace flashsvd {

// Compile-time sizes. kTokens: rows of x of a cluster. Both ranks are padded to kRankTiles tiles of
// 64; tile i of S is warpgroup i % 2's.
template <int kTokens_, int kRankTiles_>
struct ClusterShape {
  static constexpr int kTokens = kTokens_;
  static constexpr int kRankTiles = kRankTiles_;
  static constexpr int kRank = kRankTiles * 64;
  static constexpr int kStrips = kRankTiles * 4;
  static constexpr int kTiles = (kRankTiles + 1) / 2;  // of a warpgroup

  // A slot of the ring of weights holds
  //   A1  [64 columns of d, x_boxes p_chunks times][columns of P of a block]
  //   B1  [kUpDepth ranks][64 units of F], of two tiles of 64 units after another
  //   A2  [kDownDepth units of F][ranks]
  //   B2  [16 kTailSteps ranks][columns of d of a block]
  // each as packed, [depth / 8][.][8].
  static constexpr int kUpDepth = 64;
  static constexpr int kUpBytes = 64 * kUpDepth * 2;
  static constexpr int kUpChunks = kRank / kUpDepth;
  static constexpr int kDownDepth = kRankTiles <= 2 ? 64 : 32;
  static constexpr int kDownChunks = 128 / kDownDepth;  // of a tile of 128 units
  static constexpr int kSlotBytes = kRank * kDownDepth * 2;
  static_assert(2 * kUpBytes <= kSlotBytes);
  // kCount: tiles of 64 columns of d that a warpgroup has.
  template <int kCount>
  static constexpr int kTailSteps = kCount == 1   ? 4
                                    : kCount == 2 ? 2
                                                  : 1;
  static_assert(kTailSteps<1> * 128 * 32 <= kSlotBytes);

  // Chunks whose products may be under way at a time.
  static constexpr int kPending = 2;
  static_assert(kDownChunks >= kPending && kUpChunks >= kPending);

  static constexpr int kQuads = kTokens / 8;
  static constexpr int kXBytes = kTokens * 128;        // 64 columns of x
  static constexpr int kStripBytes = kTokens * 32;     // 16 columns of P or S, [2][kTokens][8]
  static constexpr int kStripSumBytes = kTokens * 64;  // the same in float32, [kQuads][32 lanes][4]
  static constexpr int kRankBytes = kStrips * kStripBytes;  // P or S
  static constexpr int kHiddenBytes = 8 * kStripBytes;
  static_assert(kTokens % 8 == 0);
};

constexpr int kClusterThreads = 384;  // two warpgroups of consumers, one with the producers
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
  Rows s;
  const float* bias;
  const float* b2_bias;
  LayerNormParams norm;
  Activation activation;
  int hidden;
  int blocks;        // of a cluster
  int x_boxes;       // of 64 columns of x, to a stage
  int x_stages_all;  // stages that x has
  int x_stages;      // of these are in shared memory at a time
  int p_cols;        // columns of P of a block, a multiple of 16, at most 128
  int p_chunks;      // stages to a slot of A1
  int strips;        // of S, of a block
  int d_cols;        // columns of the result of a block, a multiple of 16; 0: s is the result
  int d_tiles;       // of 64 of them, of a warpgroup: 1, 2 or 4
  int tokens;        // rows of the result of a block
  int slots;
  // Places in shared memory, after the barriers.
  int p_offset;
  int hidden_offset;
  int norm_offset;
  int slots_offset;
  int shared_bytes;
};

struct ClusterBarriers {
  uint64_t weights_full[kMaxClusterSlots];
  uint64_t weights_empty[kMaxClusterSlots];
  uint64_t x_full[kMaxXStages];
  uint64_t x_empty[kMaxXStages];
  uint64_t p_full;     // all of P
  uint64_t sum_full;   // all blocks' sums for this block's strips of S
  uint64_t s_full;     // all of S
  uint64_t norm_full;  // gamma and beta
  uint64_t y_full;     // all columns of this block's rows of S B2'
};
// Behind the barriers: 256 bytes for each consumer warp, then the rest.
constexpr int kClusterScratchOffset = 1024;
constexpr int kClusterDataOffset = kClusterScratchOffset + 8 * 256;
static_assert(sizeof(ClusterBarriers) <= kClusterScratchOffset);

// Shared memory after the barriers. `exchange` is in turn
//   x               [x_stages][x_boxes][kTokens][64], swizzled
//   sums            [blocks][strips][kStripSumBytes]
//   rows of S B2'   [blocks][tokens][pitch]
// A block sends sums when it has all of P, that is when no block reads x any more; and S B2' when
// it has all of S, that is when no block reads sums any more.
// `p` is P, then S, [rank / 8][kTokens][8]. S comes from blocks that have this one's sums, which it
// sent when both its warpgroups had done with P.
struct ClusterStorage {
  uint8_t* shared;
  const ClusterArgs& args;

  __device__ __forceinline__ ClusterBarriers& Barriers() const {
    return *reinterpret_cast<ClusterBarriers*>(shared);
  }
  __device__ __forceinline__ uint8_t* Scratch() const { return shared + kClusterScratchOffset; }
  __device__ __forceinline__ uint8_t* Exchange() const { return shared + kClusterDataOffset; }
  __device__ __forceinline__ uint8_t* P() const { return shared + args.p_offset; }
  __device__ __forceinline__ uint8_t* Hidden() const { return shared + args.hidden_offset; }
  // Gamma and beta of LayerNorm, a row each.
  __device__ __forceinline__ float* Norm(int i) const {
    return reinterpret_cast<float*>(shared + args.norm_offset) + i * args.x.cols;
  }
  __device__ __forceinline__ uint8_t* Slots() const { return shared + args.slots_offset; }

  // Strips of P, and of S, of all, that are block b's own; rows of the result.
  __device__ __forceinline__ int StripsOfP(int b, int all) const {
    return max(0, min(args.p_cols / 16, all - b * (args.p_cols / 16)));
  }
  __device__ __forceinline__ int StripsOfS(int b, int all) const {
    return max(0, min(args.strips, all - b * args.strips));
  }
  __device__ __forceinline__ int TokensOf(int b, int all) const {
    return max(0, min(args.tokens, all - b * args.tokens));
  }
  // A row of a block's columns, padded so that eight rows lie in different banks.
  __device__ __forceinline__ int Pitch() const { return args.d_cols * 2 + 16; }
};

// The 64 units of F that block b walks through: first, first + 1, ...
struct UnitRange {
  int first;
  int count;
  __device__ __forceinline__ UnitRange(const ClusterArgs& args, int b) {
    const int all = (args.hidden + 63) / 64;
    first = b * all / args.blocks;
    count = (b + 1) * all / args.blocks - first;
  }
  __device__ __forceinline__ int Tiles() const { return (count + 1) / 2; }
  // Units of tile t: two, the last one may have one.
  __device__ __forceinline__ int Halves(int t) const { return min(2, count - 2 * t); }
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

__device__ __forceinline__ ClusterRing WeightRingOf(const ClusterStorage& storage) {
  ClusterBarriers& b = storage.Barriers();
  return {b.weights_full, b.weights_empty, storage.args.slots};
}
__device__ __forceinline__ ClusterRing XRingOf(const ClusterStorage& storage) {
  ClusterBarriers& b = storage.Barriers();
  return {b.x_full, b.x_empty, storage.args.x_stages};
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_LAYOUT_CUH_
