#ifndef FLASHSVD_KERNELS_CUDA_GEMM_MAINLOOP_CUH_
#define FLASHSVD_KERNELS_CUDA_GEMM_MAINLOOP_CUH_

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ring_position.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace flashsvd {

// The product of a [kRows, k] tile of row-major x and a [kCols, k] tile of a packed weight W, for
// compute capability 9.0. One thread streams both through shared memory; kRowGroups x kColGroups
// consumer warpgroups multiply, each 64 rows x kN columns with float32 sums in registers. Loader
// and consumers walk the same tiles in the same order, so the rings run on from one tile to the
// next.
//
// x comes 64 columns of k at a time, a row of the 128-byte swizzle. W, the larger part, comes with
// it (kWDepth == 64, kWSlots == kXSlots), or in parts of its own: with large tiles that lets more
// be under way in the same memory, with small ones the additional steps cost more than that gains.
//
// kProducer: a warp of its own loads. Three warpgroups with large tiles leave it no registers; then
// the first thread of the last warpgroup loads between its products, and a block has one tile, the
// slots of whose last steps are not released.
template <class T, int kN_, int kRowGroups_, int kColGroups_, int kXSlots_, int kWSlots_,
          int kWDepth_, bool kProducer_ = true>
struct GemmMainloop {
  using Element = T;
  static constexpr int kN = kN_;
  static constexpr int kRowGroups = kRowGroups_;
  static constexpr int kColGroups = kColGroups_;
  static constexpr int kXSlots = kXSlots_;
  static constexpr int kWSlots = kWSlots_;
  static constexpr int kWDepth = kWDepth_;
  static constexpr bool kProducer = kProducer_;
  static constexpr int kXDepth = 64;
  static constexpr int kParts = kXDepth / kWDepth;  // steps for every slot of x
  static constexpr bool kTogether = kParts == 1;    // x and W fill one slot and share its barriers
  static_assert(kTogether ? kXSlots == kWSlots : kProducer_);
  static constexpr int kGroups = kRowGroups * kColGroups;
  static constexpr int kConsumers = 128 * kGroups;
  static constexpr int kThreads = kConsumers + (kProducer ? 32 : 0);
  static constexpr int kLoader = kProducer ? kConsumers : kConsumers - 128;  // the loading thread
  static constexpr int kRows = 64 * kRowGroups;
  static constexpr int kCols = kN * kColGroups;
  static constexpr int kXBytes = kRows * kXDepth * 2;  // [kRows][64], 128-byte swizzle
  static constexpr int kWBytes = kCols * kWDepth * 2;  // [kWDepth / 8][kCols][8]
  static constexpr int kW = kXSlots * kXBytes;
  static constexpr int kRingBytes = kW + kWSlots * kWBytes;

  // In shared memory, as `ring` is, 1024-byte aligned.
  struct Barriers {
    uint64_t x_full[kXSlots];
    uint64_t x_empty[kXSlots];
    uint64_t w_full[kWSlots];
    uint64_t w_empty[kWSlots];
  };

  struct Position {
    RingPosition<kXSlots> x;
    RingPosition<kWSlots> w;
  };

  static __device__ void Init(Barriers* barriers) {
    for (int i = 0; i < kWSlots; ++i) {
      BarrierInit(&barriers->w_full[i], 1);
      BarrierInit(&barriers->w_empty[i], 4 * kGroups);
    }
    if constexpr (!kTogether) {
      for (int i = 0; i < kXSlots; ++i) {
        BarrierInit(&barriers->x_full[i], 1);
        BarrierInit(&barriers->x_empty[i], 4 * kGroups);
      }
    }
  }

  // Of W; what lies beyond k is zero.
  static __device__ int Steps(int k_padded) { return (k_padded + kWDepth - 1) / kWDepth; }

  // ---- The loading thread ----

  static __device__ void LoadW(char* ring, Barriers* barriers, int slot, const CUtensorMap* w,
                               int step, int first_col) {
    BarrierExpect(&barriers->w_full[slot], kWBytes + (kTogether ? kXBytes : 0));
    CopyBox3(ring + kW + slot * kWBytes, w, 0, first_col / 8, step * (kWDepth / 8),
             &barriers->w_full[slot]);
  }
  // x of a step whose W is under way; kTogether.
  static __device__ void LoadX(char* ring, Barriers* barriers, int slot, const CUtensorMap* x,
                               int step, int first_row) {
    CopyBox2(ring + slot * kXBytes, x, step * kXDepth, first_row, &barriers->w_full[slot]);
  }
  // The weights of the first steps of the first tile, which need not wait for the kernel before:
  // `bytes` of them at most, since more than comes in while that one ends delays x. Returns how
  // many steps.
  static __device__ int Prefetch(char* ring, Barriers* barriers, const CUtensorMap* w, int k_padded,
                                 int first_col, int bytes) {
    const int count = min(min(Steps(k_padded), kWSlots), bytes / kWBytes);
    for (int step = 0; step < count; ++step) LoadW(ring, barriers, step, w, step, first_col);
    return count;
  }
  // One tile, of whose steps the first `prefetched` have their weights under way.
  static __device__ void Load(char* ring, Barriers* barriers, Position& at, const CUtensorMap* x,
                              const CUtensorMap* w, int k_padded, int prefetched, int first_row,
                              int first_col) {
    const int steps = Steps(k_padded);
    for (int step = 0; step < steps; ++step, at.w.Next()) {
      if (!kTogether && step % kParts == 0) {
        uint64_t* full = &barriers->x_full[at.x.slot];
        BarrierWait(&barriers->x_empty[at.x.slot], at.x.phase ^ 1);
        BarrierExpect(full, kXBytes);
        CopyBox2(ring + at.x.slot * kXBytes, x, step * kWDepth, first_row, full);
        at.x.Next();
      }
      if (step >= prefetched) {
        BarrierWait(&barriers->w_empty[at.w.slot], at.w.phase ^ 1);
        LoadW(ring, barriers, at.w.slot, w, step, first_col);
      }
      if (kTogether) LoadX(ring, barriers, at.w.slot, x, step, first_row);
    }
  }

  // ---- Consumers ----

  // This thread's warpgroup; through a shuffle, so that the compiler knows it to be the same for
  // the whole warp. Otherwise it waits for every product by itself.
  static __device__ int Group() {
    return __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / 128, 0);
  }

  static __device__ void Release(uint64_t* empty) {
    if (threadIdx.x % 32 == 0) BarrierArrive(empty);
  }

  // Steps at the end of a tile that warpgroups can do in turn: the ring holds them while it gets
  // back all slots before them, of which the last are released a step late.
  static constexpr int kTurnSteps =
      kWSlots - 1 < kParts * (kXSlots - 1) ? kWSlots - 1 : kParts * (kXSlots - 1);

  // d = the tile's product, of warpgroup `group`; kAdd: d += it. before_step(step) is called by all
  // its threads, while the products of the step before are under way.
  //
  // in_turn: the warpgroups do the last steps one after the other, so that each has its part of the
  // tile while the next still multiply: with few tiles, what follows is hidden better. Uses named
  // barriers 8 and up.
  template <bool kAdd = false, class BeforeStep>
  static __device__ __forceinline__ void Multiply(float (&d)[kN / 2], char* ring,
                                                  Barriers* barriers, Position& at, int group,
                                                  int k_padded, bool in_turn,
                                                  const BeforeStep& before_step) {
    const uint64_t a0 = Swizzle128Descriptor(ring + group / kColGroups * 64 * kXDepth * 2);
    const uint64_t b0 =
        CoreMatrixDescriptor(ring + kW + group % kColGroups * kN * 16, 16 * kCols, 128);
    const int steps = Steps(k_padded);
    // With fewer steps than slots a warpgroup might come round to the next tile's turn too early.
    const bool turns = in_turn && steps > kWSlots;
    int old_w = 0;
    for (int step = 0; step < steps; ++step) {
      before_step(step);
      if (turns && group > 0 && step == steps - kTurnSteps) NamedBarrierSync(8 + group, 256);
      const int part = step % kParts;
      const int old_x = at.x.slot;
      if (!kTogether && part == 0) {
        if (step > 0) at.x.Next();
        BarrierWait(&barriers->x_full[at.x.slot], at.x.phase);
      }
      BarrierWait(&barriers->w_full[at.w.slot], at.w.phase);
      const int x_slot = kTogether ? at.w.slot : at.x.slot;
      const uint64_t a = Advance(a0, x_slot * kXBytes + part * kWDepth * 2);
      const uint64_t b = Advance(b0, at.w.slot * kWBytes);
      PinRegisters(d);
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < kWDepth / 16; ++i) {
        Wgmma<T, kN>::Shared(d, Advance(a, 32 * i), Advance(b, 32 * kCols * i),
                             kAdd || step + i > 0);
      }
      WgmmaCommit();
      WgmmaWait<1>();  // of the step before
      if (step > 0 && (kProducer || step <= steps - kWSlots)) {
        Release(&barriers->w_empty[old_w]);
        if (!kTogether && part == 0) Release(&barriers->x_empty[old_x]);
      }
      old_w = at.w.slot;
      at.w.Next();
    }
    if (turns && group + 1 < kGroups) NamedBarrierArrive(9 + group, 256);
    WgmmaWait<0>();
    PinRegisters(d);
    if constexpr (kProducer) Release(&barriers->w_empty[old_w]);
    if constexpr (!kTogether) {
      Release(&barriers->x_empty[at.x.slot]);
      at.x.Next();
    }
  }
};

// acc = bias, in both of this thread's rows.
template <int kN>
__device__ __forceinline__ void StartWithBias(float (&acc)[kN / 2], const float* bias) {
  bias += 2 * (threadIdx.x % 4);
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
    const auto b = *reinterpret_cast<const float2*>(bias + 8 * j);
    acc[4 * j] = acc[4 * j + 2] = b.x;
    acc[4 * j + 1] = acc[4 * j + 3] = b.y;
  }
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_GEMM_MAINLOOP_CUH_
