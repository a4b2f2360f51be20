#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_SPLIT_CONSUMER_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_SPLIT_CONSUMER_CUH_

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/feed_forward_products.cuh"
#include "kernels/cuda/feed_forward_shape.cuh"
#include "kernels/cuda/feed_forward_store.cuh"
#include "kernels/cuda/feed_forward_tiles.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

// What a warpgroup of feed_forward_split.cuh does besides its walk over F, and the shared memory
// through which the blocks of a cluster do it together.

namespace flashsvd {

template <class Shape, int kGroups_>
struct SplitStorage {
  static constexpr int kGroups = kGroups_;
  static constexpr int kRings = 3 - kGroups;
  static constexpr int kRowBytes = 64 * 1024 + (Shape::kRank > 256) * 16 * 1024;
  static constexpr int kXBytes = kGroups * Shape::kBlockBytes;
  static constexpr int kXStages = kRowBytes / kXBytes;
  static constexpr int kGroupBytes = Shape::kRank * 128;  // P of one group of rows
  static constexpr int kFixed = kRowBytes + kRings * kBiasTiles * Shape::kHidden * 4 + 1024;
  static constexpr int kSlots =
      std::min(12, (kFeedForwardShared - kFixed) / kRings / Shape::kSlotBytes);
  // Sums travel as wgmma leaves them, [kQuads][128 threads] of four floats: 8 columns of 64 rows.
  static constexpr int kQuads = Shape::kRank / 8;
  static constexpr int kQuadBytes = 128 * 16;
  static constexpr int kSumBytes = kQuads * kQuadBytes;
  static constexpr int kMostBlocks = 4;
  static_assert(kGroups * kGroupBytes <= kRowBytes);

  // First x on its way in, then P, [kRank / 8][64][8] of each group. In the end this and the slots
  // hold sums on their way out, sums coming in and, with two groups, the result on its way out.
  alignas(1024) uint8_t rows[kRowBytes];
  uint8_t slots[kRings][kSlots][Shape::kSlotBytes];
  float bias[kRings][kBiasTiles][Shape::kHidden];
  RingBarriers<kSlots> weights[kRings];
  RingBarriers<kBiasTiles> bias_barriers[kRings];
  RingBarriers<kXStages> x;
  uint64_t x_used;     // by both warpgroups of every block: P may be written anywhere
  uint64_t p_full;     // all columns of P are here
  uint64_t p_taken;    // by every block: nobody sends P any more
  uint64_t idle;       // every block: sums may be written anywhere
  uint64_t sum_full;   // all sums for this block are here
  uint64_t sum_taken;  // by every block, and this one may go

  __device__ __forceinline__ uint8_t* Bytes() { return reinterpret_cast<uint8_t*>(this); }
  __device__ __forceinline__ float4* SumOut() { return reinterpret_cast<float4*>(Bytes()); }
  __device__ __forceinline__ float4* SumIn() {
    return reinterpret_cast<float4*>(Bytes() + kSumBytes);
  }
  __device__ __forceinline__ uint8_t* Result() { return Bytes() + 2 * kSumBytes; }
  static_assert(2 * kSumBytes + std::max((kMostBlocks - 1) * kQuadBytes,
                                         Shape::kColumnBlocks* Shape::kBlockBytes) <=
                kRowBytes + kRings * kSlots * Shape::kSlotBytes);
};

// How P is shared out: warpgroup `part` computes `cols` columns of its rows, from part * cols on.
// A chunk of A1 has these columns and `x_chunks` times 64 of d.
struct SliceOfP {
  int cols;
  int x_chunks;
};
// That of a cluster of two: half of P, or a quarter for a warpgroup alone with its columns.
template <class Shape, int kGroups>
constexpr int kWidestSlice = CeilDiv(Shape::kRank, 32 / kGroups) * 8;

template <class T, class Shape, int kGroups>
struct SplitConsumer {
  using Storage = SplitStorage<Shape, kGroups>;
  Storage& storage;
  TileConsumer<T, Shape, Storage::kSlots>& tiles;
  const int block;   // of the cluster
  const int blocks;  // in the cluster

  __device__ __forceinline__ int Group() const { return kGroups == 2 ? tiles.warpgroup : 0; }
  __device__ __forceinline__ uint8_t* P() const {
    return storage.rows + Group() * Storage::kGroupBytes;
  }
  __device__ __forceinline__ void WarpgroupSync() const {
    NamedBarrierSync(4 + tiles.warpgroup, 128);
  }

