#ifndef FLASHSVD_KERNELS_CUDA_ATTENTION_NORM_CONSUMER_CUH_
#define FLASHSVD_KERNELS_CUDA_ATTENTION_NORM_CONSUMER_CUH_

#include <cuda_runtime.h>

#include "kernels/cuda/attention_core.cuh"
#include "kernels/cuda/attention_norm_shape.cuh"
#include "kernels/cuda/gemm_mainloop.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace flashsvd {

// A consumer warpgroup of attention_norm_sm90.cu: its heads' attention one after the other, then
// its columns of x.
template <class S>
class AttentionNormConsumer {
 public:
  using T = typename S::Element;

  __device__ AttentionNormConsumer(const AttentionNormArgs& args,
                                   const AttentionNormShared<S>& shared, int group, int rank)
      : args_(args),
        shared_(shared),
        barriers_(shared.Barriers()),
        plan_(args, rank),
        group_(group),
        rank_(rank),
        lane_(threadIdx.x % 32),
        warp_row_(threadIdx.x % 128 / 32 * 16),
        tile_row_(static_cast<int>(blockIdx.x) / S::kCluster * S::kRows) {}

  __device__ __forceinline__ void Attend() {
    AttentionCore<S> core(shared_.Ring(group_));
    const int segments = barriers_.num_segments;
    uint32_t next_q[4 * S::kDepthSteps];
    RingPosition<S::kSlots> slot;
    slot.slot = FirstSlot<S>(barriers_.num_blocks * plan_.HeadsOf(group_));
    const auto wait_keys = [&](const RingPosition<S::kSlots>& at, int) { WaitForKeys(at); };
    const auto wait_values = [&](const RingPosition<S::kSlots>& at, int limit) {
      WaitForValues(at, limit);
    };
    const auto release = [&](int at) {
      if (lane_ == 0) BarrierArrive(&barriers_.kv_empty[group_][at]);
    };
    int head = plan_.first + group_;
    const int end = plan_.first + plan_.count;
    int turn = 0;
    if (head < end) {
      int s = 0;
      TileSegment segment = shared_.Segments()[0];
      TakeFirstQuery(core.q, segment, head, slot.slot);
      WaitForKeys(slot);
      core.IssueScores(slot.slot);
      for (;;) {
        // The next query is under way meanwhile, and its first products while this one is stored.
        const bool turns = s + 1 == segments;
        const int next_head = turns ? head + S::kGroups : head;
        const bool more = next_head < end;
        TileSegment next = segment;
        if (more) next = shared_.Segments()[turns ? 0 : s + 1];
        LoadQuery(next_q, next, more ? next_head : head);
        core.Compute(slot, segment.seqlen, S::kKeyBytes + 2 * HeadShift(head, args_.d_v),
                     args_.scale_log2, wait_keys, wait_values, release);
        slot.Next();
#pragma unroll
        for (int i = 0; i < 4 * S::kDepthSteps; ++i) core.q[i] = next_q[i];
        if (more) WaitForKeys(slot);
        // Without a next one of nothing, since the compiler can't follow products through a branch.
        core.IssueScores(slot.slot);
        Store(core, segment, head);
        if (turns) {
          Finish(turn);
          ++turn;
        }
        if (!more) break;
        s = turns ? 0 : s + 1;
        segment = next;
        head = next_head;
      }
      WgmmaWait<0>();
      PinRegisters(core.s);
    }
    for (; turn < plan_.turns; ++turn) Finish(turn);
  }

