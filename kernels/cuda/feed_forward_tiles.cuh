#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_TILES_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_TILES_CUH_

#include <cstdint>

#include "kernels/cuda/feed_forward_products.cuh"
#include "kernels/cuda/feed_forward_shape.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

// The walk over tiles of F, as a warp that brings weights and a warpgroup that uses them.

namespace flashsvd {

// Slots of weights, filled in the order in which the consumers use them, and buffers of bias.
template <class Shape, int kSlots>
struct WeightRing {
  using Position = RingPosition<kSlots>;
  uint8_t (*slots)[Shape::kSlotBytes];
  float (*bias)[Shape::kHidden];
  RingBarriers<kSlots>* barriers;
  RingBarriers<kBiasTiles>* bias_barriers;
};

// Tiles first, first + step, ...: `count` of them.
struct TileRange {
  int first;
  int step;
  int count;
};

// Brings weights; one thread, chosen by ElectOne. All its operands are then uniform: a thread
// chosen by its number spends several times as long on a chunk, longer than the chunk's products
// take.
template <class Shape, int kSlots>
struct WeightProducer {
  const WeightRing<Shape, kSlots> ring;
  RingPosition<kSlots> at;

  // The next chunk: a box of `bytes` at these coordinates.
  __device__ __forceinline__ void Bring(const CUtensorMap* map, int row_group, int unit,
                                        int bytes) {
    ring.barriers->WaitEmpty(at);
    uint64_t* full = &ring.barriers->full[at.slot];
    BarrierExpect(full, bytes);
    CopyBox3(ring.slots[at.slot], map, 0, row_group, unit, full);
    at.Next();
  }

  __device__ __forceinline__ void BringTiles(const FeedForwardMaps& maps, const TileRange& tiles) {
    int f = tiles.first * Shape::kHidden;
    for (int tile = 0; tile < tiles.count; ++tile) {
#pragma unroll
      for (int chunk = 0; chunk < Shape::kUpChunks; ++chunk) {
        Bring(&maps.b1, f / 8, chunk * Shape::kUpSteps * 2, Shape::kUpBytes);
      }
#pragma unroll
      for (int chunk = 0; chunk < Shape::kDownChunks; ++chunk) {
        Bring(&maps.a2, 0, f / 8 + chunk * (Shape::kDepth / 8), Shape::kSlotBytes);
      }
      f += tiles.step * Shape::kHidden;
    }
  }
};

// Brings the bias of tile number `tile` of the range; a warp. Every thread arrives for what it
// wrote or read itself (kBiasWriters, kBiasReaders): that costs nothing, and racecheck can follow
// it.
constexpr int kBiasWriters = 32;
constexpr int kBiasReaders = 128;  // of a warpgroup
template <class Shape, int kSlots>
__device__ __forceinline__ void BringBias(const WeightRing<Shape, kSlots>& ring, const float* bias,
                                          int hidden, const TileRange& tiles, int tile,
                                          RingPosition<kBiasTiles>& at) {
  ring.bias_barriers->WaitEmpty(at);
#pragma unroll
  for (int i = threadIdx.x % 32; i < Shape::kHidden; i += 32) {
    const int unit = (tiles.first + tile * tiles.step) * Shape::kHidden + i;
    ring.bias[at.slot][i] = bias != nullptr && unit < hidden ? __ldg(bias + unit) : 0.0f;
  }
  BarrierArrive(&ring.bias_barriers->full[at.slot]);
  at.Next();
}

// h = the bias of tile number `tile` that was brought, in all rows.
template <class Ring, int kCount>
__device__ __forceinline__ void StartTile(float (&h)[kCount], const Ring& ring, int tile) {
  RingPosition<kBiasTiles> at{tile % kBiasTiles, static_cast<uint32_t>(tile / kBiasTiles % 2)};
  ring.bias_barriers->WaitFull(at);
  StartFromBias(h, ring.bias[at.slot]);
  PinRegisters(h);
  BarrierArrive(&ring.bias_barriers->empty[at.slot]);
}

// The bias as a product: A has ones in the first three of 16 columns, B a tile's bias in three
// parts of T, which together are as exact as float32. That spares the consumers the loads, and the
// additions, of a bias that comes from shared memory. B has ones in columns 3 and 4: an A with
// numbers there (Rows) adds them to its rows.
template <class T, class Shape>
struct BiasOperand {
  static constexpr bool kIsProduct = true;
  // [unit][8]: columns 0 to 7 of B; A's zeros stand against columns 8 to 15, which are the same.
  alignas(16) T rows[kBiasTiles][Shape::kHidden][8];
  alignas(16) T ones[2][8][8];  // the same 8 rows of A over and over
  RingBarriers<kBiasTiles> barriers;

