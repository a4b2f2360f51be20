#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_CONSUMER_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_CONSUMER_CUH_

#include <cstdint>

#include "kernels/cuda/feed_forward_cluster_layout.cuh"
#include "kernels/cuda/feed_forward_products.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

// What the two warpgroups of a block of feed_forward_cluster.cuh do up to S. Products are
// transposed: the weights are A, 64 rows of them to a warpgroup, and the tokens are the columns of
// D, so that a cluster may have any multiple of eight of them. A warp then holds strips of 16 ranks
// (or units of F), whole: what goes to another block goes there as soon as the warp has it.

namespace flashsvd {

constexpr int kBothWarpgroups = 1;  // named barrier

template <class T, class Shape>
struct ClusterConsumer {
  using Product = Wgmma<T, Shape::kTokens>;
  using Tile = float[Shape::kTokens / 2];  // 64 ranks or units x kTokens, as wgmma leaves it

  const ClusterStorage storage;
  const ClusterArgs& args;
  const int block;
  const int group;  // warpgroup
  const int warp;   // of the warpgroup
  const int lane;
  ClusterRing at;    // the next chunk of weights to use
  ClusterRing done;  // the next to release

  __device__ __forceinline__ ClusterConsumer(const ClusterStorage& storage, int block, int warp)
      : storage(storage),
        args(storage.args),
        block(block),
        group(warp / 4),
        warp(warp % 4),
        lane(threadIdx.x % 32),
        at(WeightRingOf(storage)),
        done(WeightRingOf(storage)) {}

  __device__ __forceinline__ static void SyncBoth() { NamedBarrierSync(kBothWarpgroups, 256); }

  // A and B operand: packed weights of `rows` rows, and P, S or a tile of hidden units.
  __device__ __forceinline__ static uint64_t Weights(const void* shared, int rows) {
    return CoreMatrixDescriptor(shared, rows * 16, 128);
  }
  __device__ __forceinline__ static uint64_t Tokens(const void* shared) {
    return CoreMatrixDescriptor(shared, Shape::kTokens * 16, 128);
  }
  static constexpr int kDownSteps = Shape::kDownDepth / 16;
  static constexpr int kDownStepBytes = Shape::kRank * 32;
  static constexpr int kTokenStep = Shape::kTokens * 32;  // 16 columns
  __device__ __forceinline__ uint8_t* Slot() const {
    return storage.Slots() + at.slot * Shape::kSlotBytes;
  }

  // Releases the oldest chunks as their products come to an end, but for the last kLater.
  template <int kCount, int kLater>
  __device__ __forceinline__ void EndChunks() {
    if constexpr (kCount > 0) {
      WgmmaWait<kCount - 1 + kLater>();
      done.Release();
      EndChunks<kCount - 1, kLater>();
    }
  }

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

  // Sends the block's strips of `p`, from `first` on, to all other blocks: a copy to a warp or two,
  // because a warp takes long to issue one. REQUIRES: their writers passed FenceAsyncProxy and then
  // SyncBoth.
  __device__ __forceinline__ void SendStrips(int first, int count, uint64_t* barrier) const {
    if (count == 0 || !ElectOne()) return;
    uint8_t* strips = storage.P() + first * Shape::kStripBytes;
    for (int to = group * 4 + warp; to < args.blocks; to += 8) {
      if (to == block) {
        BarrierArrive(barrier);
      } else {
        CopyToCluster(ClusterAddress(strips, to), strips, count * Shape::kStripBytes,
                      ClusterAddress(barrier, to));
      }
    }
  }