  // acc <- bias + the product.
  __device__ __forceinline__ void Multiply(float (&acc)[S::kN / 2]) {
    StartWithBias<S::kN>(acc, shared_.Params() + group_ * S::kN);
    const uint64_t a0 = CoreMatrixDescriptor(shared_.Context(), S::kOctetBytes, 128);
    const uint64_t b0 =
        CoreMatrixDescriptor(shared_.base + group_ * S::kN * 16, 16 * S::kCols, 128);
    const DepthOrder<S> order(plan_, rank_);
    const int steps = order.steps();
    int step = 0;
    uint32_t parity = 0;
    uint64_t a = Advance(a0, order.Place(0) * 2 * S::kOctetBytes);
    PinRegisters(acc);
    WgmmaFence();  // or the compiler waits for every product by itself
    for (int turn = 0; turn + 1 < plan_.turns; ++turn) {
      BarrierWaitCluster(&barriers_.peer[turn], 0);
    }
    // Unrolled over the ring: what a step computes besides delays the next product.
    while (step < steps) {
#pragma unroll
      for (int place = 0; place < S::kWSlots; ++place) {
        if (step >= steps) break;
        if (step == order.own_begin()) {
          BarrierWait(&barriers_.own[plan_.turns - 1], 0);
          a = Advance(a0, order.Place(step) * 2 * S::kOctetBytes);
        }
        if (step == order.late_begin()) {
          BarrierWaitCluster(&barriers_.peer[plan_.turns - 1], 0);
          a = Advance(a0, order.Place(step) * 2 * S::kOctetBytes);
        }
        BarrierWait(&barriers_.w_full[place], parity);
        PinRegisters(acc);
        WgmmaFence();
        Wgmma<T, S::kN>::Shared(acc, a, Advance(b0, WeightRing<S>::Offset(place)));
        WgmmaCommit();
        WgmmaWait<1>();  // of the step before
        constexpr int kLast = S::kWSlots - 1;
        if (step > 0 && lane_ == 0)
          BarrierArrive(&barriers_.w_empty[place == 0 ? kLast : place - 1]);
        a = Advance(a, 2 * S::kOctetBytes);
        ++step;
      }
      parity ^= 1;
    }
    WgmmaWait<0>();
    PinRegisters(acc);
  }

  // x <- the norm of x + acc.
  __device__ __forceinline__ void Finalize(float (&acc)[S::kN / 2]) {
    Moments* stats = shared_.Stats();
    const int column = group_ * S::kN;
    const int first_col = rank_ * S::kCols + column;
    const int row = warp_row_ + lane_ / 4;
    const float* params = shared_.Params() + column;
    const int warp = threadIdx.x / 32;
    const int place = (DepthOrder<S>(plan_, rank_).steps() + warp / S::kXWarps) % S::kWSlots;
    char* rows_of_x =
        shared_.base + WeightRing<S>::Offset(place) + warp % S::kXWarps * S::kWarpXBytes;
    const WarpRows<T, S::kN> x(rows_of_x);
    BarrierWait(&barriers_.x[warp / S::kXWarps], 0);
    AddResidual<T, S::kN, false>(acc, x, params);
    SendMoments<S>(acc, stats, &barriers_.stats, first_col / kUnit<S>, row, S::kCluster);
    BarrierWaitCluster(&barriers_.stats, 0);
    Moments rows[2];
    PairMoments<S>(rows, stats, row, args_.d, args_.inverse_d);
    float scale[2];
    float shift[2];
    ScaleAndShift(rows, args_.inverse_d, args_.epsilon, scale, shift);
    const int64_t first_row = tile_row_ + warp_row_;
    T* to = static_cast<T*>(args_.x_data) + first_row * args_.x_stride + first_col;
    // A part is on its way while the next is computed.
#pragma unroll
    for (int box = 0; box < S::kN / 64; ++box) {
#pragma unroll
      for (int p = 4 * box; p < 4 * box + 4; ++p) {
        NormalizeUnit<T, S::kN>(p, acc, scale, shift, params + S::kCols, params + 2 * S::kCols, x);
      }
      __syncwarp();
      StoreBox(rows_of_x + box * WarpRows<T, S::kN>::kBoxBytes, to + 64 * box);
    }
  }

 private:
  // A warp's 16 rows of 64 columns of x, as WarpRows has them, to `to`.
  __device__ __forceinline__ void StoreBox(const char* box, T* to) const {
    const int rows = args_.n - tile_row_ - warp_row_;
    to += lane_ / 8 * args_.x_stride + lane_ % 8 * 8;
#pragma unroll
    for (int first = 0; first < 16; first += 4) {
      const int row = lane_ / 8 + first;
      if (row < rows) {
        *reinterpret_cast<uint4*>(to) =
            *reinterpret_cast<const uint4*>(box + row * 128 + (lane_ % 8 ^ row % 8) * 16);
      }
      to += 4 * args_.x_stride;
    }
  }

  __device__ __forceinline__ void WaitForKeys(const RingPosition<S::kSlots>& slot) {
    BarrierWait(&barriers_.k_full[group_][slot.slot], slot.phase);
  }
  // Values behind the sequence are zeroed: their weight is 0, but 0 times infinity is not.
  __device__ __forceinline__ void WaitForValues(const RingPosition<S::kSlots>& slot, int limit) {
    BarrierWait(&barriers_.v_full[group_][slot.slot], slot.phase);
    if (limit >= S::kKeys) return;
    char* values = shared_.Ring(group_) + slot.slot * S::kSlotBytes + S::kKeyBytes;
    const int thread = threadIdx.x % 128;
#pragma unroll 1
    for (int row = limit + thread / 8; row < S::kKeys; row += 16) {
      *reinterpret_cast<uint4*>(values + row * S::kRowBytes + thread % 8 * 16) = uint4{};
    }
    FenceAsyncProxy();
    NamedBarrierSync(1 + group_, 128);
  }

