#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_SPLIT_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_SPLIT_CUH_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/feed_forward_shape.cuh"
#include "kernels/cuda/feed_forward_split_consumer.cuh"
#include "kernels/cuda/feed_forward_tiles.cuh"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/ptx.cuh"

// More tokens than feed_forward_cluster.h is for, and fewer than fill the device with blocks of 128
// rows: a cluster of up to four blocks shares 64 rows, or a cluster of two shares 128: kGroups
// groups of 64 rows. The norm is another kernel's.
//   1. Each block computes some columns of P = x A1' and sends them to all the others.
//   2. Each walks its own share of the tiles of F. With two groups both warpgroups use every
//      tile, in turns; with one they have tiles, and rings of weights, of their own.
//   3. To each block belong some columns of the result (two groups: one of them). It gets the
//      others' sums for these in float32 and adds them up in the order of the blocks.
//
// Everything sent is a bulk copy that ends on a barrier of the receiver, so that no block ever
// waits for a fence over its own memory operations.
//
// Warps 8 and 9 bring weights, warp 10 brings x, warp 11 the bias.

namespace flashsvd {

template <class T, class Shape, int kGroups>
__global__ void __launch_bounds__(kFeedForwardThreads, 1)
    FeedForwardSplitKernel(const __grid_constant__ FeedForwardMaps maps, const float* bias,
                           int hidden, int x_chunks, int all_tiles, SliceOfP slice, int blocks,
                           Rows out, Activation activation) {
  extern __shared__ __align__(1024) uint8_t shared[];
  using Storage = SplitStorage<Shape, kGroups>;
  auto& storage = *reinterpret_cast<Storage*>(shared);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const int block = static_cast<int>(ClusterRank());
  const int row = static_cast<int>(blockIdx.x) / blocks * (kGroups * 64);
  // Tiles are dealt out in turn to the blocks, or to their warpgroups.
  const int walkers = blocks * Storage::kRings;
  const auto tiles_of = [&](int ring) {
    const int first = block * Storage::kRings + ring;
    return TileRange{first, walkers, (all_tiles - first + walkers - 1) / walkers};
  };
  const auto ring = [&](int i) {
    return WeightRing<Shape, Storage::kSlots>{storage.slots[i], storage.bias[i],
                                              &storage.weights[i], &storage.bias_barriers[i]};
  };
  if (warp == 0 && ElectOne()) {
    for (auto& weights : storage.weights) weights.Init(4 * kGroups);
    for (auto& barriers : storage.bias_barriers) {
      for (int i = 0; i < kBiasTiles; ++i) {
        BarrierInit(&barriers.full[i], kBiasWriters);
        BarrierInit(&barriers.empty[i], kBiasReaders * kGroups);
      }
    }
    storage.x.Init(8);
    BarrierInit(&storage.x_used, 2 * blocks);
    BarrierInit(&storage.p_full, 3);
    BarrierInit(&storage.p_taken, blocks);
    BarrierInit(&storage.idle, blocks);
    BarrierInit(&storage.sum_full, 1);
    BarrierInit(&storage.sum_taken, blocks);
    BarrierInitFence();
  }
  ClusterSync();

  if (warp >= 8) {
    ShrinkRegisters<24>();
    if (warp < 8 + Storage::kRings && ElectOne()) {
      const int i = warp - 8;
      WeightProducer<Shape, Storage::kSlots> producer{ring(i)};
      const int part = kGroups == 2 ? block : block * 2 + i;
      for (int chunk = 0; chunk < x_chunks; chunk += slice.x_chunks) {
        producer.Bring(&maps.a1, part * slice.cols / 8, chunk * 8,
                       slice.cols * slice.x_chunks * 128);
      }
      producer.BringTiles(maps, tiles_of(i));
    } else if (warp == 11) {
      RingPosition<kBiasTiles> at[Storage::kRings];
      for (int tile = 0; tile < tiles_of(0).count; ++tile) {
#pragma unroll
        for (int i = 0; i < Storage::kRings; ++i) {
          const TileRange tiles = tiles_of(i);
          if (tile < tiles.count) BringBias(ring(i), bias, hidden, tiles, tile, at[i]);
        }
      }
    } else if (warp == 10 && ElectOne()) {
      WaitForPredecessor();
      RingPosition<Storage::kXStages> at;
      for (int chunk = 0; chunk < x_chunks; ++chunk) {
        storage.x.WaitEmpty(at);
        BarrierExpect(&storage.x.full[at.slot], Storage::kXBytes);
        for (int i = 0; i < kGroups; ++i) {
          CopyBox2(storage.rows + at.slot * Storage::kXBytes + i * Shape::kBlockBytes, &maps.x,
                   chunk * 64, row + i * 64, &storage.x.full[at.slot]);
        }
        at.Next();
      }
      AllowSuccessor();
    }
  } else {
    GrowRegisters<240>();
    const int warpgroup = warp / 4;
    const int own_ring = kGroups == 2 ? 0 : warpgroup;
    WaitForPredecessor();
    TileConsumer<T, Shape, Storage::kSlots> tiles{ring(own_ring), warpgroup};
    SplitConsumer<T, Shape, kGroups> consumer{storage, tiles, block, blocks};
    consumer.ComputeP(slice, x_chunks);
    uint32_t p[Shape::kRegisterSteps > 0 ? Shape::kRegisterSteps * 4 : 1];
#pragma unroll
    for (int m = 0; m < Shape::kRegisterSteps * 4; ++m) p[m] = *PairOfP(consumer.P(), m);
    RankAccumulator<Shape> s;
    ZeroAccumulator<Shape>(s);
    using TurnOrNot = std::conditional_t<kGroups == 2, Turn, NoTurn>;
    tiles.template Stream<TurnOrNot>(s, consumer.P() + Shape::kRegisterSteps * 2048, p,
                                     tiles_of(own_ring).count, activation);
    if constexpr (kGroups == 2) {
      consumer.ReduceGroups(s, &maps.s, out, row);
    } else {
      consumer.ReduceColumns(s, out, row);
    }
  }
}

template <class T, class Shape, int kGroups>
cudaError_t LaunchFeedForwardSplit(const FeedForwardParams& params, int splits,
                                   cudaStream_t stream) {
  using Storage = SplitStorage<Shape, kGroups>;
  const int walkers = splits * Storage::kRings;
  constexpr int kWidest = kWidestSlice<Shape, kGroups>;
  SliceOfP slice{kWidest, 1};
  for (const int cols : {32, 16, 8}) {
    if (cols < kWidest && cols * walkers >= Shape::kRank) slice.cols = cols;
  }
  if (splits < 2 || splits > (kGroups == 2 ? 2 : Storage::kMostBlocks) ||
      slice.cols * walkers < Shape::kRank) {
    return cudaErrorInvalidValue;
  }
  const int x_chunks = CeilDiv(params.a1.k, 64);
  slice.x_chunks = std::min({x_chunks, Shape::kSlotBytes / (slice.cols * 128), 32});
  FeedForwardMaps maps;
  const cudaError_t error = EncodeMaps<Shape>(params, slice.cols, slice.x_chunks * 64, &maps);
  if (error != cudaSuccess) return error;
  const int groups = CeilDiv(static_cast<int>(params.x.rows), kGroups * 64);
  return LaunchKernel(FeedForwardSplitKernel<T, Shape, kGroups>,
                      {.grid = dim3(groups * splits),
                       .block = dim3(kFeedForwardThreads),
                       .shared_bytes = sizeof(Storage),
                       .cluster = splits},
                      stream, maps, params.bias, params.b1.n, x_chunks,
                      CeilDiv(params.b1.n, Shape::kHidden), slice, splits, params.s,
                      params.activation);
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_SPLIT_CUH_