  // By one warp, ahead of a barrier of the block.
  __device__ __forceinline__ void Init() {
    for (int i = threadIdx.x % 32; i < 2 * 64; i += 32) {
      (&ones[0][0][0])[i] = static_cast<T>(i < 64 && i % 8 < 3 ? 1.0f : 0.0f);
    }
    FenceAsyncProxy();
  }
  // Brings the bias of the next tile, units from `first` on of `count`, times `scale`; a warp,
  // converged.
  __device__ __forceinline__ void Bring(const float* bias, int first, int count, float scale,
                                        RingPosition<kBiasTiles>& at) {
    const int lane = threadIdx.x % 32;
    barriers.WaitEmpty(at);
#pragma unroll
    for (int i = lane; i < Shape::kHidden; i += 32) {
      const float b = bias != nullptr && first + i < count ? scale * __ldg(bias + first + i) : 0.0f;
      const float high = ToFloat(b);
      const float middle = ToFloat(b - high);
      *reinterpret_cast<uint4*>(rows[at.slot][i]) = {
          Pack2<T>(high, middle), Pack2<T>(b - high - middle, 1.0f), Pack2<T>(1.0f, 0.0f), 0};
    }
    FenceAsyncProxy();
    __syncwarp();
    if (lane == 0) BarrierArrive(&barriers.full[at.slot]);
    at.Next();
  }
  // Issues h = bias of tile number `tile` that was brought; part of the group that follows.
  __device__ __forceinline__ void Issue(float (&h)[Shape::kHidden / 2], int tile) {
    const RingPosition<kBiasTiles> at = Position(tile);
    barriers.WaitFull(at);
    WgmmaFence();
    Wgmma<T, Shape::kHidden>::Shared(h, CoreMatrixDescriptor(ones, 128, 0),
                                     CoreMatrixDescriptor(rows[at.slot], 0, 128), 0);
  }
  // Likewise h += bias, with an A from Rows.
  __device__ __forceinline__ void AddRows(float (&h)[Shape::kHidden / 2], const uint32_t (&a)[4],
                                          int tile) {
    const RingPosition<kBiasTiles> at = Position(tile);
    barriers.WaitFull(at);
    WgmmaFence();
    Wgmma<T, Shape::kHidden>::Registers(h, a, CoreMatrixDescriptor(rows[at.slot], 0, 128));
  }
  // A in registers: ones in the first three columns.
  __device__ __forceinline__ static void Rows(uint32_t (&a)[4]) {
    const int column = threadIdx.x % 4 * 2;
    a[0] = a[1] = column == 0 ? Pack2<T>(1.0f, 1.0f) : column == 2 ? Pack2<T>(1.0f, 0.0f) : 0;
    a[2] = a[3] = 0;
  }
  // Has a row of it, word `a` in this thread, subtract `value` too, in two parts of T. Returns what
  // is subtracted, exactly.
  __device__ __forceinline__ static float TakeOff(uint32_t& a, float value) {
    const float high = ToFloat(value);
    const float low = ToFloat(value - high);
    const int column = threadIdx.x % 4 * 2;
    if (column == 2) a = Pack2<T>(1.0f, -high);
    if (column == 4) a = Pack2<T>(-low, 0.0f);
    return high + low;
  }
  // Once that product is done.
  __device__ __forceinline__ void Release(int tile) {
    RingPosition<kBiasTiles> at = Position(tile);
    barriers.Release(at);
  }
  __device__ __forceinline__ static RingPosition<kBiasTiles> Position(int tile) {
    return {tile % kBiasTiles, static_cast<uint32_t>(tile / kBiasTiles % 2)};
  }
  __device__ __forceinline__ static float ToFloat(float v) {
    return static_cast<float>(static_cast<T>(v));
  }
};
// Without: the bias is what h starts from (StartTile).
struct BiasFromRing {
  static constexpr bool kIsProduct = false;
};

// The tensor cores' turn, passed to and fro between the two warpgroups; 0 has it first.
struct Turn {
  int warpgroup;
  __device__ __forceinline__ explicit Turn(int warpgroup) : warpgroup(warpgroup) {
    if (warpgroup == 1) Pass();
  }
  // Where a Turn that both have passed equally often left off.
  struct Continued {};
  __device__ __forceinline__ Turn(int warpgroup, Continued) : warpgroup(warpgroup) {}
  __device__ __forceinline__ void Wait() { NamedBarrierSync(1 + warpgroup, 256); }
  __device__ __forceinline__ void Pass() { NamedBarrierArrive(2 - warpgroup, 256); }
};
struct NoTurn {
  __device__ __forceinline__ explicit NoTurn(int) {}
  __device__ __forceinline__ void Wait() {}
  __device__ __forceinline__ void Pass() {}
};

template <class T, class Shape, int kSlots>
struct TileConsumer {
  // The chunks of a long turn are all in use until its end.
  static_assert(kSlots > Shape::kUpChunks + (Shape::kLongTurns ? Shape::kDownChunks : 0));

