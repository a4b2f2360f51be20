#ifndef FLASHSVD_KERNELS_CUDA_ADD_NORM_EPILOGUE_CUH_
#define FLASHSVD_KERNELS_CUDA_ADD_NORM_EPILOGUE_CUH_

#include <cstdint>

#include "kernels/cuda/ptx.cuh"

namespace flashsvd {

// What gemm_add_norm_sm90.cu and attention_norm_sm90.cu do to a product in the accumulators of a
// warpgroup, [64, kN] of a row tile whose d columns are spread over a cluster: add the residual,
// take the moments of whole rows, normalise. `Loop` is the GemmMainloop of the product, or has its
// kN, kRows and kCols; wgmma.cuh says which thread holds what.

// Columns of one partial statistic that crosses the cluster. Units of 64 are merged in pairs before
// anything else is done with them, by the sender or the receiver.
template <class Loop>
constexpr int kUnit = Loop::kN % 128 == 0 ? 128 : 64;

// The mean of some values and the sum of the squares about it.
struct Moments {
  float mean;
  float squares;
};

// The moments of two sets of 64 as one.
__device__ __forceinline__ Moments Merge64(Moments a, Moments b) {
  const float difference = a.mean - b.mean;
  return {0.5f * (a.mean + b.mean), a.squares + b.squares + 32 * difference * difference};
}

__device__ __forceinline__ float QuadSum(float v) {
  v += __shfl_xor_sync(0xffffffff, v, 1);
  return v + __shfl_xor_sync(0xffffffff, v, 2);
}

// A warp's 16 rows x kN columns of x in shared memory: [kN / 64][16][64], 128-byte swizzle.
template <class T, int kN>
class WarpRows {
 public:
  static constexpr int kBoxes = kN / 64;
  static constexpr int kBoxBytes = 16 * 128;

  explicit __device__ WarpRows(char* shared) : shared_(shared) {
    const int lane = threadIdx.x % 32;
    lane_row_ = shared + (lane / 8 % 2 * 8 + lane % 8) * 128;
    lane_chunk_ = (lane / 16 ^ lane % 8) * 16;
  }

  // Columns 16 p to 16 p + 15 as the accumulator holds them, eight columns after eight.
  __device__ void Read(int p, uint32_t (&r)[4]) const { LoadMatrix4(r, Place(p)); }
  __device__ void Write(int p, const uint32_t (&r)[4]) const {
    StoreMatrix4(Place(p), r[0], r[1], r[2], r[3]);
  }

  // By one lane.
  __device__ void Load(const CUtensorMap* x, int row, int col, uint64_t* barrier) const {
    BarrierExpect(barrier, kBoxes * kBoxBytes);
    for (int i = 0; i < kBoxes; ++i)
      CopyBox2(shared_ + i * kBoxBytes, x, col + 64 * i, row, barrier);
  }
  // To the rows at `x`, `stride` elements apart, the first `rows` of them; by the whole warp.
  __device__ __forceinline__ void Store(T* x, int64_t stride, int rows) const {
    const int lane = threadIdx.x % 32;
    x += lane / 8 * stride + lane % 8 * 8;
#pragma unroll
    for (int i = 0; i < 16; i += 4) {
      const int row = lane / 8 + i;
      const char* from = shared_ + row * 128 + (lane % 8 ^ row % 8) * 16;
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        if (row < rows) {
          *reinterpret_cast<uint4*>(x + 64 * box) =
              *reinterpret_cast<const uint4*>(from + box * kBoxBytes);
        }
      }
      x += 4 * stride;
    }
  }

 private:
  __device__ char* Place(int p) const {
    return lane_row_ + p / 4 * kBoxBytes + (lane_chunk_ ^ p % 4 * 32);
  }
  char* shared_;
  char* lane_row_;
  int lane_chunk_;
};

// acc += x; kBias: and bias, [kN] in shared memory.
template <class T, int kN, bool kBias>
__device__ __forceinline__ void AddResidual(float (&acc)[kN / 2], const WarpRows<T, kN>& x,
                                            const float* bias) {
  bias += 2 * (threadIdx.x % 4);
#pragma unroll
  for (int p = 0; p < kN / 16; ++p) {
    uint32_t r[4];
    x.Read(p, r);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float2 b = {};
      if constexpr (kBias) b = *reinterpret_cast<const float2*>(bias + 16 * p + 8 * j);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 v = Unpack2<T>(r[2 * j + i]);
        float* a = acc + 8 * p + 4 * j + 2 * i;
        a[0] += kBias ? v.x + b.x : v.x;
        a[1] += kBias ? v.y + b.y : v.y;
      }
    }
  }
}

// The moments of columns 64 u to 64 u + 63 of row i (0, 1) of this thread's two.
template <int kN>
__device__ __forceinline__ Moments UnitMoments(const float (&acc)[kN / 2], int u, int i) {
  float sum[2] = {};
#pragma unroll
  for (int j = 8 * u; j < 8 * u + 8; ++j) {
    sum[0] += acc[4 * j + 2 * i];
    sum[1] += acc[4 * j + 2 * i + 1];
  }
  const float mean = QuadSum(sum[0] + sum[1]) * (1.0f / 64);
  float squares[2] = {};
#pragma unroll
  for (int j = 8 * u; j < 8 * u + 8; ++j) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float difference = acc[4 * j + 2 * i + c] - mean;
      squares[c] = fmaf(difference, difference, squares[c]);
    }
  }
  return {mean, QuadSum(squares[0] + squares[1])};
}

