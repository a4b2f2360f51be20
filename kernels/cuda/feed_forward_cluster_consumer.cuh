#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_CONSUMER_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_CONSUMER_CUH_

#include <cstdint>

#include "kernels/cuda/feed_forward_cluster_exchange.cuh"
#include "kernels/cuda/feed_forward_cluster_layout.cuh"
#include "kernels/cuda/feed_forward_products.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

// What the warpgroups of a block of feed_forward_cluster.cuh do up to S. Products are
// transposed: the weights are A, 64 rows of them to a warpgroup, and the tokens are the columns of
// D, so that a cluster may have any multiple of eight of them. A warp then holds strips of 16 ranks
// (or units of F), whole: what goes to another block goes there as soon as the warp has it.

namespace flashsvd {

template <class T, class Shape>
struct ClusterConsumer : ClusterExchange<T, Shape> {
  using Exchange = ClusterExchange<T, Shape>;
  using Product = Wgmma<T, Shape::kTokens>;
  using Exchange::args;
  using Exchange::block;
  using Exchange::group;
  using Exchange::lane;
  using Exchange::Quad;
  using Exchange::ScratchOf;
  using Exchange::SendStrips;
  using Exchange::SendSums;
  using Exchange::storage;
  using Exchange::StoreQuad;
  using Exchange::SyncAll;
  using Exchange::warp;
  using typename Exchange::Tile;

  ClusterRing at;    // the next chunk of weights to use
  ClusterRing done;  // the next to release

  __device__ __forceinline__ ClusterConsumer(const ClusterStorage<Shape>& storage, int block,
                                             int warp)
      : Exchange(storage, block, warp), at(WeightRingOf(storage)), done(WeightRingOf(storage)) {}

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

  // P = x A1', the block's columns of it, to all blocks. The warpgroups have a part of d each,
  // since one alone cannot keep the tensor cores busy with so few columns; or, beyond 64 columns of
  // P, two have a tile of 64 of these each.
  __device__ __forceinline__ void ComputeP() {
    const bool parts = args.p_cols <= 64;
    Tile p = {};
    PinRegisters(p);
    MultiplyX(p, parts);
    const int strip = (parts ? 0 : group * 4) + warp;
    const int strips = storage.StripsOfP(block);
    const int first = block * (args.p_cols / 16);
    if (parts) AddParts(p, strip < strips);
    if (strip < strips && (!parts || group == 0)) {
      uint8_t* place = storage.P() + (first + strip) * Shape::kStripBytes;
#pragma unroll
      for (int q = 0; q < Shape::kQuads; ++q) StoreQuad(place, q, Quad(p, q));
      FenceAsyncProxy();
    }
    SyncAll();
    if (group == 0 && warp == 0) {
      SendStrips(first, strips, ScratchOf(0), &storage.Barriers().p_full);
    }
  }

  // Adds the warpgroups' parts of P up, in warpgroup 0.
  __device__ __forceinline__ void AddParts(Tile& p, bool own) {
    const int part = args.p_cols / 16 * Shape::kQuads * 32;  // float4 of a warpgroup
    auto* parts = reinterpret_cast<float4*>(storage.Hidden()) + warp * Shape::kQuads * 32 + lane;
    if (group > 0 && own) {
#pragma unroll
      for (int q = 0; q < Shape::kQuads; ++q) parts[(group - 1) * part + q * 32] = Quad(p, q);
    }
    SyncAll();
    if (group > 0 || !own) return;
#pragma unroll
    for (int q = 0; q < Shape::kQuads; ++q) {
#pragma unroll
      for (int g = 0; g < kGroups - 1; ++g) {
        const float4 v = parts[g * part + q * 32];
        p[4 * q] += v.x;
        p[4 * q + 1] += v.y;
        p[4 * q + 2] += v.z;
        p[4 * q + 3] += v.w;
      }
    }
  }

