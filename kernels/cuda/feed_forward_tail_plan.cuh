#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_TAIL_PLAN_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_TAIL_PLAN_CUH_

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/feed_forward_shape.cuh"
#include "kernels/cuda/feed_forward_tiles.cuh"
#include "kernels/cuda/ptx.cuh"

// Where the tail (feed_forward_tail.cuh) has its sums and weights in shared memory, and the thread
// that brings them. `Storage` is StreamStorage.

namespace flashsvd {

// The slots at which the ring starts its laps over the tail's chunks.
struct Laps {
  int first;
  int second;
  int later;
};
// How the tail walks over d columns: tiles first_shared to first_held - 1 have their sums in shared
// memory, the others in registers.
struct TailPlan {
  int d;
  int tiles;
  int first_shared;
  int first_held;
  int slot_blocks;  // of sums that lie in slots, two of 64 rows each
  Laps laps;
  // Those of B2, and one of gamma and beta.
  __host__ __device__ constexpr int Chunks(int per_tile) const { return tiles * per_tile + 1; }
};

// Compile-time sizes.
template <class Shape>
struct TailShape {
  static constexpr int kCols = Shape::kHidden;              // of a tile
  static constexpr int kKept = Shape::kRank > 256 ? 4 : 0;  // first tiles in registers
  static constexpr int kWords = kCols / 4;                  // pairs of a tile in one thread
  static constexpr int kUnits = kCols / 16;
  // At least so many blocks of 64 x 64 replace P: what is in registers goes through them.
  static constexpr int kLeastBlocks = CeilDiv(std::max(2, kKept) * kCols, 64);
  static constexpr int kMostBlocks = 16;

  // Whether d columns fit in a ring of so many slots with so many blocks ahead of it, and then the
  // plan.
  static constexpr bool Plan(int d, int slots, int row_blocks, TailPlan* plan) {
    if (d % 64 != 0 || d < 64 || d > kMostBlocks * 64) return false;
    plan->d = d;
    plan->tiles = CeilDiv(d, kCols);
    plan->first_held = std::max(0, plan->tiles - 2);
    plan->first_shared = std::min(kKept, plan->first_held);
    const int blocks = CeilDiv((plan->first_held - plan->first_shared) * kCols, 64);
    plan->slot_blocks = std::max(0, blocks - row_blocks);
    const int chunks = plan->Chunks(Shape::kUpChunks);
    const int later = CeilDiv(plan->slot_blocks * 2 * Shape::kBlockBytes, Shape::kSlotBytes);
    if (later > slots) return false;
    // The residual is fetched once its slots' last chunks have been used, and that should be three
    // tiles before it is wanted (two are enough not to wait for ever). The first slot, from `start`
    // on, at which a lap that begins with this chunk may start.
    const auto start_lap = [&](int chunk, int start) {
      for (int slot = start; slot < later; ++slot) {
        const int block = row_blocks + slot * Shape::kSlotBytes / (2 * Shape::kBlockBytes);
        const int last = chunk + slot - start;
        const int tile = plan->first_shared + block * 64 / kCols;
        if (last < chunks && last / Shape::kUpChunks + 3 > tile) slot = start++;
      }
      return start;
    };
    const int first = start_lap(0, 0);
    plan->laps = {first, start_lap(slots - first, first), later};
    // A tile's chunks are released as those of the next are used.
    return first + chunks <= slots || later <= slots - Shape::kUpChunks;
  }
};

// The kernel's parameters. b2: PackedMatrixMap with the chunks of b1.
struct NormTail {
  CUtensorMap b2;
  const float* bias;
  LayerNormParams norm;
  TailPlan plan;
  uint32_t phase;  // of the ring's barriers in the tail's first lap
  int skipped;     // slots that the ring leaves out at first, for the tail to start where it does
};
// Without a tail.
struct NoTail {};

// The weight ring as the tail goes round in it.
template <int kSlots>
struct ShrinkingRing {
  struct Position {
    int slot;
    uint32_t phase;
    int second;
    int later;
    __device__ __forceinline__ explicit Position(const NormTail& tail)
        : slot(tail.plan.laps.first),
          phase(tail.phase),
          second(tail.plan.laps.second),
          later(tail.plan.laps.later) {}
    __device__ __forceinline__ void Next() {
      if (++slot == kSlots) {
        slot = second;
        second = later;
        phase ^= 1;
      }
    }
  };
  RingBarriers<kSlots>& barriers;

