#ifndef FLASHSVD_KERNELS_CUDA_ATTENTION_CONSUMER_CUH_
#define FLASHSVD_KERNELS_CUDA_ATTENTION_CONSUMER_CUH_

#include <cuda_runtime.h>

#include "kernels/cuda/attention_ring.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/softmax_sm90.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace flashsvd {

// A consumer of attention_sm90.cu: a warpgroup that computes one unit of 64 rows at a time.
template <class S>
class AttentionConsumer {
 public:
  using T = typename S::Element;
  static constexpr int kScores = S::kKeys / 2;  // of a thread
  static constexpr int kOutputs = S::kDim / 2;  // of a thread

  __device__ AttentionConsumer(const AttentionKernelParams& params, char* shared, int warpgroup)
      : params_(params),
        shared_(shared),
        tail_(reinterpret_cast<AttentionTail<S>*>(shared + S::kTailOffset)),
        warpgroup_(warpgroup),
        lane_(threadIdx.x % 32),
        warp_row_(threadIdx.x % 128 / 32 * 16) {}

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
    PinRegisters(s_);
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
    IssueScores(Keys(unit.slot.slot));
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
        q_[4 * step + i] = inside ? q[i] : 0;
      }
    }
  }

  // The operand in this slot; its values are a constant distance on.
  __device__ __forceinline__ uint64_t Keys(int slot) const {
    return Advance(Swizzle128Descriptor(shared_), slot * S::kSlotBytes);
  }

  // s <- Q K', in flight.
  __device__ __forceinline__ void IssueScores(uint64_t keys) {
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < S::kDepthSteps; ++step) {
      Wgmma<T, S::kKeys>::Registers(s_, &q_[4 * step], Advance(keys, 32 * step), step > 0);
    }
    WgmmaCommit();
  }

  // o (+)= P V, in flight.
  __device__ __forceinline__ void IssueOutputs(uint64_t values, bool first) {
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < S::kKeys / 16; ++step) {
      Wgmma<T, S::kDim, 1>::Registers(o_, &p_[4 * step], Advance(values, 16 * S::kRowBytes * step),
                                      step > 0 || !first);
    }
    WgmmaCommit();
  }

  // Of each block of keys in turn: s, from it p, and o. The tensor cores get a block's scores
  // together with the outputs of the block before, which then run beside the softmax: one wait for
  // both before the softmax costs a fifth of the time.
  __device__ __forceinline__ void Compute(const AttentionUnit<S>& unit) {
    const int to_values = S::kKeyBytes + 2 * Shift(unit.head, params_.d_v);
    RingPosition<S::kSlots> slot = unit.slot;
    uint64_t keys = Keys(slot.slot);
    int limit = unit.seqlen;
    int previous = -1;
    WgmmaWait<0>();
    PinRegisters(s_);
    for (;;) {
      if (limit < S::kKeys) MaskColumns(s_, limit);
      if (previous < 0) {
        reference_ = ReferenceOf<T>(s_, params_.scale_log2);
        sum_ = {0, 0};
      }
      float2 sum = Exponentiate(s_, params_.scale_log2, reference_);
      // Before the branch: all warps of a warpgroup wait at one place, but each rebases for itself.
      WgmmaWait<0>();
      PinRegisters(o_);
      if (__any_sync(~0u, fmaxf(sum.x, sum.y) > kLimit<T>)) {
        sum = Rebase(shared_ + slot.slot * S::kSlotBytes, limit);
      }
      if (unit.releases && previous >= 0) Release(previous);
      sum_ = {sum_.x + sum.x, sum_.y + sum.y};
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) p_[i] = Pack2<T>(s_[2 * i], s_[2 * i + 1]);
      limit -= S::kKeys;
      if (limit <= 0) break;

      const uint64_t values = Advance(keys, to_values);
      const bool first = previous < 0;
      previous = slot.slot;
      slot.Next();
      keys = Keys(slot.slot);
      WaitForSlot(slot, limit);
      IssueScores(keys);
      IssueOutputs(values, first);
      WgmmaWait<1>();
      PinRegisters(s_);
    }
    IssueOutputs(Advance(keys, to_values), previous < 0);
    WgmmaWait<0>();
    PinRegisters(o_);
    if (unit.releases) Release(slot.slot);
  }

  __device__ __forceinline__ void Release(int slot) {
    if (lane_ == 0) BarrierArrive(&tail_->slot_empty[slot]);
  }

  // Raises the references to this block's maxima: computes the block's scores again, by the warp
  // alone since its neighbours may have nothing to rebase, and scales o. s <- p; returns their
  // sums. No product may be in flight.
  __device__ __forceinline__ float2 Rebase(const char* slot, int limit) {
#pragma unroll
    for (int j = 0; j < S::kKeys / 8; ++j) {
      float* scores = s_ + 4 * j;
      scores[0] = scores[1] = scores[2] = scores[3] = 0;
      const char* row = slot + (8 * j + lane_ / 4) * S::kRowBytes + 4 * (lane_ % 4);
#pragma unroll
      for (int step = 0; step < S::kDepthSteps; ++step) {
        const auto unit = [&](int i) {  // of 16 bytes; swizzled
          return *reinterpret_cast<const uint32_t*>(row + (i ^ lane_ / 4) * 16);
        };
        Mma16x8x16<T>(scores, &q_[4 * step], unit(2 * step), unit(2 * step + 1));
      }
    }
    MaskColumns(s_, limit);
    const float2 here = ReferenceOf<T>(s_, params_.scale_log2);
    const float2 old = reference_;
    reference_ = {fmaxf(old.x, here.x), fmaxf(old.y, here.y)};
    const float2 factor = {Exp2(old.x - reference_.x), Exp2(old.y - reference_.y)};
    sum_ = {sum_.x * factor.x, sum_.y * factor.y};
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o_[i] *= i % 4 < 2 ? factor.x : factor.y;
    return Exponentiate(s_, params_.scale_log2, reference_);
  }

  // Through shared memory, so that memory sees whole rows of the head and not 16 bytes at a time.
  __device__ __forceinline__ void Store(const AttentionUnit<S>& unit) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      sum_.x += __shfl_xor_sync(~0u, sum_.x, step);
      sum_.y += __shfl_xor_sync(~0u, sum_.y, step);
    }
    const float2 inverse = {Reciprocal(sum_.x), Reciprocal(sum_.y)};
    char* to = shared_ + S::kResultOffset + warpgroup_ * S::kResultBytes +
               (warp_row_ + lane_ / 4) * S::kResultStride + 4 * (lane_ % 4);
#pragma unroll
    for (int i = 0; i < S::kDim / 8; ++i) {
      const float* o = o_ + 4 * i;
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
  float2 reference_;
  float2 sum_;
  uint32_t q_[4 * S::kDepthSteps];
  float s_[kScores];
  uint32_t p_[kScores / 2];
  float o_[kOutputs];
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ATTENTION_CONSUMER_CUH_