  __device__ __forceinline__ void MultiplyX(Tile& p, bool parts) {
    ClusterRing x = XRingOf(storage);
    ClusterRing x_done = x;
    const int box_bytes = args.p_cols * 128;  // of A1
    const int stage_bytes = args.x_boxes * Shape::kXBytes;
    const int boxes = parts ? args.x_boxes / kGroups : args.x_boxes;
    const int first_box = parts ? group * boxes : 0;
    const int first_row = parts ? 0 : group % 2 * 1024;
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
  __device__ __forceinline__ float2 Bias(const UnitRange<Shape>& units, int tile) const {
    float2 bias = {0, 0};
    const int unit = (units.first + kGroups * tile + group) * 64 + warp * 16 + lane / 4;
    if (args.bias == nullptr || group >= units.UnitsOf(tile)) return bias;
    if (unit < args.hidden) bias.x = __ldg(args.bias + unit);
    if (unit + 8 < args.hidden) bias.y = __ldg(args.bias + unit + 8);
    return bias;
  }

  // Issues h = B1 P', the warpgroup's 64 units of a tile. kPending of its chunks are left under
  // way. A tile of few units has nothing for the last warpgroups; these multiply what they find.
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
          Product::Shared(s[t], Advance(a, i * kDownStepBytes + t * kGroups * 1024),
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
    if constexpr (Shape::kGelu) {
      ActivateTile<T, Activation::kGelu>(h, a);
    } else {
      ActivateTile<T>(h, a, args.activation);
    }
  }

  // Makes the tile's units the B operand of the second product.
  __device__ __forceinline__ void StoreHidden(const uint32_t (&a)[Shape::kTokens / 4]) const {
    SyncAll();  // the last tile's units are no longer read
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
    SyncAll();
  }

  // s = A2 act(B1 P' + bias) over the block's units, and to the others. While a tile is activated,
  // the tensor cores work on the second product of the one before; while it is stored, on the first
  // of the next.
  __device__ __forceinline__ void Walk(Tile (&s)[Shape::kTiles]) {
    const UnitRange<Shape> units(args, block);
    const int tiles = units.Tiles();
    float2 bias = Bias(units, 0);
#pragma unroll
    for (int t = 0; t < Shape::kTiles; ++t) PinRegisters(s[t]);
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
    LastDown(s, units.UnitsOf(tiles - 1) * Shape::kUnitChunks);
    SendTiles<0>(s);
    while (done.slot != at.slot) done.Release();
  }

  // The second product of the last tile. Several sets of accumulators: one after the other, so
  // that the first is on its way to its owners meanwhile; the chunks are all kept until the end.
  __device__ __forceinline__ void LastDown(Tile (&s)[Shape::kTiles], int chunks) {
    const uint64_t hidden = Tokens(storage.Hidden());
#pragma unroll
    for (int t = 0; t < Shape::kTiles; ++t) {
      at = done;
      int chunk = 0;
#pragma unroll 1
      do {
        if (t == 0) at.WaitFull();
        const uint64_t a = Advance(Weights(Slot(), Shape::kRank), (group + t * kGroups) * 1024);
        const uint64_t b = Advance(hidden, chunk * kDownSteps * kTokenStep);
        WgmmaFence();
#pragma unroll
        for (int i = 0; i < kDownSteps; ++i) {
          Product::Shared(s[t], Advance(a, i * kDownStepBytes), Advance(b, i * kTokenStep));
        }
        at.Next();
        if constexpr (Shape::kTiles == 1) {
          WgmmaCommit();
          WgmmaWait<1>();
          if (chunk > 0) done.Release();
        }
      } while (++chunk < chunks);
      if constexpr (Shape::kTiles > 1) WgmmaCommit();
    }
  }

  // Sends the sums as LastDown comes to have them.
  template <int kTile>
  __device__ __forceinline__ void SendTiles(Tile (&s)[Shape::kTiles]) {
    if constexpr (kTile < Shape::kTiles) {
      WgmmaWait<Shape::kTiles - 1 - kTile>();
      PinRegisters(s[kTile]);
      SendSums(s[kTile], kGroups * kTile + group);
      SendTiles<kTile + 1>(s);
    }
  }
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_CONSUMER_CUH_
