#ifndef FLASHSVD_KERNELS_CUDA_ATTENTION_PRODUCER_CUH_
#define FLASHSVD_KERNELS_CUDA_ATTENTION_PRODUCER_CUH_

#include <cuda.h>

#include "kernels/cuda/attention_ring.cuh"
#include "kernels/cuda/ptx.cuh"

namespace flashsvd {

// The producers of attention_sm90.cu: three warps that walk the block's range of units. One thread
// fetches keys and values, one queries; the third warp cleans the values.
template <class S>
class AttentionProducer {
 public:
  __device__ AttentionProducer(const AttentionKernelParams& params, const CUtensorMap* map,
                               char* shared)
      : params_(params),
        map_(map),
        shared_(shared),
        tail_(reinterpret_cast<AttentionTail<S>*>(shared + S::kTailOffset)) {}

  // Keeps the ring full.
  __device__ void LoadKeys() {
    Walk([&](const Visit& visit) {
      const int head = visit.head;
      const int k_column = (params_.num_heads + head) * params_.d_qk - Shift(head, params_.d_qk);
      const int v_column =
          2 * params_.num_heads * params_.d_qk + head * params_.d_v - Shift(head, params_.d_v);
      const int idle = kAttentionWarpgroups - min(visit.count, kAttentionWarpgroups);
      RingPosition<S::kSlots> slot = visit.slot;
#pragma unroll 1
      for (int key = 0; key < visit.seqlen; key += S::kKeys) {
        BarrierWait(&tail_->slot_empty[slot.slot], slot.phase ^ 1);
        // In place of the warpgroups that have no unit of this visit.
        if (idle > 0) BarrierArriveTimes(&tail_->slot_empty[slot.slot], 4 * idle);
        uint64_t* full = &tail_->slot_full[slot.slot];
        char* to = shared_ + slot.slot * S::kSlotBytes;
        BarrierExpect(full, 2 * S::kBoxBytes);
        WaitOnce();
        CopyBox2(to, map_, k_column, visit.first_row + key, full);
        CopyBox2(to + S::kKeyBytes, map_, v_column, visit.first_row + key, full);
        slot.Next();
      }
    });
  }

  // Hands out units, each with its Q, while the one before it is worked at: once the keys of all
  // visits before have arrived. A warpgroup without a unit of theirs then waits for the right lap
  // of a slot, although it saw none of the laps between.
  __device__ void LoadQueries() {
    uint32_t parity = 1;  // of the last warpgroup's lap
    int warpgroup = 0;
    const auto give = [&](const AttentionUnit<S>& unit) {
      BarrierWait(&tail_->unit_taken[warpgroup], parity);
      if (unit.seqlen > 0) {
        uint64_t* full = &tail_->query_full[warpgroup];
        BarrierExpect(full, S::kBoxBytes);
        WaitOnce();
        CopyBox2(shared_ + S::kQueryOffset + warpgroup * S::kQueryBytes, map_,
                 unit.head * params_.d_qk - Shift(unit.head, params_.d_qk),
                 unit.first_row + unit.row * kUnitRows, full);
      }
      tail_->units[warpgroup] = unit.Pack();
      BarrierArrive(&tail_->unit_given[warpgroup]);
      if (++warpgroup == kAttentionWarpgroups) {
        warpgroup = 0;
        parity ^= 1;
      }
    };
    Walk([&](const Visit& visit) {
#pragma unroll 1
      for (int i = 0; i < visit.count; ++i) {
        give({visit.first_row, visit.seqlen, visit.head, visit.row + i, visit.slot,
              i + kAttentionWarpgroups >= visit.count});
      }
      RingPosition<S::kSlots> slot = visit.slot;
#pragma unroll 1
      for (int key = 0; key < visit.seqlen; key += S::kKeys) {
        BarrierWait(&tail_->slot_clean[slot.slot], slot.phase);
        BarrierArrive(&tail_->slot_empty[slot.slot]);
        slot.Next();
      }
    });
    for (int i = 0; i < kAttentionWarpgroups; ++i) give({});
  }

  // Zeroes values behind a sequence: their weight is 0, but 0 times infinity is not. All lanes.
  __device__ void CleanValues() {
    const int lane = threadIdx.x % 32;
    Walk([&](const Visit& visit) {
      RingPosition<S::kSlots> slot = visit.slot;
#pragma unroll 1
      for (int key = 0; key < visit.seqlen; key += S::kKeys) {
        BarrierWait(&tail_->slot_full[slot.slot], slot.phase);
        if (visit.seqlen - key < S::kKeys) {
          char* values = shared_ + slot.slot * S::kSlotBytes + S::kKeyBytes;
#pragma unroll 1
          for (int row = visit.seqlen - key + lane / 8; row < S::kKeys; row += 4) {
            *reinterpret_cast<uint4*>(values + row * S::kRowBytes + lane % 8 * 16) = uint4{};
          }
          FenceAsyncProxy();
        }
        __syncwarp();
        if (lane == 0) BarrierArrive(&tail_->slot_clean[slot.slot]);
        slot.Next();
      }
    });
  }

 private:
  // Units [row, row + count) of one head of one sequence, which share its keys and values: these
  // pass through the ring once, from `slot` on. All units of a block are dealt to its warpgroups in
  // turn.
  struct Visit {
    int first_row;
    int seqlen;
    int head;
    int row;
    int count;
    RingPosition<S::kSlots> slot;
  };

  // For the predecessor, as late as can be: all steps before a first load count.
  __device__ __forceinline__ void WaitOnce() {
    if (!waited_) WaitForPredecessor();
    waited_ = true;
  }

  template <class Do>
  __device__ __forceinline__ void Walk(const Do& visit) {
    RingPosition<S::kSlots> slot;
    UnitPlace at = tail_->range[0];
    const UnitPlace end = tail_->range[1];
    int loaded = -1, units = 0, blocks = 0;
    while (at < end) {
      if (at.tile != loaded) {
        if (loaded >= 0) at.sequence = LoadTile(params_.schedule, at.tile);
        loaded = at.tile;
        units = (at.sequence.seqlen + kUnitRows - 1) / kUnitRows;
        blocks = (at.sequence.seqlen + S::kKeys - 1) / S::kKeys;
      }
      const bool last = at.tile == end.tile && at.head == end.head;
      int count = (last ? end.row : units) - at.row;
      // Keys that the ring cannot hold pass through it again for every unit of a warpgroup.
      if (blocks > S::kSlots) count = min(count, kAttentionWarpgroups);
      visit({at.sequence.first_row, at.sequence.seqlen, at.head, at.row, count, slot});
      slot.Advance(blocks);
      at.row += count;
      if (at.row < units) continue;
      at.row = 0;
      if (++at.head < params_.num_heads) continue;
      at.head = 0;
      at.tile += params_.units_per_tile == 2 ? (units + 1) / 2 : units;
    }
  }

  const AttentionKernelParams& params_;
  const CUtensorMap* map_;
  char* shared_;
  AttentionTail<S>* tail_;
  bool waited_ = false;
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ATTENTION_PRODUCER_CUH_
