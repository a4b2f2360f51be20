#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_EXCHANGE_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_EXCHANGE_CUH_

#include <cstdint>

#include "kernels/cuda/feed_forward_cluster_layout.cuh"
#include "kernels/cuda/feed_forward_products.cuh"
#include "kernels/cuda/ptx.cuh"

// What the blocks of a cluster of feed_forward_cluster.cuh send each other on the way to S: their
// strips of P, their part of all sums, their strips of S.

namespace flashsvd {

constexpr int kAllConsumers = 1;  // named barrier

// A warp's part in that.
template <class T, class Shape>
struct ClusterExchange {
  using Tile = float[Shape::kTokens / 2];  // 64 ranks or units x kTokens, as wgmma leaves it

  const ClusterStorage<Shape> storage;
  const ClusterArgs& args;
  const int block;
  const int group;  // warpgroup
  const int warp;   // of the warpgroup
  const int lane;

  __device__ __forceinline__ ClusterExchange(const ClusterStorage<Shape>& storage, int block,
                                             int warp)
      : storage(storage),
        args(storage.args),
        block(block),
        group(warp / 4),
        warp(warp % 4),
        lane(threadIdx.x % 32) {}

  __device__ __forceinline__ static void SyncAll() { NamedBarrierSync(kAllConsumers, kConsumers); }

  // Columns 8 q to 8 q + 7 (tokens) of the warp's 16 rows.
  __device__ __forceinline__ static float4 Quad(const Tile& tile, int q) {
    return {tile[4 * q], tile[4 * q + 1], tile[4 * q + 2], tile[4 * q + 3]};
  }
  __device__ __forceinline__ static float4 Add(const float4& a, const float4& b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
  }
  // Stores a quad in T to a strip of 16 ranks, [2][kTokens][8].
  __device__ __forceinline__ void StoreQuad(uint8_t* strip, int q, const float4& v) const {
    uint8_t* place = strip + (lane / 8 % 2 * Shape::kTokens + q * 8 + lane % 8) * 16;
    StoreMatrix2Transposed(place, Pack2<T>(v.x, v.y), Pack2<T>(v.z, v.w));
  }

  // Sends the block's strips of P or S, `count` of them from `first` on, to all blocks, by way of
  // memory: as fast as another block's shared memory takes bytes from there, three times as fast
  // as it takes them from here. REQUIRES: their writers passed FenceAsyncProxy and then SyncAll;
  // one warp, converged.
  __device__ __forceinline__ void SendStrips(int first, int count, uint8_t* exchange,
                                             uint64_t* barrier) const {
    if (count == 0 || !ElectOne()) return;
    uint8_t* strips = storage.P() + first * Shape::kStripBytes;
    uint8_t* there = exchange + first * Shape::kStripBytes;
    StoreBytes(there, strips, count * Shape::kStripBytes);
    StoreCommit();
    StoreWaitWritten();
    MulticastBytes(strips, there, count * Shape::kStripBytes, barrier, (1 << args.blocks) - 1);
  }
  // The cluster's part of the memory that P, or S, takes on its way.
  __device__ __forceinline__ uint8_t* ScratchOf(int what) const {
    return args.exchange +
           (blockIdx.x / args.blocks * 2 + what) * static_cast<size_t>(Shape::kRankBytes);
  }

  // Sends the strips of tile `tile` of S to the blocks they belong to.
  __device__ __forceinline__ void SendSums(const Tile& s, int tile) const {
    if (tile >= Shape::kRankTiles) return;
    const int strip = tile * 4 + warp;
    const int owner = strip / args.strips;
    const int place = block * args.strips + strip - owner * args.strips;
    const uint32_t there =
        ClusterAddress(storage.Exchange() + place * Shape::kStripSumBytes, owner);
    const uint32_t barrier = ClusterAddress(&storage.Barriers().sum_full, owner);
    if constexpr (Shape::kHalfSums) {
      SendHalves(s, there, ClusterAddress(storage.Scales() + place, owner), barrier);
    } else {
#pragma unroll
      for (int q = 0; q < Shape::kQuads; ++q) {
        StoreAsyncCluster4(there + q * 512 + lane * 16, Quad(s, q), barrier);
      }
    }
  }

