#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_TAIL_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_TAIL_CUH_

#include <cstdint>

#include "kernels/cuda/feed_forward_cluster_consumer.cuh"
#include "kernels/cuda/feed_forward_cluster_layout.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"

// From a block's strips of S, summed up, to the result: S itself, or x = LayerNorm(x + S B2' + b).
// For the latter each block computes some columns of S B2' for all rows, rounds them to T, and
// sends each row to the block that normalises it. (Moments of rows would be less to send, but with
// the tokens as columns they lie across lanes and warps.)

namespace flashsvd {

template <class T, class Shape>
struct ClusterTail {
  ClusterConsumer<T, Shape>& consumer;
  const ClusterStorage& storage;
  const ClusterArgs& args;

  __device__ __forceinline__ explicit ClusterTail(ClusterConsumer<T, Shape>& consumer)
      : consumer(consumer), storage(consumer.storage), args(consumer.args) {}

  // y = B2 S', the warpgroup's tiles of it.
  template <int kCount>
  __device__ __forceinline__ void Multiply(typename ClusterConsumer<T, Shape>::Tile (&y)[kCount]) {
    using Consumer = ClusterConsumer<T, Shape>;
    constexpr int kSteps = Shape::template kTailSteps<kCount>;
    auto& c = consumer;
    const int step_bytes = args.d_cols * 32;
    uint64_t b = Consumer::Tokens(storage.P());
    for (int k = 0; k < Shape::kRank; k += kSteps * 16) {
      c.at.WaitFull();
      const uint64_t a = Advance(Consumer::Weights(c.Slot(), args.d_cols), c.group * 1024);
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
#pragma unroll
        for (int t = 0; t < kCount; ++t) {
          Consumer::Product::Shared(y[t], Advance(a, i * step_bytes + t * 2048),
                                    Advance(b, i * Consumer::kTokenStep));
        }
      }
      WgmmaCommit();
      b = Advance(b, kSteps * Consumer::kTokenStep);
      c.at.Next();
      WgmmaWait<1>();
      if (k > 0) c.done.Release();
    }
    WgmmaWait<0>();
    c.done.Release();
#pragma unroll
    for (int t = 0; t < kCount; ++t) PinRegisters(y[t]);
  }

  // The block's columns of S B2', kCount tiles of 64 of them to a warpgroup, to all rows' blocks.
  template <int kCount>
  __device__ __forceinline__ void ComputeColumns() {
    using Consumer = ClusterConsumer<T, Shape>;
    typename Consumer::Tile y[kCount] = {};
    auto& c = consumer;
    const int lane = c.lane;
    float2 bias[kCount];
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      const int col = c.block * args.d_cols + ((2 * t + c.group) * 4 + c.warp) * 16 + lane / 4;
      bias[t] = {0, 0};
      if (args.b2_bias != nullptr && col + 8 < args.x.cols) {
        bias[t] = {__ldg(args.b2_bias + col), __ldg(args.b2_bias + col + 8)};
      }
    }
    BarrierWait(&storage.Barriers().s_full, 0);
    FenceAsyncProxy();  // S came by ordinary stores
    if (c.group == 0 || args.d_cols > 64) {
      Multiply(y);
    } else {
      for (int k = 0; k < Shape::kRank; k += Shape::template kTailSteps<kCount> * 16) {
        c.at.WaitFull();
        c.at.Release();
      }
    }
    Consumer::SyncBoth();  // the slots are no longer read, and become the place of the rows
    const int pitch = storage.Pitch();
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      const int col = ((2 * t + c.group) * 4 + c.warp) * 16;
      if (col >= args.d_cols) break;
      uint8_t* place = storage.Slots() + lane % 8 * pitch + (col + lane / 8 % 2 * 8) * 2;
#pragma unroll
      for (int q = 0; q < Shape::kQuads; ++q) {
        const float4 v = Consumer::Quad(y[t], q);
        StoreMatrix2Transposed(place + q * 8 * pitch, Pack2<T>(v.x + bias[t].x, v.y + bias[t].x),
                               Pack2<T>(v.z + bias[t].y, v.w + bias[t].y));
      }
    }
    FenceAsyncProxy();
    Consumer::SyncBoth();
    SendRows();
  }

  __device__ __forceinline__ void SendRows() const {
    if (!ElectOne()) return;
    const int row_bytes = args.tokens * storage.Pitch();
    for (int to = consumer.group * 4 + consumer.warp; to < args.blocks; to += 8) {
      const int bytes = storage.TokensOf(to, Shape::kTokens) * storage.Pitch();
      if (bytes == 0 || to == consumer.block) continue;
      CopyToCluster(ClusterAddress(storage.Exchange() + consumer.block * row_bytes, to),
                    storage.Slots() + to * row_bytes, bytes,
                    ClusterAddress(&storage.Barriers().y_full, to));
    }
  }
};

// What a thread has of its first row of x.
using Residual = uint4[4];

// x = LayerNorm(x + y) of the block's rows: kThreads threads to a row, with kUnits units of eight
// columns each, all 256 / kThreads rows at a time.
template <class T, class Shape, int kThreads, int kUnits>
struct ClusterNorm {
  const ClusterStorage& storage;
  const ClusterArgs& args;
  const int block;
  const int rows;
  T* x;               // the block's first row
  int place[kUnits];  // of a unit, in the block's first row of y