  // P = x A1', the block's columns of it, to all blocks. The two warpgroups have half of d each,
  // since one alone cannot keep the tensor cores busy with so few columns; or, beyond 64 columns of
  // P, a tile of 64 of these each.
  __device__ __forceinline__ void ComputeP() {
    const bool halves = args.p_cols <= 64;
    Tile p = {};
    PinRegisters(p);
    MultiplyX(p, halves);
    const int strip = (halves ? 0 : group * 4) + warp;
    const int strips = storage.StripsOfP(block, Shape::kStrips);
    const int first = block * (args.p_cols / 16);
    SyncBoth();  // x is no longer read
    if (halves) {
      auto* half = reinterpret_cast<float4*>(storage.Exchange() + strip * Shape::kStripSumBytes);
      if (group == 1 && strip < strips) {
#pragma unroll
        for (int q = 0; q < Shape::kQuads; ++q) half[q * 32 + lane] = Quad(p, q);
      }
      SyncBoth();
      if (group == 0 && strip < strips) {
#pragma unroll
        for (int q = 0; q < Shape::kQuads; ++q) {
          const float4 v = half[q * 32 + lane];
          p[4 * q] += v.x;
          p[4 * q + 1] += v.y;
          p[4 * q + 2] += v.z;
          p[4 * q + 3] += v.w;
        }
      }
    }
    if (strip < strips && (!halves || group == 0)) {
      uint8_t* place = storage.P() + (first + strip) * Shape::kStripBytes;
#pragma unroll
      for (int q = 0; q < Shape::kQuads; ++q) StoreQuad(place, q, Quad(p, q));
      FenceAsyncProxy();
    }
    SyncBoth();
    SendStrips(first, strips, &storage.Barriers().p_full);
  }

  __device__ __forceinline__ void MultiplyX(Tile& p, bool halves) {
    ClusterRing x = XRingOf(storage);
    ClusterRing x_done = x;
    const int box_bytes = args.p_cols * 128;  // of A1
    const int stage_bytes = args.x_boxes * Shape::kXBytes;
    const int boxes = halves ? args.x_boxes / 2 : args.x_boxes;
    const int first_box = halves ? group * boxes : 0;
    const int first_row = halves ? 0 : group * 1024;
    int in_slot = 0;
    int stage = 0;
#pragma unroll 1
    do {
      x.WaitFull();
      if (in_slot == 0) at.WaitFull();
      uint64_t a = Advance(Weights(Slot(), args.p_cols),
                           (in_slot * args.x_boxes + first_box) * box_bytes + first_row);
      uint64_t b = Swizzle128Descriptor(storage.Exchange() + x.slot * stage_bytes +
                                        first_box * Shape::kXBytes);
      int box = 0;
#pragma unroll 1
      do {
        WgmmaFence();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          Product::Shared(p, Advance(a, i * (box_bytes / 4)), Advance(b, i * 32));
        }
        a = Advance(a, box_bytes);
        b = Advance(b, Shape::kXBytes);
      } while (++box < boxes);
      WgmmaCommit();
      x.Next();
      WgmmaWait<1>();
      if (stage > 0) x_done.Release();
      if (stage > 0 && in_slot == 0) done.Release();
      if (++in_slot == args.p_chunks) {
        in_slot = 0;
        at.Next();
      }
    } while (++stage < args.x_stages_all);
    WgmmaWait<0>();
    done.Release();
    if (in_slot > 0) at.Next();
    PinRegisters(p);
  }

  // The bias of this thread's two units of tile `tile`.
  __device__ __forceinline__ float2 Bias(const UnitRange& units, int tile) const {
    float2 bias = {0, 0};
    const int unit = (units.first + 2 * tile + group) * 64 + warp * 16 + lane / 4;
    if (args.bias == nullptr || 2 * tile + group >= units.count) return bias;
    if (unit < args.hidden) bias.x = __ldg(args.bias + unit);
    if (unit + 8 < args.hidden) bias.y = __ldg(args.bias + unit + 8);
    return bias;
  }

