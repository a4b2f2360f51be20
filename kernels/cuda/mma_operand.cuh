#ifndef FLASHSVD_KERNELS_CUDA_MMA_OPERAND_CUH_
#define FLASHSVD_KERNELS_CUDA_MMA_OPERAND_CUH_

#include <cstdint>

#include "kernels/cuda/packed_matrix.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/tensor.h"

namespace flashsvd {

// Operands of mma.sync in shared memory, as 16-byte units of eight elements along k. A layout says
// where the unit `unit` of row `row` + `lane_row` is; `row` is a multiple of 8. In both layouts
// ldmatrix, which reads one unit of eight neighbouring rows, meets no bank conflict.

// As in PackedMatrix: unit by unit, kRows of each.
template <int kRows>
struct PackedLayout {
  static __device__ __forceinline__ int Unit(int row, int lane_row, int unit) {
    return unit * kRows + row + lane_row;
  }
};

// Row by row: what row-major memory is copied to. An asynchronous copy writes a line of 128 bytes
// of shared memory at a time, so the units of a row must stay together: spread over lines as in
// PackedLayout they take up to eight times as long. Eight rows of one unit are in different banks
// because a row has an odd number of units or, for 4 and multiples of 8, because units are permuted
// within their line.
template <int kUnits>
struct RowLayout {
  static constexpr bool kPermuted = kUnits == 4 || kUnits % 8 == 0;
  static constexpr int kRowUnits = kPermuted ? kUnits : kUnits | 1;
  static __device__ __forceinline__ int Unit(int row, int lane_row, int unit) {
    const int swap = kUnits == 4 ? lane_row / 2 % 4 : lane_row % 8;
    return (row + lane_row) * kRowUnits + (kPermuted ? unit ^ swap : unit);
  }
};

// The 16 x 16 fragment A at row `row`, a multiple of 16, and units `unit` and `unit` + 1.
template <class Layout, class T>
__device__ __forceinline__ void LoadFragmentA(uint32_t (&a)[4], const T* operand, int row,
                                              int unit) {
  const int lane = threadIdx.x % 32;
  LoadMatrix4(a, operand + Layout::Unit(row, lane % 16, unit + lane / 16) * 8);
}

// Two 16 (k) x 8 fragments of B' from row `row` on, a multiple of 16: b[0], b[1] and b[2], b[3].
template <class Layout, class T>
__device__ __forceinline__ void LoadFragmentsB(uint32_t (&b)[4], const T* operand, int row,
                                               int unit) {
  const int lane = threadIdx.x % 32;
  LoadMatrix4(b, operand + Layout::Unit(row, lane / 16 * 8 + lane % 8, unit + lane / 8 % 2) * 8);
}

// Starts copying the tile [kRows, kUnits * 8] of x at (first_row, first_column) to a RowLayout;
// what is outside of x, its padding too, becomes zero.
template <int kRows, int kUnits, int kThreads, class T>
__device__ __forceinline__ void CopyTile(T* operand, const Rows& x, int64_t first_row,
                                         int first_column) {
  constexpr int kRowsAtOnce = kThreads / kUnits;
  static_assert(kThreads % kUnits == 0 && kRowsAtOnce % 8 == 0);
  const int unit = threadIdx.x % kUnits;
  const int thread_row = threadIdx.x / kUnits;
  const int64_t row = first_row + thread_row;
  const int rows = static_cast<int>(min(x.rows - row, int64_t{kRows}));  // from this thread's on
  const T* source = static_cast<const T*>(x.data) + row * x.stride + unit * 8 + first_column;
  T* target = operand + RowLayout<kUnits>::Unit(0, thread_row, unit) * 8;
  const auto copy = [&](const auto& copy_unit) {
#pragma unroll
    for (int r = 0; r < kRows; r += kRowsAtOnce) {
      if (kRows % kRowsAtOnce == 0 || r + thread_row < kRows) {
        copy_unit(target + r * RowLayout<kUnits>::kRowUnits * 8, source + r * x.stride, r < rows);
      }
    }
  };
  const int columns = static_cast<int>(x.cols) - first_column;
  if (columns >= kUnits * 8) {
    copy([](T* to, const T* from, bool inside) { CopyAsync16(to, from, inside); });
  } else {
    const int bytes = 2 * min(max(columns - unit * 8, 0), 8);
    copy([&](T* to, const T* from, bool inside) {
      CopyAsyncPart(to, bytes > 0 && inside ? from : x.data, inside ? bytes : 0);
    });
  }
}

// Starts copying the tile [kRows, kUnits * 8] of w at row first_row and unit first_unit to a
// PackedLayout; zeros outside of its padding.
template <int kRows, int kUnits, int kThreads, class T>
__device__ __forceinline__ void CopyTile(T* operand, const PackedMatrix& w, int first_row,
                                         int first_unit) {
  constexpr int kRowsAtOnce = kRows < kThreads ? kRows : kThreads;
  constexpr int kUnitsAtOnce = kThreads / kRowsAtOnce;
  const int thread_unit = threadIdx.x / kRowsAtOnce;
  const int thread_row = threadIdx.x % kRowsAtOnce;
  if (kThreads % kRowsAtOnce != 0 && thread_unit >= kUnitsAtOnce) return;
  const T* source = static_cast<const T*>(w.data) +
                    (int64_t{first_unit + thread_unit} * w.n_padded + first_row + thread_row) * 8;
  T* target = operand + (thread_unit * kRows + thread_row) * 8;
  const auto copy = [&](int units) {
#pragma unroll
    for (int u = 0; u < kUnits; u += kUnitsAtOnce) {
#pragma unroll
      for (int r = 0; r < kRows; r += kRowsAtOnce) {
        if ((kUnits % kUnitsAtOnce == 0 || u + thread_unit < kUnits) &&
            (kRows % kRowsAtOnce == 0 || r + thread_row < kRows)) {
          CopyAsync16(target + (u * kRows + r) * 8, source + (int64_t{u} * w.n_padded + r) * 8,
                      u < units && first_row + r + thread_row < w.n_padded);
        }
      }
    }
  };
  const int units = w.k_padded / 8 - first_unit;
  if (units >= kUnits) {
    copy(kUnits);
  } else {
    copy(units - thread_unit);
  }
}

// Accumulators of 8 kUnits columns from first_column on, as they start with the bias; 0 where there
// is none, and from column `end` on.
template <int kUnits>
__device__ __forceinline__ void StartWithBias(float (&sum)[kUnits][4], const float* bias,
                                              int first_column, int end) {
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int column = first_column + 8 * u + threadIdx.x % 4 * 2 + c;
      sum[u][c] = sum[u][c + 2] = bias != nullptr && column < end ? bias[column] : 0;
    }
  }
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_MMA_OPERAND_CUH_