  // Q as A operands, zero beyond the head and the segment: rows there are not stored, but could
  // make the warp rebase.
  __device__ __forceinline__ void LoadQuery(uint32_t (&q)[4 * S::kDepthSteps],
                                            const TileSegment& segment, int head) {
    const int begin = HeadShift(head, args_.d_qk);
    const int end = begin + args_.d_qk;
    const int row = warp_row_ + lane_ / 4;
    const T* from = static_cast<const T*>(args_.qkv_data) + (tile_row_ + row) * args_.qkv_stride +
                    head * args_.d_qk - begin + 2 * (lane_ % 4);
    const bool rows[2] = {row >= segment.begin && row < segment.end,
                          row + 8 >= segment.begin && row + 8 < segment.end};
#pragma unroll
    for (int step = 0; step < S::kDepthSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 16 * step + i / 2 * 8;
        const bool inside = column >= begin && column < end && rows[i % 2];
        q[4 * step + i] =
            inside
                ? *reinterpret_cast<const uint32_t*>(from + i % 2 * 8 * args_.qkv_stride + column)
                : 0;
      }
    }
  }

  // The same of the query that a producer fetched.
  __device__ __forceinline__ void TakeFirstQuery(uint32_t (&q)[4 * S::kDepthSteps],
                                                 const TileSegment& segment, int head,
                                                 int first_slot) {
    const int begin = HeadShift(head, args_.d_qk);
    const int end = begin + args_.d_qk;
    const int row = warp_row_ + lane_ / 4;
    const bool rows[2] = {row >= segment.begin && row < segment.end,
                          row + 8 >= segment.begin && row + 8 < segment.end};
    const char* from = shared_.Query(group_, first_slot) + (warp_row_ + lane_ % 16) * S::kRowBytes;
    BarrierWait(&barriers_.q_full[group_], 0);
#pragma unroll
    for (int step = 0; step < S::kDepthSteps; ++step) {
      uint32_t r[4];
      LoadMatrix4(r, from + ((2 * step + lane_ / 16) ^ lane_ % 8) * 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 16 * step + i / 2 * 8;
        q[4 * step + i] = column >= begin && column < end && rows[i % 2] ? r[i] : 0;
      }
    }
    __syncwarp();
    if (lane_ == 0) BarrierArrive(&barriers_.q_taken[group_]);
  }

  // The segment's rows of the head into the context.
  __device__ __forceinline__ void Store(AttentionCore<S>& core, const TileSegment& segment,
                                        int head) {
    const float2 inverse = core.InverseSums();
    const int row = warp_row_ + lane_ / 4;
    char* to =
        shared_.Context() + head * plan_.octets * S::kOctetBytes + row * 16 + 4 * (lane_ % 4);
    const bool inside[2] = {row >= segment.begin && row < segment.end,
                            row + 8 >= segment.begin && row + 8 < segment.end};
#pragma unroll
    for (int j = 0; j < S::kDim / 8; ++j) {
      if (j >= plan_.octets) break;
      const float* o = core.o + 4 * j;
      if (inside[0]) {
        *reinterpret_cast<uint32_t*>(to + j * S::kOctetBytes) =
            Pack2<T>(o[0] * inverse.x, o[1] * inverse.x);
      }
      if (inside[1]) {
        *reinterpret_cast<uint32_t*>(to + j * S::kOctetBytes + 128) =
            Pack2<T>(o[2] * inverse.y, o[3] * inverse.y);
      }
    }
  }

  // This warp's part of the turn is in the context. The fence is slow, so only one for all: those
  // who read earlier turns alone have their own.
  __device__ __forceinline__ void Finish(int turn) {
    if (turn + 1 == plan_.turns) FenceAsyncProxy();
    __syncwarp();
    if (lane_ == 0) BarrierArrive(&barriers_.own[turn]);
  }

  const AttentionNormArgs& args_;
  const AttentionNormShared<S>& shared_;
  typename S::Barriers& barriers_;
  HeadPlan<S> plan_;
  int group_;
  int rank_;
  int lane_;
  int warp_row_;  // of the tile, the warp's first
  int tile_row_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ATTENTION_NORM_CONSUMER_CUH_