  __device__ __forceinline__ ClusterNorm(const ClusterStorage& storage, int block, int first_row)
      : storage(storage),
        args(storage.args),
        block(block),
        rows(min(storage.TokensOf(block, Shape::kTokens),
                 static_cast<int>(args.x.rows) - first_row - block * args.tokens)),
        x(static_cast<T*>(args.x.data) + (first_row + block * args.tokens) * args.x.stride) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int from = Column(u) / args.d_cols;
      place[u] = (from == block ? static_cast<int>(storage.Slots() - storage.Exchange()) +
                                      block * args.tokens * storage.Pitch()
                                : from * args.tokens * storage.Pitch()) +
                 (Column(u) - from * args.d_cols) * 2;
    }
  }

  __device__ __forceinline__ static int Column(int u) {
    return (u * kThreads + threadIdx.x % kThreads) * 8;
  }
  __device__ __forceinline__ bool Has(int u) const { return Column(u) < args.x.cols; }

  __device__ __forceinline__ void LoadX(Residual& v, int row) const {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      v[u] = {};
      if (row < rows && Has(u)) {
        v[u] = *reinterpret_cast<const uint4*>(x + row * args.x.stride + Column(u));
      }
    }
  }

  __device__ __forceinline__ void LoadFirst(Residual& v) const { LoadX(v, threadIdx.x / kThreads); }

  // The sum over the threads of a row; `turn`: every call has another parity than the one before.
  __device__ __forceinline__ float RowSum(float v, int turn) const {
    v = LaneSum<(kThreads < 32 ? kThreads : 32)>(v);
    if constexpr (kThreads > 32) {
      auto* sums = reinterpret_cast<float*>(storage.Scratch()) + turn % 2 * 8;
      if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
      NamedBarrierSync(kBothWarpgroups, 256);
      const float* own = sums + threadIdx.x / kThreads * (kThreads / 32);
      v = own[0];
#pragma unroll
      for (int i = 1; i < kThreads / 32; ++i) v += own[i];
    }
    return v;
  }

  __device__ __forceinline__ static void Read8(float (&v)[8], const float* from) {
    const float4 low = *reinterpret_cast<const float4*>(from);
    const float4 high = *reinterpret_cast<const float4*>(from + 4);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  }
  __device__ __forceinline__ static float Sum8(const float (&v)[8]) {
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
  }

  __device__ __forceinline__ void ReadWeights(float (&gamma)[kUnits][8],
                                              float (&beta)[kUnits][8]) const {
    BarrierWait(&storage.Barriers().norm_full, 0);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (!Has(u)) continue;
      Read8(gamma[u], storage.Norm(0) + Column(u));
      Read8(beta[u], storage.Norm(1) + Column(u));
    }
  }

  // `residual`: as LoadFirst left it.
  __device__ __forceinline__ void Run(Residual& residual) const {
    float gamma[kUnits][8], beta[kUnits][8];
    ReadWeights(gamma, beta);
    BarrierWait(&storage.Barriers().y_full, 0);
    ClusterArriveRelaxed();  // nothing is sent to this block any more
    const float inverse_d = 1.0f / static_cast<float>(args.x.cols);
    for (int first = 0; first < args.tokens; first += 256 / kThreads) {
      const int row = first + static_cast<int>(threadIdx.x) / kThreads;
      if (kThreads <= 32 && row >= rows) break;
      float v[kUnits][8] = {};
      float sum = 0;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        if (!Has(u)) continue;
        const uint4 y =
            *reinterpret_cast<const uint4*>(storage.Exchange() + place[u] + row * storage.Pitch());
        const uint32_t ys[4] = {y.x, y.y, y.z, y.w};
        const uint32_t xs[4] = {residual[u].x, residual[u].y, residual[u].z, residual[u].w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 a = Unpack2<T>(ys[i]);
          const float2 b = Unpack2<T>(xs[i]);
          v[u][2 * i] = a.x + b.x;
          v[u][2 * i + 1] = a.y + b.y;
        }
        sum += Sum8(v[u]);
      }
      LoadX(residual, row + 256 / kThreads);
      const float mean = RowSum(sum, 0) * inverse_d;
      float squares = 0;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        if (!Has(u)) continue;
        float square[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          v[u][j] -= mean;
          square[j] = v[u][j] * v[u][j];
        }
        squares += Sum8(square);
      }
      const float scale = rsqrtf(RowSum(squares, 1) * inverse_d + args.norm.epsilon);
      if (row >= rows) continue;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        if (!Has(u)) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) v[u][j] = fmaf(v[u][j] * scale, gamma[u][j], beta[u][j]);
        *reinterpret_cast<uint4*>(x + row * args.x.stride + Column(u)) =
            uint4{Pack2<T>(v[u][0], v[u][1]), Pack2<T>(v[u][2], v[u][3]),
                  Pack2<T>(v[u][4], v[u][5]), Pack2<T>(v[u][6], v[u][7])};
      }
    }
  }
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_TAIL_CUH_