  __device__ __forceinline__ void WaitFull(const Position& at) {
    BarrierWait(&barriers.full[at.slot], at.phase);
  }
  __device__ __forceinline__ void WaitEmpty(const Position& at) {
    BarrierWait(&barriers.empty[at.slot], at.phase ^ 1);
  }
  __device__ __forceinline__ void Release(Position& at) {
    if (threadIdx.x % 32 == 0) BarrierArrive(&barriers.empty[at.slot]);
    at.Next();
  }
};

// What the tail has in shared memory of its own.
template <class Shape>
struct TailStorage {
  uint64_t residual[2][TailShape<Shape>::kMostBlocks];  // of each warpgroup: it is there

  // By one thread.
  __device__ __forceinline__ void InitBarriers() {
    for (auto& group : residual) {
      for (uint64_t& barrier : group) BarrierInit(&barrier, 1);
    }
  }
};

// Where block number `block` of a warpgroup's sums lies.
template <class Shape, class Storage>
__device__ __forceinline__ uint8_t* SumBlock(Storage& storage, int warpgroup, int block) {
  return block < Storage::kRowBlocks
             ? storage.rows[warpgroup] + block * Shape::kBlockBytes
             : storage.slots[0] +
                   (2 * (block - Storage::kRowBlocks) + warpgroup) * Shape::kBlockBytes;
}

// The residual of 64 rows to where block number `block` of their sums will be; one thread.
template <class Shape, class Storage>
__device__ __forceinline__ void BringResidual(Storage& storage, const TailPlan& plan,
                                              const CUtensorMap* x, int warpgroup, int row,
                                              int block) {
  uint64_t* barrier = &storage.tail.residual[warpgroup][block];
  BarrierExpect(barrier, Shape::kBlockBytes);
  CopyBox2(SumBlock<Shape>(storage, warpgroup, block), x,
           plan.first_shared * TailShape<Shape>::kCols + block * 64, row, barrier);
}

// Brings B2, and the residual of the blocks that lie in slots; one thread.
template <class Shape, class Storage>
struct TailProducer {
  static constexpr int kSlots = Storage::kSlots;
  Storage& storage;
  const NormTail& tail;
  const CUtensorMap* x;
  const int row;  // the block's first
  int next = 0;   // block of those in slots

  __device__ __forceinline__ void Run() {
    ShrinkingRing<kSlots> ring{storage.weights};
    typename ShrinkingRing<kSlots>::Position at(tail);
    const Laps laps = tail.plan.laps;
    const int chunks = tail.plan.Chunks(Shape::kUpChunks);
    int lap_size = kSlots - laps.second;
    int tile = 0;
    int part = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      // Chunks are used in order, so what is awaited here is not held up by residuals.
      if (chunk >= kSlots - laps.first) {
        if (chunk == kSlots - laps.first + kSlots - laps.second) lap_size = kSlots - laps.later;
        BringResiduals(chunk - lap_size);
      }
      ring.WaitEmpty(at);
      uint64_t* full = &storage.weights.full[at.slot];
      uint8_t* slot = storage.slots[at.slot];
      if (chunk == chunks - 1) {
        const int bytes = tail.plan.d * 4;
        BarrierExpect(full, 2 * bytes);
        CopyBytes(slot, tail.norm.gamma, bytes, full);
        CopyBytes(slot + bytes, tail.norm.beta, bytes, full);
      } else {
        BarrierExpect(full, Shape::kUpBytes);
        CopyBox3(slot, &tail.b2, 0, tile * (Shape::kHidden / 8), part * Shape::kUpSteps * 2, full);
      }
      at.Next();
      if (++part == Shape::kUpChunks) {
        part = 0;
        ++tile;
      }
    }
    BringResiduals(chunks);
  }

  // Those whose slots' last chunk comes before `end`.
  __device__ __forceinline__ void BringResiduals(int end) {
    const int chunks = tail.plan.Chunks(Shape::kUpChunks);
    const Laps laps = tail.plan.laps;
    for (; next < tail.plan.slot_blocks; ++next) {
      const int slot = ((next + 1) * 2 * Shape::kBlockBytes - 1) / Shape::kSlotBytes;
      // Its last use: in the second lap or the first, or else (negative) in the stream, whose last
      // lap ends with the slots before laps.first.
      int last = kSlots - laps.first + slot - laps.second;
      uint32_t phase = tail.phase ^ 1;
      if (slot < laps.second || last >= chunks) {
        last = slot - laps.first;
        phase = tail.phase;
        if (last >= chunks) {
          last = -1;
          phase ^= 1;
        }
      }
      if (last >= end) return;
      BarrierWait(&storage.weights.empty[slot], phase);
      for (int warpgroup = 0; warpgroup < 2; ++warpgroup) {
        BringResidual<Shape>(storage, tail.plan, x, warpgroup, row + warpgroup * 64,
                             Storage::kRowBlocks + next);
      }
    }
  }
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_TAIL_PLAN_CUH_
