#ifndef FLASHSVD_KERNELS_CUDA_ATTENTION_RANGE_CUH_
#define FLASHSVD_KERNELS_CUDA_ATTENTION_RANGE_CUH_

#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"

namespace flashsvd {

constexpr int kUnitRows = 64;

// The work of an AttentionSchedule in units of 64 query rows of one head, ordered by sequence, then
// head, then row: so that units which share keys and values are neighbours. A place in that order:
// unit `unit` (head-major) of the sequence whose first tile is `tile`.
struct UnitPlace {
  int tile = 0;
  int unit = 0;
};
// What one block works through: [begin, end).
struct UnitRange {
  UnitPlace begin;
  UnitPlace end;
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
  return {(tile.seqlen + kUnitRows - 1) / kUnitRows,
          (tile.seqlen + kKeys - 1) / kKeys + (128 / kKeys)};
}

// Shares the units among gridDim.x blocks by cost, each a contiguous range. All lanes of a warp
// call it and get the result for block blockIdx.x. REQUIRES: the tiles of a sequence are
// neighbours, in ascending order. max_tiles tiles may be read, whatever is behind the last: so
// their loads need not wait for num_tiles.
template <int kKeys>
__device__ __forceinline__ UnitRange FindUnitRange(const AttentionSchedule* schedule, int max_tiles,
                                                   int num_heads) {
  const int lane = threadIdx.x % 32;
  const int num_tiles = schedule->num_tiles;
  const int tiles_per_lane = (max_tiles + 31) / 32;
  const int first_tile = min(lane * tiles_per_lane, max_tiles);
  const int last_tile = min(first_tile + tiles_per_lane, max_tiles);

  int cost = 0;
#pragma unroll 4
  for (int t = first_tile; t < last_tile; ++t) {
    const AttentionTile tile = LoadTile(schedule, t);
    if (t < num_tiles) cost += CostOf<kKeys>(tile).PerHead();
  }
  int after = cost;  // cost of one head of all tiles up to last_tile
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, after, step);
    if (lane >= step) after += other;
  }
  const int total = __shfl_sync(~0u, after, 31) * num_heads;

  const auto find = [&](int block) -> UnitPlace {
    const int blocks = gridDim.x;
    const int target = total / blocks * block + min(block, total % blocks);
    const uint32_t beyond = __ballot_sync(~0u, after * num_heads > target);
    if (beyond == 0) return {num_tiles, 0};
    const int owner = __ffs(beyond) - 1;
    UnitPlace place;
    if (lane == owner) {
      int rest = target - (after - cost) * num_heads;
      for (int t = first_tile; t < last_tile; ++t) {
        const SequenceCost sequence = CostOf<kKeys>(LoadTile(schedule, t));
        const int here = sequence.PerHead() * num_heads;
        if (rest < here) {
          place = {t, rest / sequence.per_unit};
          break;
        }
        rest -= here;
      }
    }
    return {__shfl_sync(~0u, place.tile, owner), __shfl_sync(~0u, place.unit, owner)};
  };
  const UnitPlace begin = find(blockIdx.x);
  return {begin, find(blockIdx.x + 1)};
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ATTENTION_RANGE_CUH_
