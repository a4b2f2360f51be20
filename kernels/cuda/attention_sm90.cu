#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/attention_range.cuh"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/softmax_sm90.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.cuh"

// Attention on Hopper: persistent blocks of three consumer warpgroups and a producer thread. A
// block owns a contiguous range of units, 64 query rows of one head each (attention_range.cuh);
// units of one head share its keys and values, which stay in shared memory while they are worked
// at. Each warpgroup takes whole units: Q in registers, S = Q K' and O += P V by wgmma, softmax in
// registers (softmax_sm90.cuh).
//
// Serves d_qk and d_v up to 64 (padded to 24, 32, 40, 48 or 64 together), tile.rows 64 or 128,
// scale > 0, any sequence length; cudaErrorInvalidValue for the rest.
// REQUIRES: what FindUnitRange does of the schedule; rows of qkv behind a sequence are finite,
// since its last block of values is read to the end, with weight 0.

namespace flashsvd {
namespace {

constexpr int kWarpgroups = 3;  // consumers
constexpr int kVisits = 4;      // announced ahead

// Units [unit_begin, unit_end) of one head of one sequence, which share its keys and values. Unit i
// falls to warpgroup (first_warpgroup + i - unit_begin) % kWarpgroups. The last visit has seqlen 0.
struct Visit {
  int first_row = 0;
  int seqlen = 0;
  int head = 0;
  int unit_begin = 0;
  int unit_end = 0;
  int first_warpgroup = 0;
  int reserved[2] = {};
};

template <class T, int kHeadDim>
struct Shape {
  using Element = T;
  static constexpr int kDim = kHeadDim;
  static constexpr int kDepthSteps = (kDim + 15) / 16;
  static constexpr int kKeys = 64;  // of a block of keys
  static constexpr int kThreads = 128 * (kWarpgroups + 1);

  // A slot holds kKeys rows of one head's K and V, each a swizzled row of 64 columns. Those beyond
  // the head are its neighbour's: they meet zeros of Q in S, and are not asked for in O. Whole rows
  // cost the copy engine and L2 less than 16-byte pieces, which would fit the head exactly.
  static constexpr int kRowBytes = 128;
  static constexpr int kKeyBytes = kRowBytes * kKeys;
  static constexpr int kSlotBytes = 2 * kKeyBytes;
  static constexpr int kTailBytes = 1024;
  static constexpr int kSlots = (227 * 1024 - kTailBytes) / kSlotBytes;
  static constexpr int kTailOffset = kSlots * kSlotBytes;
  static constexpr int kSharedBytes = kTailOffset + kTailBytes;
};

// What lies behind the ring of slots.
template <class S>
struct Tail {
  uint64_t slot_full[S::kSlots];
  uint64_t slot_empty[S::kSlots];
  uint64_t visit_full[kVisits];
  uint64_t visit_empty[kVisits];
  Visit visits[kVisits];
};

// A place in a ring, and the parity of its current lap.
template <int kCount>
struct Cursor {
  int index = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Next() {
    if (++index == kCount) {
      index = 0;
      parity ^= 1;
    }
  }
};

struct KernelParams {
  const AttentionSchedule* schedule;
  const void* qkv;
  void* context;
  int64_t qkv_stride;
  int64_t context_stride;
  int max_tiles;
  int num_heads;
  int tile_rows;
  int d_qk;
  int d_v;
  float scale_log2;
};

// ---- Producer: one thread walks the block's range and keeps the ring full ----

template <class S>
class Producer {
 public:
  __device__ Producer(const KernelParams& params, const CUtensorMap* map, char* shared)
      : params_(params),
        map_(map),
        shared_(shared),
        tail_(reinterpret_cast<Tail<S>*>(shared + S::kTailOffset)) {}

  __device__ void Run(const UnitRange& range) {
    int tile = range.begin.tile;
    int unit = range.begin.unit;
    while (tile < range.end.tile || (tile == range.end.tile && unit < range.end.unit)) {
      const AttentionTile sequence = LoadTile(params_.schedule, tile);
      const int units = (sequence.seqlen + kUnitRows - 1) / kUnitRows;
      const int end = tile == range.end.tile ? range.end.unit : units * params_.num_heads;
      while (unit < end) {
        const int head = unit / units;
        const int begin = unit - head * units;
        int count = min(units - begin, end - unit);
        // Keys that the ring cannot hold pass through it again for every unit of a warpgroup.
        if (sequence.seqlen > S::kSlots * S::kKeys) count = min(count, kWarpgroups);
        Announce({sequence.first_row, sequence.seqlen, head, begin, begin + count, turn_});
        WaitForPredecessor();
        Load(sequence, head);
        turn_ = (turn_ + count) % kWarpgroups;
        unit += count;
      }
      tile += (sequence.seqlen + params_.tile_rows - 1) / params_.tile_rows;
      unit = 0;
    }
    Announce({});
    // Also with nothing to do: the kernels behind this one rely on those before it.
    WaitForPredecessor();
  }

