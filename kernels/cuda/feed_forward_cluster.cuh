#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_CUH_

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/feed_forward_cluster_consumer.cuh"
#include "kernels/cuda/feed_forward_cluster_layout.cuh"
#include "kernels/cuda/feed_forward_cluster_tail.cuh"
#include "kernels/cuda/feed_forward_shape.cuh"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tensor_map.h"

// Few tokens: a cluster of blocks shares kTokens rows of x.
//   1. Each block computes some columns of P = x A1' and sends them to all the others.
//   2. Each walks its own share of F and has part of every element of S.
//   3. To each block belong some columns of S. It gets the others' sums for these, adds them up in
//      the order of the blocks, and sends them to all.
//   4. Each computes some columns of x + S B2' + b, exchanges their moments with the others, and
//      normalises them.
// What goes to one block goes through remote shared memory, what goes to all through memory. All of
// it ends on a barrier of the receiver; no block waits for a fence over its own memory operations,
// and none for another to make room (ClusterStorage says why there is).
//
// The first warps compute. Of the other four, warp 0 brings weights as early as there is room for
// them, most of them while the kernel before is still running; warp 1 brings x, with the other
// blocks.

namespace flashsvd {

// Ranks of a chunk of B2.
template <class Shape>
__host__ __device__ constexpr int TailDepth(int d_tiles) {
  return 16 * (d_tiles == 1 ? Shape::template kTailSteps<1> : Shape::template kTailSteps<2>);
}

template <class Shape>
struct ClusterProducer {
  const ClusterStorage<Shape>& storage;
  const ClusterMaps& maps;
  const ClusterArgs& args;
  const int block;
  ClusterRing at;

  __device__ __forceinline__ ClusterProducer(const ClusterStorage<Shape>& storage,
                                             const ClusterMaps& maps, int block)
      : storage(storage), maps(maps), args(storage.args), block(block), at(WeightRingOf(storage)) {}

  // The next chunk: `boxes` boxes of `bytes`, each eight row groups on.
  __device__ __forceinline__ void Bring(const CUtensorMap* map, int row_group, int unit, int bytes,
                                        int boxes = 1) {
    at.WaitEmpty();
    uint64_t* full = &at.full[at.slot];
    BarrierExpect(full, bytes * boxes);
    for (int i = 0; i < boxes; ++i) {
      CopyBox3(storage.Slots() + at.slot * Shape::kSlotBytes + i * bytes, map, 0, row_group + i * 8,
               unit, full);
    }
    at.Next();
  }

  __device__ __forceinline__ void BringAll() {
    if (storage.StripsOfP(block) > 0) {
      const int boxes = args.x_boxes * args.p_chunks;
      for (int stage = 0; stage < args.x_stages_all; stage += args.p_chunks) {
        Bring(&maps.a1, block * args.p_cols / 8, stage * args.x_boxes * 8,
              args.p_cols * boxes * 128);
      }
    }
    const UnitRange<Shape> units(args, block);
    const int tiles = units.Tiles();
    for (int tile = 0; tile <= tiles; ++tile) {
      if (tile < tiles) {
        for (int chunk = 0; chunk < Shape::kUpChunks; ++chunk) {
          Bring(&maps.b1, (units.first + kGroups * tile) * 8, chunk * (Shape::kUpDepth / 8),
                Shape::kUpBytes, units.UnitsOf(tile));
        }
      }
      if (tile == 0) continue;
      const int unit = (units.first + kGroups * (tile - 1)) * 64;
      for (int k = 0; k < units.UnitsOf(tile - 1) * 64; k += Shape::kDownDepth) {
        Bring(&maps.a2, 0, (unit + k) / 8, Shape::kRank * Shape::kDownDepth * 2);
      }
    }
    if (storage.ColumnsOf(block) == 0) return;
    const int depth = TailDepth<Shape>(args.d_tiles);
    for (int k = 0; k < Shape::kRank; k += depth) {
      Bring(&maps.b2, block * args.d_cols / 8, k / 8, args.d_cols * depth * 2);
    }
  }

