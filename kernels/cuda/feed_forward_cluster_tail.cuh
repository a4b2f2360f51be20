#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_TAIL_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_TAIL_CUH_

#include <cstdint>

#include "kernels/cuda/feed_forward_cluster_consumer.cuh"
#include "kernels/cuda/feed_forward_cluster_layout.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"

// From S to x = LayerNorm(x + S B2' + b). Each block has some columns of the result, for all rows:
// products are turned into rows through shared memory, a few threads to a row; blocks exchange the
// moments of their parts of the rows, mean and squares about it, which merge without cancellation
// (Chan).

namespace flashsvd {

// y = S B2' + b, rounded to T, to shared memory. kCount: tiles of 64 columns that a warpgroup has.
template <class T, class Shape, int kCount>
struct ClusterColumns {
  using Consumer = ClusterConsumer<T, Shape>;
  static constexpr int kSteps = Shape::template kTailSteps<kCount>;
  static constexpr int kChunks = Shape::kRank / (kSteps * 16);

  Consumer& c;
  const ClusterStorage<Shape>& storage;
  const ClusterArgs& args;
  const int columns;    // of the block
  float2 bias[kCount];  // of columns lane / 4 and lane / 4 + 8

  __device__ __forceinline__ explicit ClusterColumns(Consumer& consumer)
      : c(consumer),
        storage(consumer.storage),
        args(consumer.args),
        columns(storage.ColumnsOf(consumer.block)) {
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      bias[t] = {0, 0};
      if (!Has(t) || args.b2_bias == nullptr) continue;
      const float* from = args.b2_bias + c.block * args.d_cols + Strip(t) * 16 + c.lane / 4;
      bias[t] = {from[0], from[8]};
    }
  }

  // The warp's strip of 16 columns in tile t, and whether there is one.
  __device__ __forceinline__ int Strip(int t) const { return (kGroups * t + c.group) * 4 + c.warp; }
  __device__ __forceinline__ bool Has(int t) const { return Strip(t) * 16 < columns; }

  // Issues y += B2 S' for chunk number `chunk` of S, which is next in the ring. The ring ends with
  // B2, so that nothing needs to be released any more.
  __device__ __forceinline__ void MultiplyChunk(typename Consumer::Tile (&y)[kCount], int chunk) {
    c.at.WaitFull();
    const uint64_t a = Advance(Consumer::Weights(c.Slot(), args.d_cols), c.group * 1024);
    const uint64_t b =
        Advance(Consumer::Tokens(storage.P()), chunk * (kSteps * Consumer::kTokenStep));
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int t = 0; t < kCount; ++t) {
        Consumer::Product::Shared(y[t], Advance(a, i * args.d_cols * 32 + t * kGroups * 1024),
                                  Advance(b, i * Consumer::kTokenStep));
      }
    }
    WgmmaCommit();
    c.at.Next();
  }

  // REQUIRES: columns > 0.
  __device__ __forceinline__ void Compute() {
    typename Consumer::Tile y[kCount] = {};
#pragma unroll
    for (int t = 0; t < kCount; ++t) PinRegisters(y[t]);
    if (c.group * 64 < columns) {
#pragma unroll 1
      for (int chunk = 0; chunk < kChunks; ++chunk) MultiplyChunk(y, chunk);
    }
    WgmmaWait<0>();
#pragma unroll
    for (int t = 0; t < kCount; ++t) PinRegisters(y[t]);
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      if (!Has(t)) break;
      uint8_t* place =
          storage.Rows() + (Strip(t) * 2 + c.lane / 8 % 2) * Shape::kUnitPitch + c.lane % 8 * 16;
#pragma unroll
      for (int q = 0; q < Shape::kQuads; ++q) {
        const float4 v = Consumer::Quad(y[t], q);
        StoreMatrix2Transposed(place + q * 128, Pack2<T>(v.x + bias[t].x, v.y + bias[t].x),
                               Pack2<T>(v.z + bias[t].y, v.w + bias[t].y));
      }
    }
    Consumer::SyncAll();
  }
};

// The block's columns of each row, kLanes threads of a warp to a row with kUnits units of eight
// columns each.
template <class T, class Shape, int kCount>
struct ClusterRows {
  static constexpr int kLanes = Shape::kRowLanes;
  static constexpr int kWarpRows = 32 / kLanes;
  static constexpr int kUnits = (kCount * 16 + kLanes - 1) / kLanes;
  static constexpr int kMoments = (kMaxClusterBlocks + kLanes - 1) / kLanes;

  const ClusterStorage<Shape>& storage;
  const ClusterArgs& args;
  const int columns;  // of the block
  const int blocks;   // that have columns
  const int lane;     // of the row's; in a warp's last lanes none
  const int row;      // of the cluster
  const bool stored;  // there is such a row
  const int column;   // the block's first
  T* x;               // there
  float inverse;      // 1 / columns
  float inverse_d;
  float2* moments;  // of the row, the first block's
  uint4 residual[kUnits];
  float v[kUnits][8];

