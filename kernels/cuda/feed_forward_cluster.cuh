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
//   2. Each walks its own share of F and has part of every element of S, in float32.
//   3. To each block belong some columns of S. It gets the others' sums for these, adds them up in
//      the order of the blocks, and writes them out, or, when b2 follows, sends them to all.
//   4. Each computes some columns of S B2'. To each belong some rows; it gets their other columns
//      from the others, and normalises.
// Everything sent ends on a barrier of the receiver; no block waits for a fence over its own memory
// operations, and none for another to make room (ClusterStorage says why there is).
//
// Warps 0 to 7 compute. Warp 8 brings weights as early as there is room for them, most of them
// while the kernel before is still running; warp 9 brings x, warp 10 gamma and beta.

namespace flashsvd {

// Ranks of a chunk of B2.
template <class Shape>
__host__ __device__ constexpr int TailDepth(int d_tiles) {
  return 16 * (d_tiles == 1   ? Shape::template kTailSteps<1>
               : d_tiles == 2 ? Shape::template kTailSteps<2>
                              : Shape::template kTailSteps<4>);
}

template <class Shape>
struct ClusterProducer {
  const ClusterStorage& storage;
  const ClusterMaps& maps;
  const ClusterArgs& args;
  const int block;
  ClusterRing at;

  __device__ __forceinline__ ClusterProducer(const ClusterStorage& storage, const ClusterMaps& maps,
                                             int block)
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
    if (storage.StripsOfP(block, Shape::kStrips) > 0) {
      const int boxes = args.x_boxes * args.p_chunks;
      for (int stage = 0; stage < args.x_stages_all; stage += args.p_chunks) {
        Bring(&maps.a1, block * args.p_cols / 8, stage * args.x_boxes * 8,
              args.p_cols * boxes * 128);
      }
    }
    const UnitRange units(args, block);
    const int tiles = units.Tiles();
    for (int tile = 0; tile <= tiles; ++tile) {
      if (tile < tiles) {
        for (int chunk = 0; chunk < Shape::kUpChunks; ++chunk) {
          Bring(&maps.b1, (units.first + 2 * tile) * 8, chunk * (Shape::kUpDepth / 8),
                Shape::kUpBytes, units.Halves(tile));
        }
      }
      if (tile == 0) continue;
      const int unit = (units.first + 2 * tile - 2) * 64;
      for (int k = 0; k < units.Halves(tile - 1) * 64; k += Shape::kDownDepth) {
        Bring(&maps.a2, 0, (unit + k) / 8, Shape::kRank * Shape::kDownDepth * 2);
      }
    }
    if (block * args.d_cols >= args.x.cols || args.d_cols == 0) return;
    const int depth = TailDepth<Shape>(args.d_tiles);
    for (int k = 0; k < Shape::kRank; k += depth) {
      Bring(&maps.b2, block * args.d_cols / 8, k / 8, args.d_cols * depth * 2);
    }
  }

  __device__ __forceinline__ void BringX(int first_row) const {
    if (storage.StripsOfP(block, Shape::kStrips) == 0) return;
    ClusterRing x = XRingOf(storage);
    for (int stage = 0; stage < args.x_stages_all; ++stage) {
      x.WaitEmpty();
      BarrierExpect(&x.full[x.slot], args.x_boxes * Shape::kXBytes);
      for (int i = 0; i < args.x_boxes; ++i) {
        CopyBox2(storage.Exchange() + (x.slot * args.x_boxes + i) * Shape::kXBytes, &maps.x,
                 (stage * args.x_boxes + i) * 64, first_row, &x.full[x.slot]);
      }
      x.Next();
    }
  }

  // Weights of the norm; by a warp.
  __device__ __forceinline__ void BringNorm() const {
    if (args.d_cols == 0) return;
    for (int c = threadIdx.x % 32 * 4; c < args.x.cols; c += 128) {
      *reinterpret_cast<float4*>(storage.Norm(0) + c) =
          __ldg(reinterpret_cast<const float4*>(args.norm.gamma + c));
      *reinterpret_cast<float4*>(storage.Norm(1) + c) =
          __ldg(reinterpret_cast<const float4*>(args.norm.beta + c));
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) BarrierArrive(&storage.Barriers().norm_full);
  }
};