 private:
  __device__ __forceinline__ void Announce(const Visit& visit) {
    BarrierWait(&tail_->visit_empty[visit_.index], visit_.parity ^ 1);
    tail_->visits[visit_.index] = visit;
    BarrierArrive(&tail_->visit_full[visit_.index]);
    visit_.Next();
  }

  __device__ __forceinline__ void Load(const AttentionTile& sequence, int head) {
    const int k_column = (params_.num_heads + head) * params_.d_qk;
    const int v_column = 2 * params_.num_heads * params_.d_qk + head * params_.d_v;
    for (int key = 0; key < sequence.seqlen; key += S::kKeys) {
      BarrierWait(&tail_->slot_empty[slot_.index], slot_.parity ^ 1);
      uint64_t* full = &tail_->slot_full[slot_.index];
      char* slot = shared_ + slot_.index * S::kSlotBytes;
      BarrierExpect(full, S::kSlotBytes);
      CopyBox2(slot, map_, k_column, sequence.first_row + key, full);
      CopyBox2(slot + S::kKeyBytes, map_, v_column, sequence.first_row + key, full);
      slot_.Next();
    }
  }

  const KernelParams& params_;
  const CUtensorMap* map_;
  char* shared_;
  Tail<S>* tail_;
  Cursor<S::kSlots> slot_;
  Cursor<kVisits> visit_;
  int turn_ = 0;
};

// ---- Consumers: a warpgroup computes one unit of 64 rows at a time ----

template <class S>
class Consumer {
 public:
  using T = typename S::Element;
  static constexpr int kScores = S::kKeys / 2;  // of a thread
  static constexpr int kOutputs = S::kDim / 2;  // of a thread

  __device__ Consumer(const KernelParams& params, char* shared, int warpgroup)
      : params_(params),
        shared_(shared),
        tail_(reinterpret_cast<Tail<S>*>(shared + S::kTailOffset)),
        warpgroup_(warpgroup),
        lane_(threadIdx.x % 32),
        row_(threadIdx.x % 128 / 32 * 16 + lane_ / 4),
        column_(2 * (lane_ % 4)) {}

  __device__ void Run() {
    Cursor<kVisits> next;
    for (;;) {
      BarrierWait(&tail_->visit_full[next.index], next.parity);
      const Visit visit = tail_->visits[next.index];
      __syncwarp();
      if (lane_ == 0) BarrierArrive(&tail_->visit_empty[next.index]);
      next.Next();
      if (visit.seqlen == 0) return;
      WaitForPredecessor();

      int unit = warpgroup_ - visit.first_warpgroup;
      unit += visit.unit_begin + (unit < 0 ? kWarpgroups : 0);
      const Cursor<S::kSlots> first_slot = slot_;
      if (unit >= visit.unit_end) Skip(visit);
      for (; unit < visit.unit_end; unit += kWarpgroups) {
        slot_ = first_slot;
        ComputeUnit(visit, unit * kUnitRows, unit + kWarpgroups >= visit.unit_end);
      }
    }
  }

 private:
  __device__ __forceinline__ void Release(int slot) {
    if (lane_ == 0) BarrierArrive(&tail_->slot_empty[slot]);
  }

  // The slots of a visit that has no unit for this warpgroup. Waits for each: an arrival must not
  // count for the lap before.
  __device__ __forceinline__ void Skip(const Visit& visit) {
    for (int key = 0; key < visit.seqlen; key += S::kKeys) {
      BarrierWait(&tail_->slot_full[slot_.index], slot_.parity);
      Release(slot_.index);
      slot_.Next();
    }
  }

