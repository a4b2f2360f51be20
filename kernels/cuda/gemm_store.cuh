#ifndef FLASHSVD_KERNELS_CUDA_GEMM_STORE_CUH_
#define FLASHSVD_KERNELS_CUDA_GEMM_STORE_CUH_

#include <cstdint>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/ptx.cuh"

namespace flashsvd {

// How a warp of a GEMM writes its 16 rows x kN columns of y from its accumulators: 64 columns at a
// time through shared memory, so that whole 128-byte pieces of rows go out.

constexpr int kStagedCols = 64;
constexpr int kStagedBytes = 16 * kStagedCols * 2;  // [16][64], 128-byte swizzle

// Writes 16 rows x `cols` columns (0 to 64) of `staged` to y, clipped to `rows` rows. aligned: y is
// 16-byte aligned, as its rows are to each other.
template <class T>
__device__ __forceinline__ void WriteStaged(const char* staged, T* y, int64_t stride, int rows,
                                            int cols, bool aligned) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int unit = lane % 8;                 // of 16 bytes
  const int units = aligned ? cols / 8 : 0;  // whole ones
  T* to = y + lane / 8 * stride + 8 * unit;
#pragma unroll
  for (int i = 0; i < 16; i += 4) {
    const int row = lane / 8 + i;
    if (row < rows && unit < units) {
      *reinterpret_cast<uint4*>(to) =
          *reinterpret_cast<const uint4*>(staged + row * 128 + (unit ^ row % 8) * 16);
    }
    to += 4 * stride;
  }
  if (8 * units == cols) return;
#pragma unroll 1
  for (int row = 0; row < min(rows, 16); ++row) {
    for (int c = 8 * units + lane; c < cols; c += 32) {
      y[row * stride + c] =
          *reinterpret_cast<const T*>(staged + row * 128 + (c / 8 ^ row % 8) * 16 + c % 8 * 2);
    }
  }
}

// y = activation(acc + bias) for this warp's 16 rows x kN columns, clipped to rows x cols.
//   bias: [kN] in shared memory, or not read if acc has it already, !kBias
//   staging(i): kStagedBytes for columns 64 i on, 128-byte aligned
template <class T, int kN, Activation kActivation, bool kBias = true, class Staging>
__device__ __forceinline__ void WriteTile(const float (&acc)[kN / 2], const float* bias,
                                          const Staging& staging, T* y, int64_t stride, int rows,
                                          int cols) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int lane_row = (lane / 8 % 2 * 8 + lane % 8) * 128;
  const int lane_unit = lane / 16 ^ lane % 8;
  const bool aligned = reinterpret_cast<uintptr_t>(y) % 16 == 0;
#pragma unroll
  for (int first = 0; first < kN; first += kStagedCols) {
    char* staged = staging(first / kStagedCols);
#pragma unroll
    for (int c = first; c < first + kStagedCols && c < kN; c += 16) {
      uint32_t r[4] = {};  // the second half stays zero where kN ends
#pragma unroll
      for (int j = 0; j < 2 && c + 8 * j < kN; ++j) {
        float2 b = {};
        if constexpr (kBias) {
          b = *reinterpret_cast<const float2*>(bias + c + 8 * j + 2 * (lane % 4));
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float* a = acc + c / 2 + 4 * j + 2 * i;
          r[2 * j + i] =
              Pack2<T>(Activate<kActivation>(a[0] + b.x), Activate<kActivation>(a[1] + b.y));
        }
      }
      StoreMatrix4(staged + lane_row + (lane_unit ^ (c - first) / 8) * 16, r[0], r[1], r[2], r[3]);
    }
    __syncwarp();
    const int wide = kN - first < kStagedCols ? kN - first : kStagedCols;
    WriteStaged(staged, y + first, stride, rows, max(min(cols - first, wide), 0), aligned);
    __syncwarp();
  }
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_GEMM_STORE_CUH_