  // Reads x.
  __device__ __forceinline__ ClusterRows(const ClusterStorage<Shape>& storage, int block,
                                         int first_row)
      : storage(storage),
        args(storage.args),
        columns(storage.ColumnsOf(block)),
        blocks(storage.BlocksOfResult()),
        lane(threadIdx.x % 32 / kLanes < kWarpRows ? threadIdx.x % 32 % kLanes : kNone),
        row(threadIdx.x / 32 * kWarpRows + threadIdx.x % 32 / kLanes),
        stored(lane != kNone && row < Shape::kTokens && first_row + row < args.x.rows),
        column(block * args.d_cols),
        x(static_cast<T*>(args.x.data) + (first_row + row) * args.x.stride + column),
        inverse(1.0f / static_cast<float>(columns)),
        inverse_d(1.0f / static_cast<float>(args.x.cols)),
        moments(storage.Moments() + min(row, Shape::kTokens - 1)) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      residual[u] = {};
      if (stored && Has(u)) residual[u] = *reinterpret_cast<const uint4*>(x + Column(u));
    }
  }

  static constexpr int kNone = 1 << 16;
  __device__ __forceinline__ int Column(int u) const { return (u * kLanes + lane) * 8; }
  __device__ __forceinline__ bool Has(int u) const { return Column(u) < columns; }

  // The sum over the threads of a row.
  __device__ __forceinline__ static float RowSum(float v) {
    if constexpr (kLanes == 3) {
      const int first = threadIdx.x % 32 / 3 * 3;
      const float a = __shfl_sync(0xffffffff, v, first);
      const float b = __shfl_sync(0xffffffff, v, min(first + 1, 31));
      return a + b + __shfl_sync(0xffffffff, v, min(first + 2, 31));
    } else {
      return LaneSum<kLanes>(v);
    }
  }

  // x + y, and the moments of the block's columns of it to the other blocks.
  __device__ __forceinline__ void Begin(int block) {
    const uint8_t* y = storage.Rows() + row * 16;
    float sum = 0;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (!Has(u)) continue;
      const uint4 a = *reinterpret_cast<const uint4*>(y + (u * kLanes + lane) * Shape::kUnitPitch);
      const uint32_t ys[4] = {a.x, a.y, a.z, a.w};
      const uint32_t xs[4] = {residual[u].x, residual[u].y, residual[u].z, residual[u].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 p = Unpack2<T>(ys[i]);
        const float2 q = Unpack2<T>(xs[i]);
        v[u][2 * i] = p.x + q.x;
        v[u][2 * i + 1] = p.y + q.y;
      }
      sum +=
          ((v[u][0] + v[u][1]) + (v[u][2] + v[u][3])) + ((v[u][4] + v[u][5]) + (v[u][6] + v[u][7]));
    }
    const float mean = RowSum(sum) * inverse;
    float squares = 0;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (!Has(u)) continue;
      float part[2] = {};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float off = v[u][i] - mean;
        part[i % 2] = fmaf(off, off, part[i % 2]);
      }
      squares += part[0] + part[1];
    }
    squares = RowSum(squares);
    if (row >= Shape::kTokens) return;
    const float2* place = moments + block * Shape::kTokens;
#pragma unroll
    for (int i = 0; i < kMoments; ++i) {
      const int to = i * kLanes + lane;
      if (to < blocks) {
        StoreAsyncCluster2(ClusterAddress(place, to), {mean, squares},
                           ClusterAddress(&storage.Barriers().moments_full, to));
      }
    }
  }

  __device__ __forceinline__ static void Read8(float (&v)[8], const float* from) {
    const float4 low = *reinterpret_cast<const float4*>(from);
    const float4 high = *reinterpret_cast<const float4*>(from + 4);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  }

  // Normalises, once the moments of the other columns are here.
  __device__ __forceinline__ void End() {
    float gamma[kUnits][8], beta[kUnits][8];
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (!Has(u)) continue;
      Read8(gamma[u], args.norm.gamma + column + Column(u));
      Read8(beta[u], args.norm.beta + column + Column(u));
    }
    float counts[kMoments];
#pragma unroll
    for (int i = 0; i < kMoments; ++i) {
      counts[i] = i * kLanes + lane < blocks
                      ? static_cast<float>(storage.ColumnsOf(i * kLanes + lane))
                      : 0.0f;
    }
    BarrierWaitCluster(&storage.Barriers().moments_full, 0);
    float2 m[kMoments];
    float mean = 0;
#pragma unroll
    for (int i = 0; i < kMoments; ++i) {
      const int b = i * kLanes + lane;
      m[i] = b < blocks ? moments[b * Shape::kTokens] : float2{0, 0};
      mean = fmaf(m[i].x, counts[i], mean);
    }
    mean = RowSum(mean) * inverse_d;
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kMoments; ++i) {
      const float off = m[i].x - mean;
      squares += fmaf(counts[i] * off, off, m[i].y);
    }
    const float scale = rsqrtf(fmaf(RowSum(squares), inverse_d, args.norm.epsilon));
    if (!stored) return;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (!Has(u)) continue;
      uint32_t packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* w = &v[u][2 * i];
        packed[i] = Pack2<T>(fmaf((w[0] - mean) * scale, gamma[u][2 * i], beta[u][2 * i]),
                             fmaf((w[1] - mean) * scale, gamma[u][2 * i + 1], beta[u][2 * i + 1]));
      }
      *reinterpret_cast<uint4*>(x + Column(u)) = uint4{packed[0], packed[1], packed[2], packed[3]};
    }
  }
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_TAIL_CUH_