  // Issues h = B1 P', the warpgroup's 64 units of a tile. kPending of its chunks are left under
  // way. A tile of one unit has nothing for warpgroup 1; it then multiplies what it finds.
  __device__ __forceinline__ void Up(Tile& h) {
    constexpr int kSteps = Shape::kUpDepth / 16;
    const uint64_t p = Tokens(storage.P());
#pragma unroll
    for (int chunk = 0; chunk < Shape::kUpChunks; ++chunk) {
      at.WaitFull();
      const uint64_t a = Weights(Slot() + group * Shape::kUpBytes, 64);
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        Product::Shared(h, Advance(a, i * 2048), Advance(p, (chunk * kSteps + i) * kTokenStep),
                        chunk + i > 0);
      }
      WgmmaCommit();
      at.Next();
      if (chunk >= Shape::kPending) EndChunks<1, Shape::kPending>();
    }
  }

  // Issues s += A2 H, H kChunks times kDownDepth units. kBefore chunks are under way, and kPending
  // of these are left so.
  template <int kChunks, int kBefore>
  __device__ __forceinline__ void Down(Tile (&s)[Shape::kTiles]) {
    const uint64_t hidden = Tokens(storage.Hidden());
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      at.WaitFull();
      const uint64_t a = Advance(Weights(Slot(), Shape::kRank), group * 1024);
      const uint64_t b = Advance(hidden, chunk * kDownSteps * kTokenStep);
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < kDownSteps; ++i) {
#pragma unroll
        for (int t = 0; t < Shape::kTiles; ++t) {
          Product::Shared(s[t], Advance(a, i * kDownStepBytes + t * 2048),
                          Advance(b, i * kTokenStep));
        }
      }
      WgmmaCommit();
      at.Next();
      if (kBefore + chunk >= Shape::kPending) EndChunks<1, Shape::kPending>();
    }
  }

  __device__ __forceinline__ void Activate(Tile& h, uint32_t (&a)[Shape::kTokens / 4],
                                           float2 bias) const {
    PinRegisters(h);
#pragma unroll
    for (int i = 0; i < Shape::kTokens / 2; ++i) h[i] += i % 4 < 2 ? bias.x : bias.y;
    ActivateTile<T>(h, a, args.activation);
  }

  // Makes the tile's units the B operand of the second product.
  __device__ __forceinline__ void StoreHidden(const uint32_t (&a)[Shape::kTokens / 4]) const {
    SyncBoth();  // the last tile's units are no longer read
    uint8_t* place = storage.Hidden() + (group * 4 + warp) * Shape::kStripBytes +
                     (lane / 8 % 2 * Shape::kTokens + lane / 16 * 8 + lane % 8) * 16;
#pragma unroll
    for (int q = 0; q + 1 < Shape::kQuads; q += 2) {
      StoreMatrix4Transposed(place + q * 128, a[2 * q], a[2 * q + 1], a[2 * q + 2], a[2 * q + 3]);
    }
    if constexpr (Shape::kQuads % 2 == 1) {
      constexpr int q = Shape::kQuads - 1;
      StoreMatrix2Transposed(place + q * 128, a[2 * q], a[2 * q + 1]);
    }
    FenceAsyncProxy();
    SyncBoth();
  }

  // s = A2 act(B1 P' + bias) over the block's units, and to the others. While a tile is activated,
  // the tensor cores work on the second product of the one before; while it is stored, on the first
  // of the next.
  __device__ __forceinline__ void Walk(Tile (&s)[Shape::kTiles]) {
    const UnitRange units(args, block);
    const int tiles = units.Tiles();
    float2 bias = Bias(units, 0);
    BarrierWait(&storage.Barriers().p_full, 0);
    if (tiles == 0) {
      SendTiles<0>(s);
      return;
    }
    Tile h;
    uint32_t a[Shape::kTokens / 4];
    Up(h);
    EndChunks<Shape::kPending, 0>();
    Activate(h, a, bias);
    for (int tile = 1; tile < tiles; ++tile) {
      bias = Bias(units, tile);
      Up(h);
      StoreHidden(a);
      Down<Shape::kDownChunks, Shape::kPending>(s);
      // While the tensor cores end the second product of this tile, the next one is activated.
      Activate(h, a, bias);
      EndChunks<Shape::kPending, 0>();
    }
    StoreHidden(a);
    LastDown(s, units.Halves(tiles - 1) * (Shape::kDownChunks / 2));
    SendTiles<0>(s);
    while (done.slot != at.slot) done.Release();
  }

  // The second product of the last tile, whose `chunks` are all kept until its end: one set of
  // accumulators after the other, so that the first is on its way to its owners meanwhile.
  __device__ __forceinline__ void LastDown(Tile (&s)[Shape::kTiles], int chunks) {
    const uint64_t hidden = Tokens(storage.Hidden());
#pragma unroll
    for (int t = 0; t < Shape::kTiles; ++t) {
      at = done;
      int chunk = 0;
#pragma unroll 1
      do {
        if (t == 0) at.WaitFull();
        const uint64_t a = Advance(Weights(Slot(), Shape::kRank), group * 1024 + t * 2048);
        const uint64_t b = Advance(hidden, chunk * kDownSteps * kTokenStep);
        WgmmaFence();
#pragma unroll
        for (int i = 0; i < kDownSteps; ++i) {
          Product::Shared(s[t], Advance(a, i * kDownStepBytes), Advance(b, i * kTokenStep));
        }
        at.Next();
      } while (++chunk < chunks);
      WgmmaCommit();
    }
  }

  // Sends the sums as LastDown comes to have them.
  template <int kTile>
  __device__ __forceinline__ void SendTiles(Tile (&s)[Shape::kTiles]) {
    if constexpr (kTile < Shape::kTiles) {
      WgmmaWait<Shape::kTiles - 1 - kTile>();
      PinRegisters(s[kTile]);
      SendSums(s[kTile], 2 * kTile + group);
      SendTiles<kTile + 1>(s);
    }
  }

  // Sends the strips of tile `tile` of S to the blocks they belong to.
  __device__ __forceinline__ void SendSums(const Tile& s, int tile) const {
    if (tile >= Shape::kRankTiles) return;
    const int strip = tile * 4 + warp;
    const int owner = strip / args.strips;
    const uint8_t* place =
        storage.Exchange() + lane * 16 +
        (block * args.strips + strip - owner * args.strips) * Shape::kStripSumBytes;
    const uint32_t there = ClusterAddress(place, owner);
    const uint32_t barrier = ClusterAddress(&storage.Barriers().sum_full, owner);
#pragma unroll
    for (int q = 0; q < Shape::kQuads; ++q) {
      StoreAsyncCluster4(there + q * 512, Quad(s, q), barrier);
    }
  }

  // Adds up the block's own strips, in the order of the blocks, eight rows of a strip at a time:
  //   put(strip of S, first row, unit)   by lanes 0 to 15, and 16 to 31 the same:
  // `unit` is columns 8 h to 8 h + 7 of the strip, h = lane / 8 % 2, of row first + lane % 8, in T.
  template <class Put>
  __device__ __forceinline__ void AddSums(const Put& put) const {
    BarrierWaitCluster(&storage.Barriers().sum_full, 0);
    const float scale = kTwiceGelu<T> && args.activation == Activation::kGelu ? 0.5f : 1.0f;
    const int quads = storage.StripsOfS(block, Shape::kStrips) * Shape::kQuads;
    const auto* sums = reinterpret_cast<const float4*>(storage.Exchange()) + lane;
    const int block_step = args.strips * Shape::kQuads * 32;
    uint8_t* turned = storage.Scratch() + (group * 4 + warp) * 256 + lane % 16 * 16;
    for (int i = group * 4 + warp; i < quads; i += 8) {
      float4 sum = {};
      const float4* from = sums + i * 32;
#pragma unroll 8
      for (int b = 0; b < args.blocks; ++b) sum = Add(sum, from[b * block_step]);
      __syncwarp();
      StoreMatrix2Transposed(turned, Pack2<T>(sum.x * scale, sum.y * scale),
                             Pack2<T>(sum.z * scale, sum.w * scale));
      __syncwarp();
      put(block * args.strips + i / Shape::kQuads, i % Shape::kQuads * 8,
          *reinterpret_cast<const float4*>(turned));
    }
  }

  // Sends a unit of S to all blocks.
  __device__ __forceinline__ void SendUnit(int strip, int row, const float4& unit) const {
    const uint8_t* place = storage.P() + strip * Shape::kStripBytes +
                           (lane / 8 % 2 * Shape::kTokens + row + lane % 8) * 16;
#pragma unroll
    for (int i = 0; i < kMaxClusterBlocks; i += 2) {
      const int to = i + lane / 16;
      if (to < args.blocks) {
        StoreAsyncCluster4(ClusterAddress(place, to), unit,
                           ClusterAddress(&storage.Barriers().s_full, to));
      }
    }
  }

  // Writes a unit of S to memory.
  __device__ __forceinline__ void StoreUnit(int strip, int row, const float4& unit) const {
    const int col = strip * 16 + lane / 8 % 2 * 8;
    row += lane % 8;
    if (lane >= 16 || row >= args.s.rows) return;
    T* to = static_cast<T*>(args.s.data) + row * args.s.stride + col;
    if (col + 8 <= args.s.cols) {
      *reinterpret_cast<float4*>(to) = unit;
    } else {
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        if (col + c < args.s.cols) to[c] = reinterpret_cast<const T*>(&unit)[c];
      }
    }
  }
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_CONSUMER_CUH_