  // x, if the block has columns of P. Where there is room for all of x, the blocks bring boxes in
  // turn, each to all of them.
  __device__ __forceinline__ void BringX(int first_row) const {
    const int blocks = storage.BlocksOfP();
    if (block >= blocks) return;
    const bool shared = args.x_stages == args.x_stages_all;
    ClusterRing x = XRingOf(storage);
    int turn = block;
    for (int stage = 0; stage < args.x_stages_all; ++stage) {
      if (!shared) x.WaitEmpty();
      uint64_t* full = &x.full[x.slot];
      BarrierExpect(full, args.x_boxes * Shape::kXBytes);
      for (int i = 0; i < args.x_boxes; ++i) {
        uint8_t* to = storage.Exchange() + (x.slot * args.x_boxes + i) * Shape::kXBytes;
        const int column = (stage * args.x_boxes + i) * 64;
        if (!shared) {
          CopyBox2(to, &maps.x, column, first_row, full);
        } else if (turn == 0) {
          MulticastBox2(to, &maps.x, column, first_row, full, (1 << blocks) - 1);
        }
        turn = turn == 0 ? blocks - 1 : turn - 1;
      }
      x.Next();
    }
  }
};

// Initialises the barriers of a block and says what is to arrive at them.
template <class Shape>
__device__ __forceinline__ void InitClusterBarriers(const ClusterStorage<Shape>& storage,
                                                    int block) {
  const ClusterArgs& args = storage.args;
  ClusterBarriers& b = storage.Barriers();
  for (int i = 0; i < args.slots; ++i) {
    BarrierInit(&b.weights_full[i], 1);
    BarrierInit(&b.weights_empty[i], kConsumerWarps);
  }
  for (int i = 0; i < args.x_stages; ++i) {
    BarrierInit(&b.x_full[i], 1);
    BarrierInit(&b.x_empty[i], kConsumerWarps);
  }
  BarrierInit(&b.p_full, 1);
  BarrierInit(&b.sum_full, 1);
  BarrierInit(&b.s_full, 1);
  BarrierInit(&b.moments_full, 1);
  BarrierInitFence();
  BarrierExpect(&b.p_full, Shape::kRankBytes);
  BarrierExpect(&b.sum_full, args.blocks * storage.StripsOfS(block) *
                                 (Shape::kStripSumBytes + (Shape::kHalfSums ? 4 : 0)));
  BarrierExpect(&b.s_full, Shape::kRankBytes);
  BarrierExpect(&b.moments_full, storage.BlocksOfResult() * Shape::kTokens * 8);
}

template <class T, class Shape, int kCount>
__device__ __forceinline__ void FinishRows(ClusterConsumer<T, Shape>& consumer, int first_row) {
  const ClusterStorage<Shape>& storage = consumer.storage;
  ClusterColumns<T, Shape, kCount> columns(consumer);
  ClusterRows<T, Shape, kCount> rows(storage, consumer.block, first_row);
  consumer.GatherS();
  BarrierWait(&storage.Barriers().s_full, 0);
  if (columns.columns == 0) return;
  columns.Compute();
  rows.Begin(consumer.block);
  rows.End();
}

template <class T, class Shape>
__device__ __forceinline__ void ConsumeRows(const ClusterStorage<Shape>& storage, int block,
                                            int warp, int first_row) {
  const ClusterArgs& args = storage.args;
  ClusterConsumer<T, Shape> consumer(storage, block, warp);
  WaitForPredecessor();
  ClusterWait();  // for the others' barriers
  if (storage.StripsOfP(block) > 0) consumer.ComputeP();
  typename ClusterConsumer<T, Shape>::Tile s[Shape::kTiles] = {};
  consumer.Walk(s);
  if constexpr (Shape::kWideColumns) {
    if (args.d_tiles > 1) return FinishRows<T, Shape, 2>(consumer, first_row);
  }
  FinishRows<T, Shape, 1>(consumer, first_row);
}

template <class T, class Shape>
__global__ void __launch_bounds__(kClusterThreads, 1)
    FeedForwardClusterKernel(const __grid_constant__ ClusterMaps maps,
                             const __grid_constant__ ClusterArgs args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const ClusterStorage<Shape> storage{shared, args};
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const int block = static_cast<int>(ClusterRank());
  const int first_row = static_cast<int>(blockIdx.x) / args.blocks * Shape::kTokens;
  if (warp == kConsumerWarps && ElectOne()) InitClusterBarriers<Shape>(storage, block);
  __syncthreads();
  ClusterArriveRelaxed();  // who sends waits for the others' barriers before
  if (warp >= kConsumerWarps) {
    ShrinkRegisters<56>();
    ClusterProducer<Shape> producer(storage, maps, block);
    if (warp == kConsumerWarps && ElectOne()) {
      producer.BringAll();
    } else if (warp == kConsumerWarps + 1) {
      ClusterWait();
      if (ElectOne()) {
        PrefetchTensorMap(&maps.x);
        WaitForPredecessor();
        AllowSuccessor();
        producer.BringX(first_row);
      }
    }
  } else {
    GrowRegisters<224>();
    ConsumeRows<T, Shape>(storage, block, warp, first_row);
  }
  // Blocks that do not wait for the moments of all others stay until nothing is under way to them.
  if (storage.BlocksOfResult() < args.blocks) {
    __syncwarp();
    if (warp >= kConsumerWarps && warp != kConsumerWarps + 1) ClusterWait();
    ClusterArriveRelaxed();
    ClusterWait();
  }
}

// Fills in what is chosen by the host; false where the shape is not accepted.
template <class Shape>
bool LayOutCluster(const FeedForwardParams& params, int blocks, ClusterArgs* args) {
  const auto round_up = [](int v, int unit) { return CeilDiv(v, unit) * unit; };
  args->blocks = blocks;
  args->p_cols = round_up(CeilDiv(Shape::kRank, blocks), 16);
  const int x_chunks = CeilDiv(params.a1.k, 64);
  // The halves of d that the warpgroups have are made of boxes.
  const int boxes_in_slot = Shape::kSlotBytes / (args->p_cols * 128);
  args->x_boxes = boxes_in_slot >= 4 && Shape::kTokens <= 48 ? 4 : boxes_in_slot >= 2 ? 2 : 1;
  args->x_stages_all = CeilDiv(x_chunks, args->x_boxes);
  args->p_chunks =
      std::min({args->x_stages_all, boxes_in_slot / args->x_boxes, 32 / args->x_boxes});
  args->strips = CeilDiv(Shape::kStrips, blocks);
  const int d = params.b2.n;
  args->d_cols = round_up(CeilDiv(d, blocks), 16);
  args->d_tiles = CeilDiv(args->d_cols, 128);
  if (d != params.x.cols || d % 16 != 0 || d > 1024) return false;
  if (args->d_tiles > 1 + Shape::kWideColumns) return false;
  const int exchange =
      round_up(std::max({kMaxClusterBlocks * Shape::kTokens * 8,
                         blocks * args->strips * Shape::kStripSumBytes,
                         std::min(args->x_stages_all * args->x_boxes * Shape::kXBytes, 64 * 1024)}),
               1024);
  args->x_stages =
      std::min({args->x_stages_all, kMaxXStages, exchange / (args->x_boxes * Shape::kXBytes)});
  args->p_offset = kClusterDataOffset<Shape> + exchange;
  args->hidden_offset = args->p_offset + Shape::kRankBytes;
  args->slots_offset =
      round_up(args->hidden_offset +
                   std::max(int{Shape::kHiddenBytes}, args->d_cols / 8 * Shape::kUnitPitch),
               128);
  // The last slot may be read a little past its end.
  args->slots = std::min((kFeedForwardShared - 1024 - args->slots_offset) / Shape::kSlotBytes,
                         kMaxClusterSlots);
  args->shared_bytes = args->slots_offset + args->slots * Shape::kSlotBytes + 1024;
  return args->p_cols <= 128 && args->p_chunks > 0 && (args->p_cols > 64 || args->x_boxes > 1) &&
         (args->x_stages > 1 || args->x_stages_all == 1) &&
         args->slots > std::max(Shape::kPending + 1, Shape::kDownChunks) &&
         args->slots >= Shape::kRank / TailDepth<Shape>(args->d_tiles);  // of B2: none is released
}

template <class Shape>
cudaError_t EncodeClusterMaps(const FeedForwardParams& params, const ClusterArgs& args,
                              ClusterMaps* maps) {
  cudaError_t error = SwizzledRowsMap(params.x, Shape::kTokens, &maps->x);
  if (error == cudaSuccess) {
    error = PackedMatrixMap(params.a1, args.p_cols, args.x_boxes * args.p_chunks * 64, &maps->a1);
  }
  if (error == cudaSuccess) error = PackedMatrixMap(params.b1, 64, Shape::kUpDepth, &maps->b1);
  if (error == cudaSuccess) {
    error = PackedMatrixMap(params.a2, Shape::kRank, Shape::kDownDepth, &maps->a2);
  }
  if (error == cudaSuccess) {
    error = PackedMatrixMap(params.b2, args.d_cols, TailDepth<Shape>(args.d_tiles), &maps->b2);
  }
  return error;
}

template <class T, class Shape>
cudaError_t LaunchFeedForwardCluster(const FeedForwardParams& params, int splits,
                                     cudaStream_t stream) {
  ClusterArgs args = {};
  ClusterMaps maps = {};
  if (splits < 2 || splits > kMaxClusterBlocks || params.a1.n > Shape::kRank ||
      params.a2.n > Shape::kRank || params.exchange == nullptr || params.b2.data == nullptr ||
      !LayOutCluster<Shape>(params, splits, &args)) {
    return cudaErrorInvalidValue;
  }
  args.x = params.x;
  args.bias = params.bias;
  args.b2_bias = params.b2_bias;
  args.norm = params.norm;
  args.exchange = static_cast<uint8_t*>(params.exchange);
  args.activation = params.activation;
  args.hidden = params.b1.n;
  cudaError_t error = EncodeClusterMaps<Shape>(params, args, &maps);
  const auto kernel = FeedForwardClusterKernel<T, Shape>;
  if (error == cudaSuccess && splits > 8) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (error != cudaSuccess) return error;
  const int clusters = CeilDiv(static_cast<int>(params.x.rows), Shape::kTokens);
  return LaunchKernel(kernel,
                      {.grid = dim3(clusters * splits),
                       .block = dim3(kClusterThreads),
                       .shared_bytes = static_cast<size_t>(args.shared_bytes),
                       .cluster = splits},
                      stream, maps, args);
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_CUH_
