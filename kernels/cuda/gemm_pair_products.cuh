#ifndef FLASHSVD_KERNELS_CUDA_GEMM_PAIR_PRODUCTS_CUH_
#define FLASHSVD_KERNELS_CUDA_GEMM_PAIR_PRODUCTS_CUH_

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/add_norm_epilogue.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ring_position.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace flashsvd {

// The two products of gemm_pair_add_norm_sm90.cu: how they are laid out, loaded and multiplied.

constexpr int kPairCluster = 2;
constexpr int kPairRows = 64;
constexpr int kPairDepth = 64;      // of a step of y A'
constexpr int kPairLastDepth = 32;  // of a step of the product with B'

// kN: columns of x of a warpgroup   kFirstN: columns of y A' of one, as far as there are as many
template <class T, int kN_, int kGroups_, int kFirstN_>
struct PairShape {
  using Element = T;
  static constexpr int kN = kN_;
  static constexpr int kFirstN = kFirstN_;
  static constexpr int kGroups = kGroups_;
  static constexpr int kRows = kPairRows;
  static constexpr int kCols = kN * kGroups;
  static constexpr int kConsumers = 128 * kGroups;
  static constexpr int kThreads = kConsumers + 32;
  static constexpr int kMaxShare = kFirstN * kGroups;
  static constexpr int kYBytes = kPairRows * kPairDepth * 2;  // [kPairRows][64], 128-byte swizzle
  static constexpr int kBBytes = kCols * kPairLastDepth * 2;  // [kPairLastDepth / 8][kCols][8]
  // y and, behind it, A [kPairDepth / 8][share][8]; or B.
  static constexpr int kSlotBytes =
      (std::max(kYBytes + kMaxShare * kPairDepth * 2, kBBytes) + 1023) / 1024 * 1024;
  static constexpr int kSlots = kSlotBytes <= 24 * 1024 ? 5 : 4;
};

// Shared memory; the ring first.
template <class S>
struct PairLayout {
  struct alignas(16) Barriers {
    uint64_t full[S::kSlots];
    uint64_t empty[S::kSlots];
    uint64_t x[4 * S::kGroups];  // a warp's rows of x are there
    uint64_t params;             // bias, gamma and beta are there
    uint64_t middle;             // the other block's columns of y A' are there
    uint64_t stats[2];           // the tile's statistics are there; by tile parity
  };
  static constexpr int kMiddle = S::kSlots * S::kSlotBytes;  // y A', [r_padded / 8][kPairRows][8]
  static constexpr int kX = kMiddle + kPairCluster * S::kMaxShare * kPairRows * 2;
  static constexpr int kWarpXBytes = 16 * S::kN * 2;
  static constexpr int kParams = kX + 4 * S::kGroups * kWarpXBytes;  // bias, gamma, beta
  static constexpr int kBarriers = kParams + 3 * S::kCols * 4;
  static constexpr int kStats = kBarriers + sizeof(Barriers);  // [2][kStatsSize]
  static constexpr int kStatsSize = kPairCluster * S::kCols / kUnit<S> * kPairRows;
  static constexpr int kBytes = kStats + 2 * kStatsSize * static_cast<int>(sizeof(Moments));
  static_assert(kBytes <= 227 * 1024);
};

struct PairArgs {
  CUtensorMap y;
  CUtensorMap a;
  CUtensorMap b;
  CUtensorMap x;  // boxes of 16 rows x 64 columns
  void* x_data;
  int64_t x_stride;
  const float* bias;
  const float* gamma;
  const float* beta;
  float epsilon;
  float inverse_d;
  int d;
  int n;
  int first_steps;  // of y A'
  int share;        // columns of y A' of a block, a multiple of 8
  int r_padded;
};

// The loading thread.
template <class S>
class PairProducer {
 public:
  __device__ PairProducer(const PairArgs& args, char* ring,
                          typename PairLayout<S>::Barriers* barriers, int rank)
      : args_(args), ring_(ring), barriers_(barriers), rank_(rank) {}

  // A of the first steps, which need not wait for the kernel before.
  __device__ void Prefetch() {
    prefetched_ = min(args_.first_steps, S::kSlots);
    for (int step = 0; step < prefetched_; ++step) LoadA(step, step);
  }

  __device__ void LoadTile(int tile_row) {
    for (int step = 0; step < args_.first_steps; ++step, at_.Next()) {
      if (step >= prefetched_) {
        BarrierWait(&barriers_->empty[at_.slot], at_.phase ^ 1);
        LoadA(at_.slot, step);
      }
      CopyBox2(ring_ + at_.slot * S::kSlotBytes, &args_.y, step * kPairDepth, tile_row,
               &barriers_->full[at_.slot]);
    }
    prefetched_ = 0;
    for (int k = 0; k < args_.r_padded; k += kPairLastDepth, at_.Next()) {
      uint64_t* full = &barriers_->full[at_.slot];
      BarrierWait(&barriers_->empty[at_.slot], at_.phase ^ 1);
      BarrierExpect(full, S::kBBytes);
      CopyBox3(ring_ + at_.slot * S::kSlotBytes, &args_.b, 0, rank_ * S::kCols / 8, k / 8, full);
    }
  }

 private:
  __device__ void LoadA(int slot, int step) {
    uint64_t* full = &barriers_->full[slot];
    BarrierExpect(full, S::kYBytes + args_.share * kPairDepth * 2);
    CopyBox3(ring_ + slot * S::kSlotBytes + S::kYBytes, &args_.a, 0, rank_ * args_.share / 8,
             step * (kPairDepth / 8), full);
  }

  const PairArgs& args_;
  char* ring_;
  typename PairLayout<S>::Barriers* barriers_;
  int rank_;
  int prefetched_ = 0;
  RingPosition<S::kSlots> at_;
};

__device__ __forceinline__ void ReleaseSlot(uint64_t* empty) {
  if (threadIdx.x % 32 == 0) BarrierArrive(empty);
}

// acc = this warpgroup's columns of y A'. before_step(step): as GemmMainloop's.
template <class S, class BeforeStep>
__device__ __forceinline__ void FirstProduct(float (&acc)[S::kFirstN / 2], const PairArgs& args,
                                             char* ring, typename PairLayout<S>::Barriers* barriers,
                                             RingPosition<S::kSlots>& at, int group,
                                             const BeforeStep& before_step) {
  const uint64_t a0 = Swizzle128Descriptor(ring);
  const uint64_t b0 =
      CoreMatrixDescriptor(ring + S::kYBytes + group * S::kFirstN * 16, 16 * args.share, 128);
  int old = 0;
  for (int step = 0; step < args.first_steps; ++step) {
    before_step(step);
    BarrierWait(&barriers->full[at.slot], at.phase);
    const uint64_t a = Advance(a0, at.slot * S::kSlotBytes);
    const uint64_t b = Advance(b0, at.slot * S::kSlotBytes);
    PinRegisters(acc);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kPairDepth / 16; ++i) {
      Wgmma<typename S::Element, S::kFirstN>::Shared(acc, Advance(a, 32 * i),
                                                     Advance(b, 32 * args.share * i), step + i > 0);
    }
    WgmmaCommit();
    WgmmaWait<1>();  // of the step before
    if (step > 0) ReleaseSlot(&barriers->empty[old]);
    old = at.slot;
    at.Next();
  }
  WgmmaWait<0>();
  PinRegisters(acc);
  ReleaseSlot(&barriers->empty[old]);
}

