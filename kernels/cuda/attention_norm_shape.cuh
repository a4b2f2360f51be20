#ifndef FLASHSVD_KERNELS_CUDA_ATTENTION_NORM_SHAPE_CUH_
#define FLASHSVD_KERNELS_CUDA_ATTENTION_NORM_SHAPE_CUH_

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/add_norm_epilogue.cuh"
#include "kernels/cuda/launch.h"

// What the producers and the consumers of attention_norm_sm90.cu share: parameters and shared
// memory.

namespace flashsvd {

struct AttentionNormArgs {
  CUtensorMap qkv;
  CUtensorMap x;  // boxes of 16 rows x 64 columns
  const AttentionSchedule* schedule;
  const void* qkv_data;
  int64_t qkv_stride;
  void* x_data;
  int64_t x_stride;
  const char* w_data;
  int w_stride;  // bytes of eight columns of k
  const float* bias;
  const float* gamma;
  const float* beta;
  float epsilon;
  float inverse_d;
  float scale_log2;
  int max_tiles;
  int num_heads;
  int d_qk;
  int d_v;
  int n;
  int d;
};

// A part of a row tile: its rows [begin, end) are of one sequence.
struct TileSegment {
  int first_row;  // of the sequence
  int seqlen;
  int begin;
  int end;
};

// A block of a cluster of two: kRows rows of half of the heads, and of kCols of the d columns of x.
// kN: columns of a consumer warpgroup.
template <class T, int kHeadDim, int kN_>
struct AttentionNormShape {
  using Element = T;
  static constexpr int kGroups = 3;  // consumer warpgroups
  static constexpr int kCluster = 2;
  static constexpr int kRows = 64;
  static constexpr int kMaxTurns = 4;

  // Attention, as AttentionShape has it; a ring for each warpgroup.
  static constexpr int kDim = kHeadDim;
  static constexpr int kDepthSteps = (kDim + 15) / 16;
  static constexpr int kKeys = 64;
  static constexpr int kBoxColumns = 16 * kDepthSteps;
  static constexpr int kBoxBytes = 2 * kBoxColumns * kKeys;
  static constexpr int kRowBytes = 128;
  static constexpr int kKeyBytes = kRowBytes * kKeys;
  static constexpr int kSlotBytes = 2 * kKeyBytes;
  static constexpr int kSlots = 3;
  static constexpr int kRingBytes = kSlots * kSlotBytes;

  // The product. Weights come 16 columns of k at a time, into slots of kWBytes: four take the place
  // of each ring of keys and values, and where there is room there is one more.
  static constexpr int kN = kN_;
  static constexpr int kCols = kGroups * kN;
  static constexpr int kWBytes = 2 * 16 * kCols;
  static constexpr int kRingWSlots = 4;
  static_assert(kWBytes * kRingWSlots == kRingBytes);
  static constexpr int kSpare = kDim <= 40 ? 1 : 0;
  static constexpr int kWSlots = kGroups * kRingWSlots + kSpare;
  static constexpr int kOctetBytes = 16 * kRows;  // eight columns of the context
  static constexpr int kWarpXBytes = 2 * 16 * kN;
  static constexpr int kXWarps = kWBytes / kWarpXBytes;  // of a slot of x
  static constexpr int kXSlots = 4 * kGroups / kXWarps;

  static constexpr int kThreads = 128 * (kGroups + 1);