  const WeightRing<Shape, kSlots> ring;
  const int warpgroup;
  RingPosition<kSlots> at;    // the next chunk to use
  RingPosition<kSlots> done;  // the next chunk to release

  __device__ __forceinline__ uint64_t Slots(int leading) const {
    return CoreMatrixDescriptor(ring.slots, leading, 128);
  }

  // s += act(P B1' + bias) A2' over `tiles` tiles. Where the bias is a product, P and bias come in
  // ActivationScale. P's first kRegisterSteps steps are in registers,
  // the others in shared memory, [.][64][8].
  // A turn is one product; or, kLongTurns, the second product of a tile and the first of the next:
  // the other warpgroup then has twice as long to activate, which takes longer than one product
  // (arithmetic and wgmma compete for the register file), but more registers and weights are in
  // use.
  template <class Turn, class Bias = BiasFromRing>
  __device__ __forceinline__ void Stream(RankAccumulator<Shape>& s, const uint8_t* p_shared,
                                         const uint32_t* p_registers, int tiles,
                                         Activation activation, Bias* bias = nullptr) {
    if (tiles == 0) return;
    Turn turn(warpgroup);
    auto& barriers = *ring.barriers;
    const uint64_t p = CoreMatrixDescriptor(p_shared, 1024, 128);
    const uint64_t up = Slots(Shape::kHidden * 16);
    const uint64_t down = Slots(Shape::kRank * 16);
    float h[Shape::kHidden / 2];
    uint32_t a[Shape::kHidden / 4];
    const auto start = [&](int tile) {
      if constexpr (!Bias::kIsProduct) StartTile(h, ring, tile);
    };
    const auto issue_up = [&](int tile) {
      if constexpr (Bias::kIsProduct) bias->Issue(h, tile);
      IssueUp<T, Shape>(h, p_registers, p, up, barriers, at);
    };
    const auto up_done = [&](int tile) {
      if constexpr (Bias::kIsProduct) bias->Release(tile);
      PinRegisters(h);
    };
    const auto activate = [&] { ActivateTile<T, Bias::kIsProduct>(h, a, activation); };
    start(0);
    if constexpr (Shape::kLongTurns) {
      turn.Wait();
      issue_up(0);
      turn.Pass();
      ReleaseChunks<Shape::kUpChunks, 0>(barriers, done);
      up_done(0);
      activate();
      for (int tile = 1; tile < tiles; ++tile) {
        start(tile);
        turn.Wait();
        IssueDown<T, Shape>(s, a, down, barriers, at);
        issue_up(tile);
        turn.Pass();
        ReleaseChunks<Shape::kDownChunks, Shape::kUpChunks>(barriers, done);
        ReleaseChunks<Shape::kUpChunks, 0>(barriers, done);
        up_done(tile);
        activate();
      }
      turn.Wait();
      IssueDown<T, Shape>(s, a, down, barriers, at);
      turn.Pass();
      ReleaseChunks<Shape::kDownChunks, 0>(barriers, done);
    } else {
      for (int tile = 0; tile < tiles; ++tile) {
        if (tile > 0) start(tile);
        turn.Wait();
        issue_up(tile);
        turn.Pass();
        ReleaseChunks<Shape::kUpChunks, 0>(barriers, done);
        up_done(tile);
        activate();
        turn.Wait();
        IssueDown<T, Shape>(s, a, down, barriers, at);
        turn.Pass();
        ReleaseChunks<Shape::kDownChunks, 0>(barriers, done);
      }
    }
    if (kTwiceGelu<T> && activation == Activation::kGelu) {
      constexpr float kScale = 0.5f / (Bias::kIsProduct ? kTwiceGeluScale : 1.0f);
      PinAccumulator<Shape>(s);
#pragma unroll
      for (int p = 0; p < Shape::kParts; ++p) {
#pragma unroll
        for (float& v : s[p]) v *= kScale;
      }
    }
    PinAccumulator<Shape>(s);
  }
};

template <class Shape>
__device__ __forceinline__ void ZeroAccumulator(RankAccumulator<Shape>& s) {
#pragma unroll
  for (int p = 0; p < Shape::kParts; ++p) {
#pragma unroll
    for (int i = 0; i < Shape::kPartCols / 2; ++i) s[p][i] = 0;
  }
}

// Where a thread's pair m of P (PackPair) lies in a warpgroup's P in shared memory.
__device__ __forceinline__ uint32_t* PairOfP(uint8_t* p, int m) {
  const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  return reinterpret_cast<uint32_t*>(p + row * 16 + threadIdx.x % 4 * 4 + m / 2 * 1024 +
                                     m % 2 * 128);
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_TILES_CUH_
