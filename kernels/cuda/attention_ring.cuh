#ifndef FLASHSVD_KERNELS_CUDA_ATTENTION_RING_CUH_
#define FLASHSVD_KERNELS_CUDA_ATTENTION_RING_CUH_

#include <cuda_runtime.h>

#include "kernels/cuda/attention_range.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ring_position.cuh"

// What the producers and the consumers of attention_sm90.cu share: parameters and shared memory.

namespace flashsvd {

constexpr int kAttentionWarpgroups = 3;  // consumers

struct AttentionKernelParams {
  const AttentionSchedule* schedule;
  void* context;
  int64_t context_stride;
  int max_tiles;
  int num_heads;
  int units_per_tile;  // 1 or 2
  int d_qk;
  int d_v;
  float scale_log2;
};

template <class T, int kHeadDim>
struct AttentionShape {
  using Element = T;
  static constexpr int kDim = kHeadDim;
  static constexpr int kDepthSteps = (kDim + 15) / 16;
  static constexpr int kKeys = 64;  // of a block of keys
  static constexpr int kThreads = 128 * (kAttentionWarpgroups + 1);

  // Rows of Q, K and V are brought from kBoxColumns columns on that start at a whole sector of 32
  // bytes, up to 8 columns ahead of the head (Shift): whole rows off that grid cost an eighth of
  // all time. In shared memory they are swizzled rows of 128 bytes. What lies about the head is its
  // neighbours': Q's is zeroed in registers, so K's counts for nothing (unless it is infinite or
  // NaN, which reaches queries of the same sequence alone), and V's is not asked for.
  static constexpr int kBoxColumns = 16 * kDepthSteps;
  static constexpr int kBoxBytes = 2 * kBoxColumns * kKeys;  // arriving
  static constexpr int kRowBytes = 128;
  static constexpr int kKeyBytes = kRowBytes * kKeys;
  static constexpr int kSlotBytes = 2 * kKeyBytes;  // K and V
  static constexpr int kQueryBytes = kRowBytes * kUnitRows;
  // A row of the result on its way out: an odd number of 16 bytes, against bank conflicts.
  static constexpr int kResultStride = (kDim / 8 | 1) * 16;
  static constexpr int kResultBytes = kResultStride * kUnitRows;
  static constexpr int kTailBytes = 1024;
  static constexpr int kSlots =
      (227 * 1024 - kTailBytes - kAttentionWarpgroups * (kQueryBytes + kResultBytes)) / kSlotBytes;
  static constexpr int kQueryOffset = kSlots * kSlotBytes;
  static constexpr int kResultOffset = kQueryOffset + kAttentionWarpgroups * kQueryBytes;
  static constexpr int kTailOffset = kResultOffset + kAttentionWarpgroups * kResultBytes;
  static constexpr int kSharedBytes = kTailOffset + kTailBytes;
};

// Columns between a box's first and its head's first: 0 or 8.
__device__ __forceinline__ int Shift(int head, int dim) { return head * dim % 16; }

// What a consumer warpgroup does next: rows [64 row, 64 row + 64) of one head of a sequence, whose
// blocks of keys are in the ring from `slot` on. With seqlen 0: nothing, ever.
template <class S>
struct AttentionUnit {
  int first_row = 0;  // of the sequence
  int seqlen = 0;
  int head = 0;
  int row = 0;
  RingPosition<S::kSlots> slot;
  bool releases = false;  // the warpgroup reads these slots for the last time

  __device__ __forceinline__ uint4 Pack() const {
    return {static_cast<uint32_t>(first_row), static_cast<uint32_t>(seqlen),
            static_cast<uint32_t>(row),
            static_cast<uint32_t>(head << 16 | slot.slot << 8 | releases << 1) | slot.phase};
  }
  // From what lane 0 has.
  static __device__ __forceinline__ AttentionUnit Broadcast(const uint4& v) {
    AttentionUnit unit;
    unit.first_row = __shfl_sync(~0u, v.x, 0);
    unit.seqlen = __shfl_sync(~0u, v.y, 0);
    unit.row = __shfl_sync(~0u, v.z, 0);
    const uint32_t rest = __shfl_sync(~0u, v.w, 0);
    unit.head = rest >> 16;
    unit.slot.slot = rest >> 8 & 0xff;
    unit.slot.phase = rest & 1;
    unit.releases = rest >> 1 & 1;
    return unit;
  }
};

// What lies behind the buffers in shared memory.
template <class S>
struct AttentionTail {
  uint64_t slot_full[S::kSlots];   // K and V have arrived
  uint64_t slot_clean[S::kSlots];  // and V is zero behind the sequence
  uint64_t slot_empty[S::kSlots];  // of the warpgroups and of LoadQueries
  uint64_t unit_given[kAttentionWarpgroups];
  uint64_t query_full[kAttentionWarpgroups];
  uint64_t unit_taken[kAttentionWarpgroups];  // and its Q
  uint4 units[kAttentionWarpgroups];          // AttentionUnit
  UnitPlace range[2];                         // what the block works through: from here to there
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ATTENTION_RING_CUH_