// Initialises the barriers of a block and says what is to arrive at them.
template <class Shape>
__device__ __forceinline__ void InitClusterBarriers(const ClusterStorage& storage, int block) {
  const ClusterArgs& args = storage.args;
  ClusterBarriers& b = storage.Barriers();
  for (int i = 0; i < args.slots; ++i) {
    BarrierInit(&b.weights_full[i], 1);
    BarrierInit(&b.weights_empty[i], 8);
  }
  for (int i = 0; i < args.x_stages; ++i) {
    BarrierInit(&b.x_full[i], 1);
    BarrierInit(&b.x_empty[i], 8);
  }
  const int own_p = storage.StripsOfP(block, Shape::kStrips);
  const int own_s = storage.StripsOfS(block, Shape::kStrips);
  BarrierInit(&b.p_full, 1 + (own_p > 0));
  BarrierInit(&b.sum_full, 1);
  BarrierInit(&b.s_full, 1);
  BarrierInit(&b.norm_full, 1);
  BarrierInit(&b.y_full, 1);
  BarrierInitFence();
  BarrierExpect(&b.p_full, (Shape::kStrips - own_p) * Shape::kStripBytes);
  BarrierExpect(&b.sum_full, args.blocks * own_s * Shape::kStripSumBytes);
  if (args.d_cols == 0) return;
  const int senders = (static_cast<int>(args.x.cols) + args.d_cols - 1) / args.d_cols;
  BarrierExpect(&b.s_full, Shape::kRankBytes);
  BarrierExpect(&b.y_full, (senders - (block < senders)) * storage.TokensOf(block, Shape::kTokens) *
                               storage.Pitch());
}

// visit(norm) with the ClusterNorm that has a block's rows done in the fewest turns.
template <class T, class Shape, class Visit>
__device__ __forceinline__ void VisitNorm(const ClusterStorage& storage, int block, int first_row,
                                          const Visit& visit) {
  if (storage.args.tokens <= 2) {
    visit(ClusterNorm<T, Shape, 128, 1>(storage, block, first_row));
  } else if (storage.args.tokens <= 4) {
    visit(ClusterNorm<T, Shape, 64, 2>(storage, block, first_row));
  } else {
    visit(ClusterNorm<T, Shape, 32, 4>(storage, block, first_row));
  }
}

// From S on.
template <class T, class Shape>
__device__ __forceinline__ void FinishRows(ClusterConsumer<T, Shape>& consumer, int first_row) {
  const ClusterStorage& storage = consumer.storage;
  const ClusterArgs& args = storage.args;
  const int block = consumer.block;
  Residual residual;
  VisitNorm<T, Shape>(storage, block, first_row,
                      [&](const auto& norm) { norm.LoadFirst(residual); });
  ClusterTail<T, Shape> tail(consumer);
  if (block * args.d_cols >= args.x.cols) {
    BarrierWait(&storage.Barriers().s_full, 0);
  } else if (args.d_tiles == 1) {
    tail.template ComputeColumns<1>();
  } else if (args.d_tiles == 2) {
    tail.template ComputeColumns<2>();
  } else {
    tail.template ComputeColumns<4>();
  }
  VisitNorm<T, Shape>(storage, block, first_row, [&](const auto& norm) { norm.Run(residual); });
}

template <class T, class Shape>
__device__ __forceinline__ void ConsumeRows(const ClusterStorage& storage, int block, int warp,
                                            int first_row) {
  const ClusterArgs& args = storage.args;
  ClusterConsumer<T, Shape> consumer(storage, block, warp);
  WaitForPredecessor();
  ClusterWait();  // for the others' barriers
  if (storage.StripsOfP(block, Shape::kStrips) > 0) consumer.ComputeP();
  typename ClusterConsumer<T, Shape>::Tile s[Shape::kTiles] = {};
  consumer.Walk(s);
  if (args.d_cols == 0) {
    consumer.AddSums([&](int strip, int row, const float4& unit) {
      consumer.StoreUnit(strip, first_row + row, unit);
    });
    ClusterArriveRelaxed();
    return;
  }
  consumer.AddSums(
      [&](int strip, int row, const float4& unit) { consumer.SendUnit(strip, row, unit); });
  FinishRows<T, Shape>(consumer, first_row);
}

