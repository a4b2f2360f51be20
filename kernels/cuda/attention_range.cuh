#ifndef FLASHSVD_KERNELS_CUDA_ATTENTION_RANGE_CUH_
#define FLASHSVD_KERNELS_CUDA_ATTENTION_RANGE_CUH_

#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"

namespace flashsvd {

constexpr int kUnitRows = 64;

// The work of an AttentionSchedule in units of 64 query rows of one head, ordered by sequence, then
// head, then row: so that units which share keys and values are neighbours. A place in that order:
// unit `row` of head `head` of the sequence whose first tile is `tile`.
struct UnitPlace {
  AttentionTile sequence;  // the tile
  int tile = 0;
  int head = 0;
  int row = 0;
  __device__ __forceinline__ bool operator<(const UnitPlace& other) const {
    return tile < other.tile ||
           (tile == other.tile && (head < other.head || (head == other.head && row < other.row)));
  }
};

struct SequenceCost {
  int units = 0;  // of one head
  int per_unit = 0;
  __device__ __forceinline__ int PerHead() const { return units * per_unit; }
};

__device__ __forceinline__ AttentionTile LoadTile(const AttentionSchedule* schedule, int tile) {
  const int4 v = *(reinterpret_cast<const int4*>(schedule + 1) + tile);
  return {v.x, v.y, v.z, v.w};
}

// Of the sequence that starts at this tile; nothing for a tile inside a sequence. A unit costs its
// key blocks, and about two more for its beginning and end.
template <int kKeys>
__device__ __forceinline__ SequenceCost CostOf(const AttentionTile& tile) {
  if (tile.query != 0) return {};
  const uint32_t seqlen = tile.seqlen;
  return {static_cast<int>((seqlen + kUnitRows - 1) / kUnitRows),
          static_cast<int>((seqlen + kKeys - 1) / kKeys + 128 / kKeys)};
}

// About a / b, within [0, count); never falls as a grows.
__device__ __forceinline__ int Share(int a, int b, int count) {
  return max(0, min(static_cast<int>(__fdividef(a, b)), count - 1));
}

// Shares the units among gridDim.x blocks by cost, each a contiguous range: where does that of
// block `block` begin? (That of gridDim.x: behind the last.) All lanes of a warp call it, one of
// them writes the answer. For one boundary all blocks find the same place; where it is exactly
// matters for nothing but balance, so quotients are approximate.
// This is the way to a block's first load, hence few steps of long latency.
// REQUIRES: the tiles of a sequence are neighbours, in ascending order. max_tiles tiles may be
// read, whatever is behind the last: so their loads need not wait for num_tiles.
template <int kKeys>
__device__ __forceinline__ void FindUnitPlace(const AttentionSchedule* schedule, int max_tiles,
                                              int num_heads, int block, UnitPlace* place) {
  const int lane = threadIdx.x % 32;
  const int num_tiles = schedule->num_tiles;
  const int tiles_per_lane = (max_tiles + 31) / 32;
  const int first_tile = lane * tiles_per_lane;
  const AttentionTile tile = LoadTile(schedule, min(first_tile, max_tiles - 1));
  int cost = first_tile < num_tiles ? CostOf<kKeys>(tile).PerHead() : 0;
#pragma unroll 4
  for (int t = first_tile + 1; t < min(first_tile + tiles_per_lane, max_tiles); ++t) {
    const int next = CostOf<kKeys>(LoadTile(schedule, t)).PerHead();
    cost += t < num_tiles ? next : 0;
  }
  int after = cost;  // cost of one head of all tiles of this lane and those before it
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, after, step);
    if (lane >= step) after += other;
  }
  const int total = __shfl_sync(~0u, after, 31) * num_heads;
  const int blocks = gridDim.x;
  const int target = block < blocks ? static_cast<int>(total * __fdividef(block, blocks)) : total;
  const uint32_t beyond = __ballot_sync(~0u, after * num_heads > target);
  if (beyond == 0) {
    if (lane == 0) *place = {{}, num_tiles, 0, 0};
  } else if (lane == __ffs(beyond) - 1) {
    int rest = target - (after - cost) * num_heads;
    AttentionTile at = tile;
    for (int t = first_tile;; at = LoadTile(schedule, ++t)) {
      const SequenceCost sequence = CostOf<kKeys>(at);
      const int per_head = sequence.PerHead();
      if (rest < per_head * num_heads) {
        const int head = Share(rest, per_head, num_heads);
        const int row = Share(rest - head * per_head, sequence.per_unit, sequence.units);
        *place = {at, t, head, row};
        break;
      }
      rest -= per_head * num_heads;
    }
  }
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ATTENTION_RANGE_CUH_
