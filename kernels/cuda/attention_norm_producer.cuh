#ifndef FLASHSVD_KERNELS_CUDA_ATTENTION_NORM_PRODUCER_CUH_
#define FLASHSVD_KERNELS_CUDA_ATTENTION_NORM_PRODUCER_CUH_

#include <cuda_runtime.h>

#include "kernels/cuda/attention_norm_shape.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ring_position.cuh"

namespace flashsvd {

// The sequences that the row tile from `row` on touches, by one warp.
// REQUIRES of the schedule: what AttentionSchedule says. max_tiles tiles may be read.
template <class S>
__device__ __forceinline__ void FindSegments(const AttentionNormArgs& args, int row,
                                             TileSegment* segments, int* num_segments,
                                             int* num_blocks) {
  const int lane = threadIdx.x % 32;
  const int num_tiles = args.schedule->num_tiles;
  int4 covering = {};  // the last tile that starts at or before `row`
  int inside = 0;      // sequences that start behind it
  int blocks = 0;      // of their keys, this lane's
#pragma unroll 2
  for (int first = 0; first < args.max_tiles; first += 32) {
    const int t = first + lane;
    int4 tile = *(reinterpret_cast<const int4*>(args.schedule + 1) + min(t, args.max_tiles - 1));
    const int start = tile.x + tile.z - row;  // AttentionTile: first_row, seqlen, query
    const bool valid = t < num_tiles;
    const uint32_t before = __ballot_sync(~0u, valid && start <= 0);
    if (before != 0) {
      const int last = 31 - __clz(before);
      covering.x = __shfl_sync(~0u, tile.x, last);
      covering.y = __shfl_sync(~0u, tile.y, last);
    }
    const bool begins = valid && start > 0 && start < S::kRows && tile.z == 0;
    const uint32_t begin = __ballot_sync(~0u, begins);
    if (begins) {
      const int place = 1 + inside + __popc(begin & ((1u << lane) - 1));
      segments[place] = {tile.x, tile.y, start, min(start + tile.y, S::kRows)};
      blocks += (tile.y + S::kKeys - 1) / S::kKeys;
    }
    inside += __popc(begin);
  }
  const int rest = covering.x + covering.y - row;
  blocks = __reduce_add_sync(~0u, blocks);
  if (lane == 0) {
    segments[0] = {covering.x, covering.y, 0, min(rest, S::kRows)};
    *num_segments = rest > 0 ? 1 + inside : 0;
    *num_blocks = blocks + (covering.y + S::kKeys - 1) / S::kKeys;
  }
}

// Fills the ring of one consumer warpgroup, by one thread: with the keys and values of its heads,
// then with its share of the weights.
template <class S>
__device__ __forceinline__ void FillRing(const AttentionNormArgs& args,
                                         const AttentionNormShared<S>& shared, int group,
                                         int rank) {
  typename S::Barriers& barriers = shared.Barriers();
  const HeadPlan<S> plan(args, rank);
  const int segments = barriers.num_segments;
  char* ring = shared.Ring(group);
  const DepthOrder<S> order(plan, rank);
  const char* w = args.w_data + rank * S::kCols * 16;
  const auto load_w = [&](int step, int place, char* to) {
    const char* from = w + 2 * order.Place(step) * args.w_stride;
    uint64_t* full = &barriers.w_full[place];
    BarrierExpect(full, S::kWBytes);
    CopyBytes(to, from, S::kWBytes / 2, full);
    CopyBytes(to + S::kWBytes / 2, from + args.w_stride, S::kWBytes / 2, full);
  };
  if (S::kSpare != 0 && group == 0) load_w(0, 0, shared.base + S::kGroups * S::kRingBytes);

  RingPosition<S::kSlots> slot;
  slot.slot = FirstSlot<S>(barriers.num_blocks * plan.HeadsOf(group));
  for (int i = 0; i < slot.slot; ++i) {  // as if they had been used
    BarrierArrive(&barriers.k_full[group][i]);
    BarrierArrive(&barriers.v_full[group][i]);
    BarrierArriveTimes(&barriers.kv_empty[group][i], 4);
  }
  const int row = static_cast<int>(blockIdx.x) / S::kCluster * S::kRows;
  const bool attends = group < plan.count;
  if (attends) BarrierExpect(&barriers.q_full[group], S::kBoxBytes);
  WaitForPredecessor();  // as late as can be: all steps before a first load count
  if (attends) {
    const int head = plan.first + group;
    CopyBox2(shared.Query(group, slot.slot), &args.qkv,
             head * args.d_qk - HeadShift(head, args.d_qk), row, &barriers.q_full[group]);
  }
  int until_query = S::kSlots - 1;  // slots to fill before the one that is lent to the query
#pragma unroll 1
  for (int i = group; i < plan.count; i += S::kGroups) {
    const int head = plan.first + i;
    const int k_column = (args.num_heads + head) * args.d_qk - HeadShift(head, args.d_qk);
    const int v_column =
        2 * args.num_heads * args.d_qk + head * args.d_v - HeadShift(head, args.d_v);
#pragma unroll 1
    for (int s = 0; s < segments; ++s) {
      const int first_row = shared.Segments()[s].first_row;
      const int seqlen = shared.Segments()[s].seqlen;
#pragma unroll 1
      for (int key = 0; key < seqlen; key += S::kKeys) {
        BarrierWait(&barriers.kv_empty[group][slot.slot], slot.phase ^ 1);
        if (until_query-- == 0) BarrierWait(&barriers.q_taken[group], 0);
        uint64_t* k_full = &barriers.k_full[group][slot.slot];
        uint64_t* v_full = &barriers.v_full[group][slot.slot];
        char* to = ring + slot.slot * S::kSlotBytes;
        BarrierExpect(k_full, S::kBoxBytes);
        CopyBox2(to, &args.qkv, k_column, first_row + key, k_full);
        BarrierExpect(v_full, S::kBoxBytes);
        CopyBox2(to + S::kKeyBytes, &args.qkv, v_column, first_row + key, v_full);
        slot.Next();
      }
    }
  }
  if (attends) BarrierWait(&barriers.q_taken[group], 0);
  const int col = rank * S::kCols;
  int place = 0, lap = 0;
#pragma unroll 1
  for (int step = 0; step < order.steps() + S::kXSlots; ++step) {
    if (WeightRing<S>::Owner(place) == group && step >= S::kSpare) {
      if (lap > 0) {
        BarrierWait(&barriers.w_empty[place], lap - 1 & 1);
      } else {
        const int at = WeightRing<S>::InRing(place);
        const int first = at * S::kWBytes / S::kSlotBytes;
        const int last = ((at + 1) * S::kWBytes - 1) / S::kSlotBytes;
        for (int i = first; i <= last; ++i) {
          BarrierWait(&barriers.kv_empty[group][i], slot.phase ^ 1);
        }
      }
      char* to = shared.base + WeightRing<S>::Offset(place);
      if (step < order.steps()) {
        load_w(step, place, to);
      } else {  // then x, some warps' rows at a time
        const int slot_of_x = step - order.steps();
        uint64_t* full = &barriers.x[slot_of_x];
        BarrierExpect(full, S::kXWarps * S::kWarpXBytes);
#pragma unroll 1
        for (int i = 0; i < S::kXWarps; ++i) {
          const int warp = slot_of_x * S::kXWarps + i;
#pragma unroll
          for (int box = 0; box < S::kN / 64; ++box) {
            CopyBox2(to + i * S::kWarpXBytes + box * 2048, &args.x,
                     col + warp / 4 * S::kN + 64 * box, row + warp % 4 * 16, full);
          }
        }
      }
    }
    if (++place == S::kWSlots) {
      place = 0;
      ++lap;
    }
  }
}

// Sends this block's heads to the other one as they get ready, by one thread.
template <class S>
__device__ __forceinline__ void SendContext(const AttentionNormArgs& args,
                                            const AttentionNormShared<S>& shared, int rank) {
  typename S::Barriers& barriers = shared.Barriers();
  const HeadPlan<S> plan(args, rank);
  for (int turn = 0; turn < plan.turns; ++turn) {
    const int begin = plan.Octets(turn);
    const int bytes = (plan.Octets(turn + 1) - begin) * S::kOctetBytes;
    char* from = shared.Context() + (plan.first * plan.octets + begin) * S::kOctetBytes;
    BarrierWait(&barriers.own[turn], 0);
    FenceAsyncProxy();
    CopyToCluster(ClusterAddress(from, 1 - rank), from, bytes,
                  ClusterAddress(&barriers.peer[turn], 1 - rank));
  }
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ATTENTION_NORM_PRODUCER_CUH_