template <class T, class Shape>
__global__ void __launch_bounds__(kClusterThreads, 1)
    FeedForwardClusterKernel(const __grid_constant__ ClusterMaps maps,
                             const __grid_constant__ ClusterArgs args) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const ClusterStorage storage{shared, args};
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const int block = static_cast<int>(ClusterRank());
  const int first_row = static_cast<int>(blockIdx.x) / args.blocks * Shape::kTokens;
  if (warp == 8 && ElectOne()) InitClusterBarriers<Shape>(storage, block);
  __syncthreads();
  ClusterArriveRelaxed();  // consumers wait for the others' barriers before they send
  if (warp >= 8) {
    ShrinkRegisters<56>();
    ClusterProducer<Shape> producer(storage, maps, block);
    if (warp == 8 && ElectOne()) {
      producer.BringAll();
    } else if (warp == 9 && ElectOne()) {
      WaitForPredecessor();
      AllowSuccessor();
      producer.BringX(first_row);
    } else if (warp == 10) {
      producer.BringNorm();
    }
    __syncwarp();
    ClusterWait();
    ClusterArriveRelaxed();
  } else {
    GrowRegisters<224>();
    ConsumeRows<T, Shape>(storage, block, warp, first_row);
  }
  ClusterWait();  // nothing that others read or write here is under way any more
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
  args->tokens = CeilDiv(Shape::kTokens, blocks);
  int rows_bytes = 0;
  int staged_bytes = 0;
  args->d_cols = args->d_tiles = 0;
  if (params.b2.data != nullptr) {
    const int d = params.b2.n;
    args->d_cols = round_up(CeilDiv(d, blocks), 16);
    args->d_tiles = args->d_cols <= 128 ? 1 : args->d_cols <= 256 ? 2 : 4;
    const int pitch = args->d_cols * 2 + 16;
    rows_bytes = CeilDiv(d, args->d_cols) * args->tokens * pitch;
    staged_bytes = Shape::kTokens * pitch;
    if (d != params.x.cols || d % 16 != 0 || d > 1024) return false;
  }
  const int exchange =
      round_up(std::max({rows_bytes, blocks * args->strips * Shape::kStripSumBytes,
                         std::min(args->x_stages_all * args->x_boxes * Shape::kXBytes, 64 * 1024)}),
               1024);
  args->x_stages =
      std::min({args->x_stages_all, kMaxXStages, exchange / (args->x_boxes * Shape::kXBytes)});
  args->p_offset = kClusterDataOffset + exchange;
  args->hidden_offset = args->p_offset + Shape::kRankBytes;
  args->norm_offset = args->hidden_offset + Shape::kHiddenBytes;
  args->slots_offset =
      round_up(args->norm_offset + (args->d_cols > 0 ? 2 * params.b2.n * 4 : 0), 128);
  // The last slot may be read a little past its end.
  args->slots = std::min((kFeedForwardShared - 1024 - args->slots_offset) / Shape::kSlotBytes,
                         kMaxClusterSlots);
  args->shared_bytes = args->slots_offset + args->slots * Shape::kSlotBytes + 1024;
  return args->p_cols <= 128 && args->p_chunks > 0 && (args->p_cols > 64 || args->x_boxes > 1) &&
         (args->x_stages > 1 || args->x_stages_all == 1) &&
         args->slots > std::max(Shape::kPending + 1, Shape::kDownChunks) &&
         staged_bytes <= args->slots * Shape::kSlotBytes;
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
  if (error == cudaSuccess && args.d_cols > 0) {
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
      params.a2.n > Shape::kRank || !LayOutCluster<Shape>(params, splits, &args)) {
    return cudaErrorInvalidValue;
  }
  args.x = params.x;
  args.s = params.s;
  args.bias = params.bias;
  args.b2_bias = params.b2_bias;
  args.norm = params.norm;
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
