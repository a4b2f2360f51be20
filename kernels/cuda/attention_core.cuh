#ifndef FLASHSVD_KERNELS_CUDA_ATTENTION_CORE_CUH_
#define FLASHSVD_KERNELS_CUDA_ATTENTION_CORE_CUH_

#include <cuda_runtime.h>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ring_position.cuh"
#include "kernels/cuda/softmax_sm90.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace flashsvd {

// The attention of a warpgroup's 64 query rows to blocks of keys that pass through a ring in shared
// memory; what attention_sm90.cu and attention_norm_sm90.cu share.
//
// S (a shape) says: Element, kDim (of V, padded), kDepthSteps (of Q and K, in 16), kKeys (of a
// block), and of the ring kSlots, kSlotBytes, kRowBytes (of a row of K or V, 128-byte swizzle) and
// kKeyBytes (from K to V).
template <class S>
class AttentionCore {
 public:
  using T = typename S::Element;
  static constexpr int kScores = S::kKeys / 2;  // of a thread
  static constexpr int kOutputs = S::kDim / 2;  // of a thread

  // The A operand of the scores: the products' rows and columns that are none are zero.
  uint32_t q[4 * S::kDepthSteps];
  float s[kScores];

  // Rows' sums of p, and of p v.
  float2 sum;
  float o[kOutputs];

  explicit __device__ AttentionCore(char* ring) : ring_(ring) {}

  // s <- Q K' with the keys of this slot, in flight.
  __device__ __forceinline__ void IssueScores(int slot) { IssueScores(Keys(slot)); }

  // Of each block of keys in turn: s, from it p, and o. The tensor cores get a block's scores
  // together with the outputs of the block before, which then run beside the softmax: one wait for
  // both before the softmax costs a fifth of the time.
  //
  // The first block is in `slot` and its scores are in flight; the last one's slot is returned in
  // it. wait_keys(slot, limit), wait_values(slot, limit): until they are there, of a slot of whose
  // keys the first `limit` count, and the values behind them are zero. Both must wait on a barrier,
  // passed or not: its loop keeps the compiler from moving the wait for outputs, which follows
  // wait_values, into the softmax. release(slot): this warp has read it. to_values: bytes from a
  // slot's begin to its values' first column.
  template <class WaitKeys, class WaitValues, class Release>
  __device__ __forceinline__ void Compute(RingPosition<S::kSlots>& slot, int seqlen, int to_values,
                                          float scale, const WaitKeys& wait_keys,
                                          const WaitValues& wait_values, const Release& release) {
    uint64_t keys = Keys(slot.slot);
    int limit = seqlen;
    int previous = -1;
    WgmmaWait<0>();
    PinRegisters(s);
    for (;;) {
      if (limit < S::kKeys) MaskColumns(s, limit);
      if (previous < 0) {
        reference_ = FirstReferenceOf<T>(s, scale);
        sum = {0, 0};
      }
      float2 part = Exponentiate(s, scale, reference_);
      PinRegisters(s);
      wait_values(slot, limit);
      // Before the branch: all warps of a warpgroup wait at one place, but each rebases for itself.
      WgmmaWait<0>();
      PinRegisters(o);
      if (__any_sync(~0u, fmaxf(part.x, part.y) > kLimit<T>)) {
        part = Rebase(ring_ + slot.slot * S::kSlotBytes, limit, scale);
      }
      if (previous >= 0) release(previous);
      sum = {sum.x + part.x, sum.y + part.y};
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) p_[i] = Pack2<T>(s[2 * i], s[2 * i + 1]);
      limit -= S::kKeys;
      if (limit <= 0) break;

      const uint64_t values = Advance(keys, to_values);
      const bool first = previous < 0;
      previous = slot.slot;
      slot.Next();
      keys = Keys(slot.slot);
      wait_keys(slot, limit);
      IssueScores(keys);
      IssueOutputs(values, first);
      WgmmaWait<1>();
      PinRegisters(s);
    }
    IssueOutputs(Advance(keys, to_values), previous < 0);
    WgmmaWait<0>();
    PinRegisters(o);
    release(slot.slot);
  }

  // What o is to be scaled by, of the thread's two rows.
  __device__ __forceinline__ float2 InverseSums() {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      sum.x += __shfl_xor_sync(~0u, sum.x, step);
      sum.y += __shfl_xor_sync(~0u, sum.y, step);
    }
    return {Reciprocal(sum.x), Reciprocal(sum.y)};
  }

 private:
  // The operand in this slot; its values are a constant distance on.
  __device__ __forceinline__ uint64_t Keys(int slot) const {
    return Advance(Swizzle128Descriptor(ring_), slot * S::kSlotBytes);
  }

  __device__ __forceinline__ void IssueScores(uint64_t keys) {
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < S::kDepthSteps; ++step) {
      Wgmma<T, S::kKeys>::Registers(s, &q[4 * step], Advance(keys, 32 * step), step > 0);
    }
    WgmmaCommit();
  }

  // o (+)= P V, in flight.
  __device__ __forceinline__ void IssueOutputs(uint64_t values, bool first) {
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < S::kKeys / 16; ++step) {
      Wgmma<T, S::kDim, 1>::Registers(o, &p_[4 * step], Advance(values, 16 * S::kRowBytes * step),
                                      step > 0 || !first);
    }
    WgmmaCommit();
  }

  // Raises the references to this block's maxima: computes the block's scores again, by the warp
  // alone since its neighbours may have nothing to rebase, and scales o. s <- p; returns their
  // sums. No product may be in flight.
  __device__ __forceinline__ float2 Rebase(const char* slot, int limit, float scale) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < S::kKeys / 8; ++j) {
      float* scores = s + 4 * j;
      scores[0] = scores[1] = scores[2] = scores[3] = 0;
      const char* row = slot + (8 * j + lane / 4) * S::kRowBytes + 4 * (lane % 4);
#pragma unroll
      for (int step = 0; step < S::kDepthSteps; ++step) {
        const auto unit = [&](int i) {  // of 16 bytes; swizzled
          return *reinterpret_cast<const uint32_t*>(row + (i ^ lane / 4) * 16);
        };
        Mma16x8x16<T>(scores, &q[4 * step], unit(2 * step), unit(2 * step + 1));
      }
    }
    MaskColumns(s, limit);
    const float2 here = ReferenceOf<T>(s, scale);
    const float2 old = reference_;
    reference_ = {fmaxf(old.x, here.x), fmaxf(old.y, here.y)};
    const float2 factor = {Exp2(old.x - reference_.x), Exp2(old.y - reference_.y)};
    sum = {sum.x * factor.x, sum.y * factor.y};
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) o[i] *= i % 4 < 2 ? factor.x : factor.y;
    return Exponentiate(s, scale, reference_);
  }

  char* ring_;
  float2 reference_;
  uint32_t p_[kScores / 2];
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ATTENTION_CORE_CUH_
