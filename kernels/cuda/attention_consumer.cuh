#ifndef FLASHSVD_KERNELS_CUDA_ATTENTION_CONSUMER_CUH_
#define FLASHSVD_KERNELS_CUDA_ATTENTION_CONSUMER_CUH_

#include <cuda_runtime.h>

#include "kernels/cuda/attention_core.cuh"
#include "kernels/cuda/attention_ring.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace flashsvd {

// A consumer of attention_sm90.cu: a warpgroup that computes one unit of 64 rows at a time.
template <class S>
class AttentionConsumer {
 public:
  using T = typename S::Element;

  __device__ AttentionConsumer(const AttentionKernelParams& params, char* shared, int warpgroup)
      : params_(params),
        shared_(shared),
        tail_(reinterpret_cast<AttentionTail<S>*>(shared + S::kTailOffset)),
        warpgroup_(warpgroup),
        lane_(threadIdx.x % 32),
        warp_row_(threadIdx.x % 128 / 32 * 16),
        core_(shared) {}

  __device__ void Run() {
    AttentionUnit<S> unit = Take();
    while (unit.seqlen > 0) {
      Compute(unit);
      // The next unit's first products run while this one is stored.
      const AttentionUnit<S> next = Take();
      Store(unit);
      unit = next;
    }
    WgmmaWait<0>();
    PinRegisters(core_.s);
  }

 private:
  // Waits for the next unit; its first scores are in flight then. Without a unit these are products
  // of nothing, since the compiler can't follow products through a branch.
  __device__ __forceinline__ AttentionUnit<S> Take() {
    BarrierWait(&tail_->unit_given[warpgroup_], parity_);
    uint4 packed = {};
    if (lane_ == 0) packed = tail_->units[warpgroup_];
    const auto unit = AttentionUnit<S>::Broadcast(packed);
    if (unit.seqlen > 0) {
      BarrierWait(&tail_->query_full[warpgroup_], parity_);
      LoadQuery(unit);
      WaitForSlot(unit.slot, unit.seqlen);
    }
    parity_ ^= 1;
    __syncwarp();
    if (lane_ == 0) BarrierArrive(&tail_->unit_taken[warpgroup_]);
    core_.IssueScores(unit.slot.slot);
    return unit;
  }

  __device__ __forceinline__ void WaitForSlot(const RingPosition<S::kSlots>& slot, int limit) {
    uint64_t* ready = limit < S::kKeys ? tail_->slot_clean : tail_->slot_full;
    BarrierWait(&ready[slot.slot], slot.phase);
  }

  // Q as A operands, zero beyond the head and behind the sequence: rows there are not stored, but
  // could make the warp rebase.
  __device__ __forceinline__ void LoadQuery(const AttentionUnit<S>& unit) {
    const char* row = shared_ + S::kQueryOffset + warpgroup_ * S::kQueryBytes +
                      (warp_row_ + lane_ % 16) * S::kRowBytes;
    const int below = unit.seqlen - unit.row * kUnitRows - warp_row_ - lane_ / 4;
    const int begin = Shift(unit.head, params_.d_qk);
    const int end = begin + params_.d_qk;
#pragma unroll
    for (int step = 0; step < S::kDepthSteps; ++step) {
      uint32_t q[4];
      LoadMatrix4(q, row + ((2 * step + lane_ / 16) ^ lane_ % 8) * 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 16 * step + i / 2 * 8;
        const bool inside = column >= begin && column < end && i % 2 * 8 < below;
        core_.q[4 * step + i] = inside ? q[i] : 0;
      }
    }
  }

  __device__ __forceinline__ void Compute(const AttentionUnit<S>& unit) {
    RingPosition<S::kSlots> slot = unit.slot;
    core_.Compute(
        slot, unit.seqlen, S::kKeyBytes + 2 * Shift(unit.head, params_.d_v), params_.scale_log2,
        [&](const RingPosition<S::kSlots>& at, int limit) { WaitForSlot(at, limit); },
        // They came with the keys.
        [&](const RingPosition<S::kSlots>& at, int limit) { WaitForSlot(at, limit); },
        [&](int at) {
          if (unit.releases && lane_ == 0) BarrierArrive(&tail_->slot_empty[at]);
        });
  }

  // Through shared memory, so that memory sees whole rows of the head and not 16 bytes at a time.
  __device__ __forceinline__ void Store(const AttentionUnit<S>& unit) {
    const float2 inverse = core_.InverseSums();
    char* to = shared_ + S::kResultOffset + warpgroup_ * S::kResultBytes +
               (warp_row_ + lane_ / 4) * S::kResultStride + 4 * (lane_ % 4);
#pragma unroll
    for (int i = 0; i < S::kDim / 8; ++i) {
      const float* o = core_.o + 4 * i;
      *reinterpret_cast<uint32_t*>(to + 16 * i) = Pack2<T>(o[0] * inverse.x, o[1] * inverse.x);
      *reinterpret_cast<uint32_t*>(to + 8 * S::kResultStride + 16 * i) =
          Pack2<T>(o[2] * inverse.y, o[3] * inverse.y);
    }
    __syncwarp();
    const int row = warp_row_ + lane_ / 2;
    const int column = lane_ % 2 * 8;
    const char* from = shared_ + S::kResultOffset + warpgroup_ * S::kResultBytes +
                       row * S::kResultStride + 2 * column;
    T* result_row = static_cast<T*>(params_.context) + unit.head * params_.d_v + column +
                    (unit.first_row + unit.row * kUnitRows + row) * params_.context_stride;
    const bool inside = unit.row * kUnitRows + row < unit.seqlen;
#pragma unroll
    for (int i = 0; i < S::kDim; i += 16) {
      if (inside && column + i < params_.d_v) {
        *reinterpret_cast<uint4*>(result_row + i) = *reinterpret_cast<const uint4*>(from + 2 * i);
      }
    }
    __syncwarp();
  }

  const AttentionKernelParams& params_;
  char* shared_;
  AttentionTail<S>* tail_;
  int warpgroup_;
  int lane_;
  int warp_row_;         // of the unit, the warp's first
  uint32_t parity_ = 0;  // of the next unit
  AttentionCore<S> core_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ATTENTION_CONSUMER_CUH_