  // Q as A operands, zero beyond the sequence and beyond d_qk.
  __device__ __forceinline__ void LoadQuery(const Visit& visit, int first_query) {
    const T* rows = static_cast<const T*>(params_.qkv) + visit.head * params_.d_qk + column_ +
                    (visit.first_row + first_query + row_) * params_.qkv_stride;
#pragma unroll
    for (int i = 0; i < 4 * S::kDepthSteps; ++i) {
      const int plane = i / 4 * 2 + i % 4 / 2;
      const int down = i % 2 * 8;
      q_[i] = 0;
      if (8 * plane < params_.d_qk && 8 * plane < S::kDim &&
          first_query + row_ + down < visit.seqlen) {
        q_[i] = *reinterpret_cast<const uint32_t*>(rows + down * params_.qkv_stride + 8 * plane);
      }
    }
  }

  // s <- Q K' of the slot, in flight.
  __device__ __forceinline__ void IssueScores(const char* slot) {
    const uint64_t keys = Swizzle128Descriptor(slot);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < S::kDepthSteps; ++step) {
      Wgmma<T, S::kKeys>::Registers(s_, &q_[4 * step], Advance(keys, 32 * step), step > 0);
    }
    WgmmaCommit();
  }

  // o (+)= P V of the slot, in flight.
  __device__ __forceinline__ void IssueOutputs(const char* slot, const uint32_t* p, bool first) {
    const uint64_t values = Swizzle128Descriptor(slot + S::kKeyBytes);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < S::kKeys / 16; ++step) {
      Wgmma<T, S::kDim, 1>::Registers(o_, p + 4 * step, Advance(values, 16 * S::kRowBytes * step),
                                      step > 0 || !first);
    }
    WgmmaCommit();
  }

  // Of each block of keys in turn: s, from it p, and o, whose products run on while the next
  // block's scores are waited for. What one warpgroup waits for, the others hide.
  __device__ __forceinline__ void ComputeUnit(const Visit& visit, int first_query, bool last) {
    LoadQuery(visit, first_query);
    uint32_t p[kScores / 2];
    int previous = 0;
    for (int limit = visit.seqlen; limit > 0; limit -= S::kKeys) {
      const bool first = limit == visit.seqlen;
      const char* slot = shared_ + slot_.index * S::kSlotBytes;
      BarrierWait(&tail_->slot_full[slot_.index], slot_.parity);
      IssueScores(slot);
      WgmmaWait<0>();
      PinRegisters(s_);
      PinRegisters(o_);
      if (!first && last) Release(previous);
      if (limit < S::kKeys) MaskColumns(s_, limit);
      if (first) reference_ = ReferenceOf<T>(s_, params_.scale_log2);
      float2 sum = Exponentiate(s_, params_.scale_log2, reference_);
      if (__any_sync(~0u, fmaxf(sum.x, sum.y) > kLimit<T>)) sum = Rebase(slot, limit);
      sum_ = first ? sum : float2{sum_.x + sum.x, sum_.y + sum.y};
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) p[i] = Pack2<T>(s_[2 * i], s_[2 * i + 1]);
      IssueOutputs(slot, p, first);
      previous = slot_.index;
      slot_.Next();
    }
    WgmmaWait<0>();
    PinRegisters(o_);
    if (last) Release(previous);
    Store(visit, first_query);
  }

  // Raises the references to this block's maxima: computes the block's scores again, by the warp
  // alone since its neighbours may have nothing to rebase, and scales o. s <- p; returns their
  // sums. No product may be in flight.
  __device__ __forceinline__ float2 Rebase(const char* slot, int limit) {
#pragma unroll
    for (int j = 0; j < S::kKeys / 8; ++j) {
      float* scores = s_ + 4 * j;
      scores[0] = scores[1] = scores[2] = scores[3] = 0;
      const char* row = slot + (8 * j + lane_ / 4) * S::kRowBytes + 2 * column_;
#pragma unroll
      for (int step = 0; step < S::kDepthSteps; ++step) {
        const auto unit = [&](int i) {  // of 16 bytes; swizzled, and zero beyond kDim
          return i < S::kDim / 8 ? *reinterpret_cast<const uint32_t*>(row + (i ^ lane_ / 4) * 16)
                                 : 0u;
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

  __device__ __forceinline__ void Store(const Visit& visit, int first_query) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      sum_.x += __shfl_xor_sync(~0u, sum_.x, step);
      sum_.y += __shfl_xor_sync(~0u, sum_.y, step);
    }
    const float2 inverse = {Reciprocal(sum_.x), Reciprocal(sum_.y)};
    T* rows = static_cast<T*>(params_.context) + visit.head * params_.d_v + column_ +
              (visit.first_row + first_query + row_) * params_.context_stride;
    const int below = visit.seqlen - first_query - row_;
#pragma unroll
    for (int plane = 0; 8 * plane < S::kDim; ++plane) {
      if (8 * plane >= params_.d_v) break;
      const float* o = o_ + 4 * plane;
      T* to = rows + 8 * plane;
      if (below > 0) {
        *reinterpret_cast<uint32_t*>(to) = Pack2<T>(o[0] * inverse.x, o[1] * inverse.x);
      }
      if (below > 8) {
        *reinterpret_cast<uint32_t*>(to + 8 * params_.context_stride) =
            Pack2<T>(o[2] * inverse.y, o[3] * inverse.y);
      }
    }
  }

  const KernelParams& params_;
  char* shared_;
  Tail<S>* tail_;
  int warpgroup_;
  int lane_;
  int row_;     // of the unit, the first of the thread's two
  int column_;  // of each group of eight, the first of the thread's two
  Cursor<S::kSlots> slot_;
  float2 reference_;
  float2 sum_;
  uint32_t q_[4 * S::kDepthSteps];
  float s_[kScores];
  float o_[kOutputs];
};

// ---- The kernel ----

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    AttentionKernel(const __grid_constant__ KernelParams params,
                    const __grid_constant__ CUtensorMap map) {
  extern __shared__ __align__(1024) char shared[];
  auto* tail = reinterpret_cast<Tail<S>*>(shared + S::kTailOffset);
  static_assert(sizeof(Tail<S>) <= S::kTailBytes);

  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kSlots; ++i) {
      BarrierInit(&tail->slot_full[i], 1);
      BarrierInit(&tail->slot_empty[i], 4 * kWarpgroups);
    }
    for (int i = 0; i < kVisits; ++i) {
      BarrierInit(&tail->visit_full[i], 1);
      BarrierInit(&tail->visit_empty[i], 4 * kWarpgroups);
    }
    BarrierInitFence();
  }
  __syncthreads();
  AllowSuccessor();

  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup == kWarpgroups) {
    ShrinkRegisters<32>();
    if (threadIdx.x % 128 < 32) {
      const UnitRange range =
          FindUnitRange<S::kKeys>(params.schedule, params.max_tiles, params.num_heads);
      if (ElectOne()) Producer<S>(params, &map, shared).Run(range);
    }
  } else {
    GrowRegisters<160>();
    Consumer<S>(params, shared, warpgroup).Run();
  }
}