// Rounds acc to this warpgroup's columns of y A' at `middle`, the first `units` eights of them.
template <class S>
__device__ __forceinline__ void StoreMiddle(const float (&acc)[S::kFirstN / 2], char* middle,
                                            int warp_row, int units) {
  using T = typename S::Element;
  constexpr int kUnits = S::kFirstN / 8;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  char* to = middle + (warp_row + lane % 16) * 16;
#pragma unroll
  for (int u = 0; u < kUnits; u += 2) {
    const bool two = u + 1 < kUnits && u + 1 < units;  // else the one is stored twice
    uint32_t r[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* from = acc + 4 * u + 2 * i;
      r[i] = Pack2<T>(from[0], from[1]);
      r[2 + i] = u + 1 < kUnits ? Pack2<T>(from[4], from[5]) : r[i];
      if (!two) r[2 + i] = r[i];
    }
    if (u < units) {
      StoreMatrix4(to + (u + (two ? lane / 16 : 0)) * (kPairRows * 16), r[0], r[1], r[2], r[3]);
    }
  }
}

// acc += kCount products of 16 columns of y A', one group of them.
template <class S, int kCount>
__device__ __forceinline__ void MiddleProducts(float (&acc)[S::kN / 2], uint64_t a, uint64_t b) {
  PinRegisters(acc);
  WgmmaFence();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    Wgmma<typename S::Element, S::kN>::Shared(acc, Advance(a, 2 * kPairRows * 16 * i),
                                              Advance(b, 32 * S::kCols * i));
  }
  WgmmaCommit();
}

// acc += y A' times this warpgroup's rows of B.
template <class S>
__device__ __forceinline__ void LastProduct(float (&acc)[S::kN / 2], const PairArgs& args,
                                            char* shared,
                                            typename PairLayout<S>::Barriers* barriers,
                                            RingPosition<S::kSlots>& at, int group) {
  static_assert(kPairLastDepth == 32);
  const uint64_t a0 = CoreMatrixDescriptor(shared + PairLayout<S>::kMiddle, kPairRows * 16, 128);
  const uint64_t b0 = CoreMatrixDescriptor(shared + group * S::kN * 16, 16 * S::kCols, 128);
  int old = 0;
  for (int k = 0; k < args.r_padded; k += kPairLastDepth) {
    BarrierWait(&barriers->full[at.slot], at.phase);
    const uint64_t a = Advance(a0, k / 8 * kPairRows * 16);
    const uint64_t b = Advance(b0, at.slot * S::kSlotBytes);
    if (k + 16 < args.r_padded) {
      MiddleProducts<S, 2>(acc, a, b);
    } else {
      MiddleProducts<S, 1>(acc, a, b);  // behind r_padded is nothing that may be multiplied
    }
    WgmmaWait<1>();  // of the step before
    if (k > 0) ReleaseSlot(&barriers->empty[old]);
    old = at.slot;
    at.Next();
  }
  WgmmaWait<0>();
  PinRegisters(acc);
  ReleaseSlot(&barriers->empty[old]);
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_GEMM_PAIR_PRODUCTS_CUH_