  struct alignas(16) Barriers {
    uint64_t k_full[kGroups][kSlots];
    uint64_t v_full[kGroups][kSlots];
    uint64_t kv_empty[kGroups][kSlots];
    uint64_t q_full[kGroups];   // the first query of a warpgroup is there
    uint64_t q_taken[kGroups];  // and in its registers
    uint64_t w_full[kWSlots];
    uint64_t w_empty[kWSlots];
    uint64_t own[kMaxTurns];   // the heads of this turn are in the context
    uint64_t peer[kMaxTurns];  // and those of the other block
    uint64_t x[kXSlots];       // these warps' rows of x are there
    uint64_t params;           // bias, gamma and beta are there
    uint64_t stats;            // the moments of all rows are there
    int num_segments;
    int num_blocks;  // of keys, of all segments
  };
  static constexpr int kParams = kGroups * kRingBytes + kSpare * kWBytes;  // bias, gamma, beta
  static constexpr int kStats = kParams + 3 * 4 * kCols;
  static constexpr int kSegments =
      kStats + kCluster * kCols / (kN % 128 == 0 ? 128 : 64) * kRows * 8;
  static constexpr int kBarriers = kSegments + kRows * static_cast<int>(sizeof(TileSegment));
  // [H d_v / 8][kRows][8]
  static constexpr int kContext =
      (kBarriers + static_cast<int>(sizeof(Barriers)) + 127) / 128 * 128;
  static constexpr int Bytes(int context_cols) { return kContext + context_cols / 8 * kOctetBytes; }
};

template <class S>
struct AttentionNormShared {
  char* base;
  __device__ __forceinline__ char* Ring(int group) const { return base + group * S::kRingBytes; }
  // Where a warpgroup's first query arrives: in place of values that come later.
  __device__ __forceinline__ char* Query(int group, int first_slot) const {
    return Ring(group) + (first_slot + S::kSlots - 1) % S::kSlots * S::kSlotBytes + S::kKeyBytes;
  }
  __device__ __forceinline__ char* Context() const { return base + S::kContext; }
  __device__ __forceinline__ float* Params() const {
    return reinterpret_cast<float*>(base + S::kParams);
  }
  __device__ __forceinline__ Moments* Stats() const {
    return reinterpret_cast<Moments*>(base + S::kStats);
  }
  __device__ __forceinline__ TileSegment* Segments() const {
    return reinterpret_cast<TileSegment*>(base + S::kSegments);
  }
  __device__ __forceinline__ typename S::Barriers& Barriers() const {
    return *reinterpret_cast<typename S::Barriers*>(base + S::kBarriers);
  }
};

// Heads of the block of rank `rank` go to its warpgroups in turns.
template <class S>
struct HeadPlan {
  int first;   // head of the block
  int count;   // heads of a block
  int octets;  // of a head's context
  int turns;
  __device__ __forceinline__ HeadPlan(const AttentionNormArgs& args, int rank) {
    count = args.num_heads / S::kCluster;
    first = rank * count;
    octets = args.d_v / 8;
    turns = (count + S::kGroups - 1) / S::kGroups;
  }
  // Heads of a warpgroup.
  __device__ __forceinline__ int HeadsOf(int group) const {
    return (count - group + S::kGroups - 1) / S::kGroups;
  }
  // Octets of a block that its turns before `turn` make.
  __device__ __forceinline__ int Octets(int turn) const {
    return min(turn * S::kGroups, count) * octets;
  }
};

// The steps of the product over k, 16 columns each, in the order in which the context gets ready:
// the other block's heads of all turns but the last, this block's heads, the other's last.
template <class S>
class DepthOrder {
 public:
  __device__ __forceinline__ DepthOrder(const HeadPlan<S>& plan, int rank)
      : early_(plan.Octets(plan.turns - 1) / 2),
        half_(plan.count * plan.octets / 2),
        own_(rank * half_),
        peer_((1 - rank) * half_) {}
  __device__ __forceinline__ int steps() const { return 2 * half_; }
  // Steps from here on need this block's heads, or the other block's last ones.
  __device__ __forceinline__ int own_begin() const { return early_; }
  __device__ __forceinline__ int late_begin() const { return early_ + half_; }
  // A step's place in k, in 16 columns.
  __device__ __forceinline__ int Place(int step) const {
    if (step < early_) return peer_ + step;
    return step < early_ + half_ ? own_ + step - early_ : peer_ + step - half_;
  }

 private:
  int early_;
  int half_;
  int own_;
  int peer_;
};

// Where a block of keys starts in a warpgroup's ring so that the last of `blocks` is in the ring's
// last slot.
template <class S>
__device__ __forceinline__ int FirstSlot(int blocks) {
  return (S::kSlots - blocks % S::kSlots) % S::kSlots;
}

// The slots of the weights: a ring of which step s of the product takes place s % kWSlots. In this
// order the keys and values leave them free.
template <class S>
struct WeightRing {
  // Which producer fills the place.
  static __device__ __forceinline__ int Owner(int place) {
    return place < S::kSpare ? 0 : (place - S::kSpare) % S::kGroups;
  }
  // Of the slots of the place's ring, where it is.
  static __device__ __forceinline__ int InRing(int place) {
    return (place - S::kSpare) / S::kGroups;
  }
  // Bytes from the first ring.
  static __device__ __forceinline__ int Offset(int place) {
    if (place < S::kSpare) return S::kGroups * S::kRingBytes;
    return (place - S::kSpare) % S::kGroups * S::kRingBytes + InRing(place) * S::kWBytes;
  }
};

// Columns between a box's first and its head's first: 0 or 8.
__device__ __forceinline__ int HeadShift(int head, int dim) { return head * dim % 16; }

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ATTENTION_NORM_SHAPE_CUH_