  // Computes kCols columns of P, from `column` on, and sends them to all blocks.
  template <int kCols>
  __device__ __forceinline__ void First(int column, int x_chunks, int chunks_per_slot) {
    float d[kCols / 2] = {};
    RingPosition<Storage::kXStages> x, x_done;
    const uint64_t rows = Swizzle128Descriptor(storage.rows + Group() * Shape::kBlockBytes);
    const uint64_t slots = tiles.Slots(kCols * 16);
    int in_slot = 0;
    int chunk = 0;
    do {
      storage.x.WaitFull(x);
      if (in_slot == 0) tiles.ring.barriers->WaitFull(tiles.at);
      const uint64_t a = Advance(rows, x.slot * Storage::kXBytes);
      const uint64_t b =
          Advance(slots, tiles.at.slot * Shape::kSlotBytes + in_slot * (kCols * 128));
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        Wgmma<T, kCols>::Shared(d, Advance(a, i * 32), Advance(b, i * kCols * 32), 1);
      }
      WgmmaCommit();
      x.Next();
      WgmmaWait<1>();
      if (chunk > 0) storage.x.Release(x_done);
      if (chunk > 0 && in_slot == 0) tiles.ring.barriers->Release(tiles.done);
      if (++in_slot == chunks_per_slot) {
        in_slot = 0;
        tiles.at.Next();
      }
    } while (++chunk < x_chunks);
    WgmmaWait<0>();
    tiles.ring.barriers->Release(tiles.done);
    if (in_slot > 0) tiles.at.Next();
    PinRegisters(d);
    Send(d, column);
  }

  template <int kCount>
  __device__ __forceinline__ void Send(const float (&d)[kCount], int column) {
    WarpgroupSync();
    const int thread = threadIdx.x % 128;
    if (thread < blocks) BarrierArriveClusterRelaxed(&storage.x_used, thread);
    BarrierWait(&storage.x_used, 0);
    uint8_t* own = P() + column * 128;
    const int cols = min(kCount * 2, Shape::kRank - column);  // may be none
#pragma unroll
    for (int m = 0; m < kCount / 2; ++m) {
      if (m / 2 * 8 < cols) *PairOfP(own, m) = Pack2<T>(d[2 * m], d[2 * m + 1]);
    }
    FenceAsyncProxy();
    WarpgroupSync();
    if (thread < blocks && thread != block && cols > 0) {
      CopyToCluster(ClusterAddress(own, thread), own, cols * 128,
                    ClusterAddress(&storage.p_full, thread));
    }
    if (thread == 0) BarrierArrive(&storage.p_full);
  }

  // Bytes of P that other blocks send.
  __device__ __forceinline__ int ForeignBytes(int cols) const {
    int own = 0;
    for (int w = 0; w < Storage::kRings; ++w) {
      const int column = (block * Storage::kRings + w) * cols;
      own += max(0, min(cols, Shape::kRank - column)) * 128 * kGroups;
    }
    return kGroups * Storage::kGroupBytes - own;
  }

  __device__ __forceinline__ void ComputeP(const SliceOfP& slice, int x_chunks) {
    if (threadIdx.x == 0) {
      BarrierExpect(&storage.p_full, ForeignBytes(slice.cols));
      BarrierExpect(&storage.sum_full, kGroups == 2
                                           ? Storage::kSumBytes
                                           : (blocks - 1) * QuadsOf(block) * Storage::kQuadBytes);
    }
    const int part = kGroups == 2 ? block : block * 2 + tiles.warpgroup;
    const int column = part * slice.cols;
    switch (slice.cols) {
      case 8:
        First<8>(column, x_chunks, slice.x_chunks);
        break;
      case 16:
        First<16>(column, x_chunks, slice.x_chunks);
        break;
      case 32:
        First<32>(column, x_chunks, slice.x_chunks);
        break;
      default:
        First<kWidestSlice<Shape, kGroups>>(column, x_chunks, slice.x_chunks);
    }
    BarrierWait(&storage.p_full, 0);
    TellAll(&storage.p_taken);
  }

  __device__ __forceinline__ void TellAll(uint64_t* barrier) const {
    if (threadIdx.x < blocks) BarrierArriveClusterRelaxed(barrier, threadIdx.x);
  }
  // Columns of block b's share of the result, in quads, and how many those are.
  __device__ __forceinline__ int FirstQuad(int b) const {
    return b * ((Storage::kQuads + blocks - 1) / blocks);
  }
  __device__ __forceinline__ int QuadsOf(int b) const {
    return max(0, min(FirstQuad(1), Storage::kQuads - FirstQuad(b)));
  }
  __device__ __forceinline__ static float4 Quad(const RankAccumulator<Shape>& s, int q) {
    constexpr int kPartQuads = Shape::kPartCols / 8;
    const float* v = &s[q / kPartQuads][q % kPartQuads * 4];
    return {v[0], v[1], v[2], v[3]};
  }
  __device__ __forceinline__ static float4 Add(const float4& a, const float4& b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
  }

  // Once every block has walked its tiles, no shared memory is in use any more.
  __device__ __forceinline__ void BeginReduce() {
    BarrierWait(&storage.p_taken, 0);
    NamedBarrierSync(3, 256);
    TellAll(&storage.idle);
  }
  __device__ __forceinline__ void EndReduce() {
    TellAll(&storage.sum_taken);
    BarrierWait(&storage.sum_taken, 0);
  }