// Sends the moments of this thread's two rows to every block of the cluster. stats: [units][kRows]
// of this tile, `unit` the first of this warpgroup, `row` this thread's first row in the tile.
template <class Loop>
__device__ __forceinline__ void SendMoments(const float (&acc)[Loop::kN / 2], Moments* stats,
                                            uint64_t* barrier, int unit, int row, int cluster) {
  constexpr int kUnits = Loop::kN / kUnit<Loop>;
  Moments m[kUnits][2];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (kUnit<Loop> == 128) {
        m[u][i] =
            Merge64(UnitMoments<Loop::kN>(acc, 2 * u, i), UnitMoments<Loop::kN>(acc, 2 * u + 1, i));
      } else {
        m[u][i] = UnitMoments<Loop::kN>(acc, u, i);
      }
    }
  }
  if (cluster == 1) {
    if (threadIdx.x % 4 == 0) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        stats[(unit + u) * Loop::kRows + row] = m[u][0];
        stats[(unit + u) * Loop::kRows + row + 8] = m[u][1];
      }
    }
    return;
  }
#pragma unroll 1
  for (int block = threadIdx.x % 4; block < cluster; block += 4) {
    const uint32_t there = ClusterAddress(stats + unit * Loop::kRows + row, block);
    const uint32_t barrier_there = ClusterAddress(barrier, block);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        StoreAsyncCluster2(there + (u * Loop::kRows + 8 * i) * 8, {m[u][i].mean, m[u][i].squares},
                           barrier_there);
      }
    }
  }
}

// The moments of all d columns of rows `row` and `row` + 8 of the tile, by the four lanes of a quad
// together.
template <class Loop>
__device__ __forceinline__ void PairMoments(Moments (&rows)[2], const Moments* stats, int row,
                                            int d, float inverse_d) {
  constexpr int kPerLane = 2;  // units of 128: d <= 1024
  const int units = d / 128;
  Moments m[kPerLane][2];
  float weight[kPerLane];
  float sum[2] = {};
#pragma unroll
  for (int s = 0; s < kPerLane; ++s) {
    const int unit = static_cast<int>(threadIdx.x) % 4 + 4 * s;
    weight[s] = unit < units ? 1.0f : 0.0f;
    const int there = min(unit, units - 1);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Moments* from = stats + row + 8 * i;
      if constexpr (kUnit<Loop> == 128) {
        m[s][i] = from[there * Loop::kRows];
      } else {
        m[s][i] = Merge64(from[2 * there * Loop::kRows], from[(2 * there + 1) * Loop::kRows]);
      }
      sum[i] += weight[s] * m[s][i].mean;
    }
  }
  float squares[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    rows[i].mean = QuadSum(sum[i]) * (128 * inverse_d);
#pragma unroll
    for (int s = 0; s < kPerLane; ++s) {
      const float difference = m[s][i].mean - rows[i].mean;
      squares[i] += weight[s] * (m[s][i].squares + 128 * difference * difference);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) rows[i].squares = QuadSum(squares[i]);
}

// The rows' moments as what Normalize takes.
__device__ __forceinline__ void ScaleAndShift(const Moments (&rows)[2], float inverse_d,
                                              float epsilon, float (&scale)[2], float (&shift)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    scale[i] = rsqrtf(rows[i].squares * inverse_d + epsilon);
    shift[i] = -rows[i].mean * scale[i];
  }
}

// Writes (acc * scale + shift) * gamma + beta to `x`, columns 16 p to 16 p + 15; scale and shift of
// this thread's two rows.
template <class T, int kN>
__device__ __forceinline__ void NormalizeUnit(int p, const float (&acc)[kN / 2],
                                              const float (&scale)[2], const float (&shift)[2],
                                              const float* gamma, const float* beta,
                                              const WarpRows<T, kN>& x) {
  gamma += 2 * (threadIdx.x % 4);
  beta += 2 * (threadIdx.x % 4);
  uint32_t r[4];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const auto g = *reinterpret_cast<const float2*>(gamma + 16 * p + 8 * j);
    const auto b = *reinterpret_cast<const float2*>(beta + 16 * p + 8 * j);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* a = acc + 8 * p + 4 * j + 2 * i;
      r[2 * j + i] = Pack2<T>(fmaf(fmaf(a[0], scale[i], shift[i]), g.x, b.x),
                              fmaf(fmaf(a[1], scale[i], shift[i]), g.y, b.y));
    }
  }
  x.Write(p, r);
}

// Asks for the bias, gamma and beta of a block's columns, [3][kCols] in shared memory; by one
// thread. `args`: has the three, bias null for zero.
template <class Loop, class Args>
__device__ __forceinline__ void LoadParams(const Args& args, float* params, int first_col,
                                           uint64_t* barrier) {
  constexpr int kBytes = Loop::kCols * 4;
  BarrierExpect(barrier, (args.bias == nullptr ? 2 : 3) * kBytes);
  if (args.bias != nullptr) CopyBytes(params, args.bias + first_col, kBytes, barrier);
  CopyBytes(params + Loop::kCols, args.gamma + first_col, kBytes, barrier);
  CopyBytes(params + 2 * Loop::kCols, args.beta + first_col, kBytes, barrier);
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ADD_NORM_EPILOGUE_CUH_
