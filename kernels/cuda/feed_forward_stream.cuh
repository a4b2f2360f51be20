#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_STREAM_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_STREAM_CUH_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/feed_forward_products.cuh"
#include "kernels/cuda/feed_forward_shape.cuh"
#include "kernels/cuda/feed_forward_store.cuh"
#include "kernels/cuda/feed_forward_tail.cuh"
#include "kernels/cuda/feed_forward_tiles.cuh"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

// Many tokens: a block owns 128 rows and streams all of F past them.
//   warpgroups 0 and 1   64 rows each: P, then per tile h = P B1', a = act(h + bias), s += a A2'
//   warps 8, 9 and 10    bring weights, x and the bias
// The warpgroups take turns at the tensor cores: one activates while the other multiplies. Then s
// is written, or the tail follows (feed_forward_tail.cuh).

namespace flashsvd {

template <class T, class Shape, bool kTail>
struct StreamStorage {
  // P as far as it is not in registers, of both warpgroups. Before that, x: kXSlots blocks of 64
  // rows and 64 columns, the warpgroups' in turn. In the end the result on its way out, or the
  // tail's first sums.
  static constexpr int kLeastBlocks = kTail ? TailShape<Shape>::kLeastBlocks : 2;
  static constexpr int kRowBytes = std::max((Shape::kRankSteps - Shape::kRegisterSteps) * 2048,
                                            kLeastBlocks* Shape::kBlockBytes);
  static constexpr int kRowBlocks = kRowBytes / Shape::kBlockBytes;
  static constexpr int kXSlots = 2 * kRowBytes / Shape::kBlockBytes;
  static constexpr int kFixed = 2 * kRowBytes + static_cast<int>(sizeof(BiasOperand<T, Shape>)) +
                                (kTail ? 512 + static_cast<int>(sizeof(TailStorage<Shape>)) : 512) +
                                1023;
  static constexpr int kSlots =
      std::min(kTail ? 24 : 14, (kFeedForwardShared - kFixed) / Shape::kSlotBytes);

  alignas(1024) uint8_t rows[2][kRowBytes];
  alignas(1024) uint8_t slots[kSlots][Shape::kSlotBytes];  // and swizzled rows in the tail
  BiasOperand<T, Shape> bias;
  RingBarriers<kSlots> weights;
  RingBarriers<kXSlots> x;
  std::conditional_t<kTail, TailStorage<Shape>, NoTail> tail;
};

template <class T, class Shape, class Storage>
struct StreamConsumer {
  Storage& storage;
  TileConsumer<T, Shape, Storage::kSlots>& tiles;

  __device__ __forceinline__ uint8_t* OwnRows() const { return storage.rows[tiles.warpgroup]; }

  // s = x A1'.
  __device__ __forceinline__ void First(RankAccumulator<Shape>& s, int x_chunks) {
    RingPosition<Storage::kXSlots> x, x_done;
    if (tiles.warpgroup == 1) {
      x.Next();
      x_done.Next();
    }
    const uint64_t rows = Swizzle128Descriptor(storage.rows);
    const uint64_t slots = tiles.Slots(Shape::kRank * 16);
    int chunk = 0;
    do {
      storage.x.WaitFull(x);
      const uint64_t a = Advance(rows, x.slot * Shape::kBlockBytes);
#pragma unroll
      for (int part = 0; part < 64 / Shape::kDepth; ++part) {
        storage.weights.WaitFull(tiles.at);
        const uint64_t b = Advance(slots, tiles.at.slot * Shape::kSlotBytes);
        WgmmaFence();
#pragma unroll
        for (int i = 0; i < Shape::kDownSteps; ++i) {
          const int step = part * Shape::kDownSteps + i;
          RankProduct<T, Shape>(s, Advance(a, step * 32), Advance(b, i * Shape::kRank * 32));
        }
        WgmmaCommit();
        tiles.at.Next();
        WgmmaWait<1>();
        if (part > 0 || chunk > 0) {
          storage.weights.Release(tiles.done);
          if (part == 0) {
            storage.x.Release(x_done);
            x_done.Next();
          }
        }
      }
      x.Next();
      x.Next();
    } while (++chunk < x_chunks);
    WgmmaWait<0>();
    storage.weights.Release(tiles.done);
    PinAccumulator<Shape>(s);
  }