  // A strip as float16, scaled by a power of two that brings its largest element to 2^14 or more
  // (but below 2^15): eleven bits of each element, where rounding S to bfloat16 keeps eight; of
  // those less than 2^-28 of the largest, fewer.
  __device__ __forceinline__ void SendHalves(const Tile& s, uint32_t there, uint32_t scale_there,
                                             uint32_t barrier) const {
    float most = 0;
#pragma unroll
    for (float v : s) most = fmaxf(most, fabsf(v));
    const uint32_t exponent = max(__reduce_max_sync(0xffffffff, __float_as_uint(most)) >> 23, 15u);
    const float scale = __uint_as_float((268 - exponent) << 23);
    const auto pack = [&](float x, float y) {
      return __uint_as_float(Pack2<__half>(x * scale, y * scale));
    };
    if (lane == 0) {
      StoreAsyncCluster1(scale_there, __uint_as_float((exponent - 14) << 23), barrier);
    }
#pragma unroll
    for (int q = 0; q + 1 < Shape::kQuads; q += 2) {
      const float* v = &s[4 * q];
      StoreAsyncCluster4(there + q * 256 + lane * 16,
                         {pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7])},
                         barrier);
    }
    if constexpr (Shape::kQuads % 2 == 1) {
      constexpr int q = Shape::kQuads - 1;
      StoreAsyncCluster2(there + q * 256 + lane * 8,
                         {pack(s[4 * q], s[4 * q + 1]), pack(s[4 * q + 2], s[4 * q + 3])}, barrier);
    }
  }

  // Quad q of the block's own strip `strip`, summed up in the order of the blocks.
  __device__ __forceinline__ float4 SumOf(int strip, int q) const {
    float4 sum = {};
    const uint8_t* from = storage.Exchange() + strip * Shape::kStripSumBytes;
    const int step = args.strips * Shape::kStripSumBytes;
    if constexpr (Shape::kHalfSums) {
      from += q + 1 < Shape::kQuads || q % 2 == 1 ? q / 2 * 512 + lane * 16 + q % 2 * 8
                                                  : q * 256 + lane * 8;
      const float* scales = storage.Scales() + strip;
#pragma unroll 8
      for (int b = 0; b < args.blocks; ++b) {
        const uint2 v = *reinterpret_cast<const uint2*>(from + b * step);
        const float scale = scales[b * args.strips];
        const float2 low = Unpack2<__half>(v.x);
        const float2 high = Unpack2<__half>(v.y);
        sum.x = fmaf(low.x, scale, sum.x);
        sum.y = fmaf(low.y, scale, sum.y);
        sum.z = fmaf(high.x, scale, sum.z);
        sum.w = fmaf(high.y, scale, sum.w);
      }
    } else {
      from += q * 512 + lane * 16;
#pragma unroll 8
      for (int b = 0; b < args.blocks; ++b) {
        sum = Add(sum, *reinterpret_cast<const float4*>(from + b * step));
      }
    }
    return sum;
  }

  // Adds up the block's own strips, eight rows of a strip at a time: put(strip of S, q, sums).
  template <class Put>
  __device__ __forceinline__ void AddSums(const Put& put) const {
    BarrierWaitCluster(&storage.Barriers().sum_full, 0);
    const float scale = kTwiceGelu<T> && Shape::kGelu ? 0.5f : 1.0f;
    const int quads = storage.StripsOfS(block) * Shape::kQuads;
    for (int i = group * 4 + warp; i < quads; i += kConsumerWarps) {
      const int strip = i / Shape::kQuads;
      const int q = i - strip * Shape::kQuads;
      const float4 sum = SumOf(strip, q);
      put(block * args.strips + strip, q,
          float4{sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale});
    }
  }

  // S, the block's strips of it, to all blocks.
  __device__ __forceinline__ void GatherS() {
    AddSums([&](int strip, int q, const float4& sum) {
      StoreQuad(storage.P() + strip * Shape::kStripBytes, q, sum);
    });
    FenceAsyncProxy();
    SyncAll();
    if (group == 0 && warp == 0) {
      SendStrips(block * args.strips, storage.StripsOfS(block), ScratchOf(1),
                 &storage.Barriers().s_full);
    }
  }
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_EXCHANGE_CUH_