template <class S>
cudaError_t Launch(const AttentionParams& params, const AttentionTiling& tile,
                   cudaStream_t stream) {
  CUtensorMap map;
  cudaError_t error = SwizzledRowsMap(params.qkv, S::kKeys, &map);
  if (error != cudaSuccess) return error;
  int device = 0, num_sms = 0;
  error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;

  const KernelParams kernel = {static_cast<const AttentionSchedule*>(params.schedule),
                               params.qkv.data,
                               params.context.data,
                               params.qkv.stride,
                               params.context.stride,
                               params.max_tiles,
                               params.num_heads,
                               tile.rows,
                               params.d_qk,
                               params.d_v,
                               params.scale * 1.4426950408889634f};
  const int units = params.max_tiles * (tile.rows / kUnitRows) * params.num_heads;
  LaunchShape shape;
  shape.grid = dim3(std::min(num_sms, units));
  shape.block = dim3(S::kThreads);
  shape.shared_bytes = S::kSharedBytes;
  return LaunchKernel(AttentionKernel<S>, shape, stream, kernel, map);
}

}  // namespace

cudaError_t LaunchAttentionSm90(const AttentionParams& params, DType dtype,
                                const AttentionTiling& tile, cudaStream_t stream) {
  if (tile.rows != 64 && tile.rows != 128) return cudaErrorInvalidValue;
  if (params.d_qk % 8 != 0 || params.d_v % 8 != 0 || !(params.scale > 0))
    return cudaErrorInvalidValue;
  if (params.max_tiles <= 0) return cudaSuccess;
  return VisitFloat(dtype, [&]<class T>() {
    return VisitAtLeast<24, 32, 40, 48, 64>(std::max(params.d_qk, params.d_v), [&]<int kDim>() {
      return Launch<Shape<T, kDim>>(params, tile, stream);
    });
  });
}

}  // namespace flashsvd