  // P times `scale` in T: the first columns in registers, the others in shared memory.
  __device__ __forceinline__ void KeepP(RankAccumulator<Shape>& s, float scale,
                                        uint32_t* registers) {
#pragma unroll
    for (int part = 0; part < Shape::kParts; ++part) {
#pragma unroll
      for (float& v : s[part]) v *= scale;
    }
#pragma unroll
    for (int m = 0; m < Shape::kRegisterSteps * 4; ++m) registers[m] = PackPair<T, Shape>(s, m);
    NamedBarrierSync(3, 256);  // x is no longer read by either warpgroup
#pragma unroll
    for (int m = Shape::kRegisterSteps * 4; m < Shape::kRank / 4; ++m) {
      *PairOfP(OwnRows(), m - Shape::kRegisterSteps * 4) = PackPair<T, Shape>(s, m);
    }
    FenceAsyncProxy();
    NamedBarrierSync(4 + tiles.warpgroup, 128);
  }
};

// Tail: NormTail or NoTail. Without one `out` is s, else x.
template <class T, class Shape, class Tail>
__global__ void __launch_bounds__(kFeedForwardThreads, 1)
    FeedForwardStreamKernel(const __grid_constant__ FeedForwardMaps maps, const float* bias,
                            int hidden, int x_chunks, int num_tiles, Rows out,
                            Activation activation, const __grid_constant__ Tail tail) {
  extern __shared__ __align__(1024) uint8_t shared[];
  constexpr bool kTail = std::is_same_v<Tail, NormTail>;
  using Storage = StreamStorage<T, Shape, kTail>;
  auto& storage = *reinterpret_cast<Storage*>(shared);
  const WeightRing<Shape, Storage::kSlots> ring{storage.slots, nullptr, &storage.weights, nullptr};
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  if (warp == 0 && ElectOne()) {
    storage.weights.Init(8);
    storage.x.Init(4);
    storage.bias.barriers.Init(8);
    if constexpr (kTail) storage.tail.InitBarriers();
    BarrierInitFence();
  }
  if (warp == 1) storage.bias.Init();
  __syncthreads();
  if (warp >= 8) {
    ShrinkRegisters<24>();
    const TileRange tiles{0, 1, num_tiles};
    if (warp == 8 && ElectOne()) {
      WeightProducer<Shape, Storage::kSlots> producer{ring};
      if constexpr (kTail) {
        for (; producer.at.slot < tail.skipped; producer.at.Next()) {
          uint64_t* full = &storage.weights.full[producer.at.slot];
          BarrierArrive(full);
          BarrierWait(full, producer.at.phase);  // nobody else does; synccheck wants somebody to
        }
      }
      for (int chunk = 0; chunk < x_chunks * (64 / Shape::kDepth); ++chunk) {
        producer.Bring(&maps.a1, 0, chunk * (Shape::kDepth / 8), Shape::kSlotBytes);
      }
      producer.BringTiles(maps, tiles);
      if constexpr (kTail) {
        const int row = blockIdx.x * 128;
        TailProducer<Shape, Storage>{storage, tail, &maps.x, row}.Run();
      }
    } else if (warp == 10) {
      const float scale = ActivationScale<T>(activation);
      RingPosition<kBiasTiles> at;
      for (int tile = 0; tile < num_tiles; ++tile) {
        storage.bias.Bring(bias, tile * Shape::kHidden, hidden, scale, at);
      }
      if constexpr (kTail) {
        for (int tile = 0; tile < tail.plan.tiles; ++tile) {
          storage.bias.Bring(tail.bias, tile * Shape::kHidden, tail.plan.d, 1.0f, at);
        }
      }
    } else if (warp == 9 && ElectOne()) {
      WaitForPredecessor();
      RingPosition<Storage::kXSlots> at;
      for (int i = 0; i < 2 * x_chunks; ++i) {
        storage.x.WaitEmpty(at);
        BarrierExpect(&storage.x.full[at.slot], Shape::kBlockBytes);
        CopyBox2(storage.rows[0] + at.slot * Shape::kBlockBytes, &maps.x, i / 2 * 64,
                 blockIdx.x * 128 + i % 2 * 64, &storage.x.full[at.slot]);
        at.Next();
      }
      AllowSuccessor();
    }
  } else {
    GrowRegisters<240>();
    const int warpgroup = warp / 4;
    TileConsumer<T, Shape, Storage::kSlots> tiles{ring, warpgroup};
    if constexpr (kTail) {
      while (tiles.done.slot < tail.skipped) storage.weights.Release(tiles.done);
      tiles.at = tiles.done;
    }
    StreamConsumer<T, Shape, Storage> consumer{storage, tiles};
    RankAccumulator<Shape> s;
    uint32_t p[Shape::kRegisterSteps > 0 ? Shape::kRegisterSteps * 4 : 1];
    ZeroAccumulator<Shape>(s);
    consumer.First(s, x_chunks);
    consumer.KeepP(s, ActivationScale<T>(activation), p);
    ZeroAccumulator<Shape>(s);
    tiles.template Stream<Turn>(s, consumer.OwnRows(), p, num_tiles, activation, &storage.bias);
    WaitForPredecessor();  // which may read, or write, what is written here
    if constexpr (kTail) {
      uint32_t a[Shape::kRank / 4];
#pragma unroll
      for (int m = 0; m < Shape::kRank / 4; ++m) a[m] = PackPair<T, Shape>(s, m);
      // Anew, not in a register through the stream, which has none to spare.
      const int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
      const int row = blockIdx.x * 128 + group * 64;
      TailConsumer<T, Shape, Storage>{storage, ring, tail, &maps.x, out, num_tiles, group, row}.Run(
          a);
    } else {
      const int row = blockIdx.x * 128 + warpgroup * 64;
      if (row >= out.rows) return;
      StoreRows<T, Shape, Storage::kRowBytes / Shape::kBlockBytes>(
          s, consumer.OwnRows(), 4 + warpgroup, &maps.s, row, out);
    }
  }
}

// What a block asks for. compute-sanitizer takes BiasOperand::ones, whose rows are one and the
// same, for 2 KiB, and must find that inside the block's memory.
template <class Storage>
constexpr size_t kStreamBytes = std::min<size_t>(sizeof(Storage) + 2048, kFeedForwardShared);

template <class T, class Shape, class Tail>
cudaError_t LaunchStreamKernel(const FeedForwardParams& params, const Tail& tail,
                               cudaStream_t stream) {
  FeedForwardMaps maps;
  const cudaError_t error = EncodeMaps<Shape>(params, Shape::kRank, Shape::kDepth, &maps);
  if (error != cudaSuccess) return error;
  const int rows = static_cast<int>(params.x.rows);
  constexpr bool kTail = std::is_same_v<Tail, NormTail>;
  return LaunchKernel(FeedForwardStreamKernel<T, Shape, Tail>,
                      {.grid = dim3(CeilDiv(rows, 128)),
                       .block = dim3(kFeedForwardThreads),
                       .shared_bytes = kStreamBytes<StreamStorage<T, Shape, kTail>>},
                      stream, maps, params.bias, params.b1.n, CeilDiv(params.a1.k, 64),
                      CeilDiv(params.b1.n, Shape::kHidden), kTail ? params.x : params.s,
                      params.activation, tail);
}

// s.
template <class T, class Shape>
cudaError_t LaunchFeedForwardStream(const FeedForwardParams& params, cudaStream_t stream) {
  return LaunchStreamKernel<T, Shape>(params, NoTail{}, stream);
}

// With the tail: x.
template <class T, class Shape>
cudaError_t LaunchFeedForwardStreamNorm(const FeedForwardParams& params, cudaStream_t stream) {
  using Storage = StreamStorage<T, Shape, true>;
  constexpr int kSlots = Storage::kSlots;
  static_assert(sizeof(Storage) <= kFeedForwardShared);
  NormTail tail = {.bias = params.b2_bias, .norm = params.norm};
  if (params.x.cols != params.b2.n || params.b2.k > Shape::kRank ||
      !TailShape<Shape>::Plan(params.b2.n, kSlots, Storage::kRowBlocks, &tail.plan)) {
    return cudaErrorInvalidValue;
  }
  const int chunks = CeilDiv(params.a1.k, 64) * (64 / Shape::kDepth) +
                     CeilDiv(params.b1.n, Shape::kHidden) * (Shape::kUpChunks + Shape::kDownChunks);
  tail.skipped = (tail.plan.laps.first + kSlots - chunks % kSlots) % kSlots;
  tail.phase = (chunks + tail.skipped) / kSlots % 2;
  const cudaError_t error =
      PackedMatrixMap(params.b2, Shape::kHidden, Shape::kUpSteps * 16, &tail.b2);
  if (error != cudaSuccess) return error;
  return LaunchStreamKernel<T, Shape>(params, tail, stream);
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_STREAM_CUH_