  // One group: the sum of both warpgroups, then of the blocks.
  __device__ __forceinline__ void ReduceColumns(const RankAccumulator<Shape>& s, const Rows& out,
                                                int first_row) {
    BeginReduce();
    // Each warpgroup hands over one half of the columns and adds up the other.
    if (tiles.warpgroup == 0) {
      HandOver<0>(s);
    } else {
      HandOver<1>(s);
    }
    NamedBarrierSync(3, 256);
    if (tiles.warpgroup == 0) {
      AddOwn<0>(s);
    } else {
      AddOwn<1>(s);
    }
    FenceAsyncProxy();
    NamedBarrierSync(3, 256);
    BarrierWait(&storage.idle, 0);
    const int to = threadIdx.x;
    if (to < blocks && to != block && QuadsOf(to) > 0) {
      CopyToCluster(ClusterAddress(storage.SumIn() + FirstQuad(block) * 128, to),
                    storage.SumOut() + FirstQuad(to) * 128, QuadsOf(to) * Storage::kQuadBytes,
                    ClusterAddress(&storage.sum_full, to));
    }
    BarrierWait(&storage.sum_full, 0);
    for (int i = threadIdx.x; i < QuadsOf(block) * 128; i += 256) {
      float4 sum = {};
      for (int b = 0; b < blocks; ++b) {
        const float4* from = b == block ? storage.SumOut() : storage.SumIn();
        sum = Add(sum, from[FirstQuad(b == block ? block : b) * 128 + i]);
      }
      const int thread = i % 128;
      const int row = first_row + thread / 32 * 16 + thread % 32 / 4;
      const int col = (FirstQuad(block) + i / 128) * 8 + thread % 4 * 2;
      Put(out, row, col, sum.x, sum.y);
      Put(out, row + 8, col, sum.z, sum.w);
    }
    EndReduce();
  }

  // Quads [kFirst, kEnd) that the warpgroup adds up.
  template <int kWarpgroup>
  struct OwnQuads {
    static constexpr int kFirst = kWarpgroup == 0 ? 0 : Storage::kQuads / 2;
    static constexpr int kEnd = kWarpgroup == 0 ? Storage::kQuads / 2 : Storage::kQuads;
  };
  template <int kWarpgroup>
  __device__ __forceinline__ void HandOver(const RankAccumulator<Shape>& s) {
    using Own = OwnQuads<kWarpgroup>;
    float4* sums = storage.SumOut() + threadIdx.x % 128;
#pragma unroll
    for (int q = 0; q < Storage::kQuads; ++q) {
      if (q < Own::kFirst || q >= Own::kEnd) sums[q * 128] = Quad(s, q);
    }
  }
  template <int kWarpgroup>
  __device__ __forceinline__ void AddOwn(const RankAccumulator<Shape>& s) {
    using Own = OwnQuads<kWarpgroup>;
    float4* sums = storage.SumOut() + threadIdx.x % 128;
#pragma unroll
    for (int q = Own::kFirst; q < Own::kEnd; ++q) sums[q * 128] = Add(sums[q * 128], Quad(s, q));
  }

  __device__ __forceinline__ void Put(const Rows& out, int row, int col, float x, float y) const {
    if (row >= out.rows) return;
    T* to = static_cast<T*>(out.data) + row * out.stride + col;
    if (col + 1 < out.cols) {
      *reinterpret_cast<uint32_t*>(to) = Pack2<T>(x, y);
    } else if (col < out.cols) {
      *to = static_cast<T>(x);
    }
  }

  // Two groups and two blocks: warpgroup w's rows belong to block w.
  __device__ __forceinline__ void ReduceGroups(RankAccumulator<Shape>& s, const CUtensorMap* map,
                                               const Rows& out, int first_row) {
    BeginReduce();
    const int thread = threadIdx.x % 128;
    if (tiles.warpgroup != block) {
#pragma unroll
      for (int q = 0; q < Storage::kQuads; ++q) {
        storage.SumOut()[q * 128 + thread] = Quad(s, q);
      }
      FenceAsyncProxy();
      WarpgroupSync();
      BarrierWait(&storage.idle, 0);
      if (thread == 0) {
        CopyToCluster(ClusterAddress(storage.SumIn(), 1 - block), storage.SumOut(),
                      Storage::kSumBytes, ClusterAddress(&storage.sum_full, 1 - block));
      }
      BarrierWait(&storage.sum_full, 0);
    } else {
      BarrierWait(&storage.sum_full, 0);
#pragma unroll
      for (int q = 0; q < Storage::kQuads; ++q) {
        constexpr int kPartQuads = Shape::kPartCols / 8;
        const float4 v = storage.SumIn()[q * 128 + thread];
        float* own = &s[q / kPartQuads][q % kPartQuads * 4];
        own[0] += v.x;
        own[1] += v.y;
        own[2] += v.z;
        own[3] += v.w;
      }
      const int row = first_row + block * 64;
      if (row < out.rows) {
        StoreRows<T, Shape, Shape::kColumnBlocks>(s, storage.Result(), 4 + tiles.warpgroup, map,
                                                  row, out);
      }
    }
    EndReduce();
  }
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_SPLIT_CONSUMER_CUH_
