#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_STORE_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_STORE_CUH_

#include <cstdint>

#include "kernels/cuda/feed_forward_products.cuh"
#include "kernels/cuda/feed_forward_shape.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/tensor.h"

namespace flashsvd {

// Writes `blocks` staged blocks of 64 x 64 to the columns from `col` on.
template <class T, class Shape>
__device__ __forceinline__ void WriteStaged(const uint8_t* staged, const CUtensorMap* map, int row,
                                            int col, int blocks, const Rows& out) {
  const int cols = min(static_cast<int>(out.cols) - col, blocks * 64);
  if (out.cols % 8 != 0) {
    // The copy engine writes whole units of 16 bytes.
    for (int i = threadIdx.x % 128; i < 64 * cols; i += 128) {
      const int r = i / cols;
      const int c = i % cols;
      const uint8_t* unit =
          staged + c / 64 * Shape::kBlockBytes + r * 128 + (c % 64 / 8 ^ r % 8) * 16;
      if (row + r < out.rows) {
        static_cast<T*>(out.data)[(row + r) * out.stride + col + c] =
            reinterpret_cast<const T*>(unit)[c % 8];
      }
    }
  } else if (threadIdx.x % 128 == 0) {
    for (int block = 0; block * 64 < cols; ++block) {
      StoreBox2(map, staged + block * Shape::kBlockBytes, col + block * 64, row);
    }
    StoreCommit();
    StoreWaitRead<0>();
  }
}

// A warpgroup writes its s as rows of `out` from `row` on, kBlocks blocks of 64 columns at a time,
// through `staged`: 1024-byte aligned, kBlocks * kBlockBytes. `map` is SwizzledRowsMap(out, 64).
template <class T, class Shape, int kBlocks>
__device__ __forceinline__ void StoreRows(const RankAccumulator<Shape>& s, uint8_t* staged,
                                          int named_barrier, const CUtensorMap* map, int row,
                                          const Rows& out) {
  constexpr int kUnits = Shape::kRank / 8;
  const int lane = threadIdx.x % 32;
  const int own_row = threadIdx.x % 128 / 32 * 16 + lane % 16;
  uint8_t* own = staged + own_row * 128;
#pragma unroll
  for (int first = 0; first < kUnits; first += kBlocks * 8) {
#pragma unroll
    for (int j = first; j < kUnits && j < first + kBlocks * 8; j += 2) {
      const int unit = j % 8 + lane / 16;
      StoreMatrix4(own + (j - first) / 8 * Shape::kBlockBytes + (unit ^ own_row % 8) * 16,
                   PackPair<T, Shape>(s, 2 * j), PackPair<T, Shape>(s, 2 * j + 1),
                   PackPair<T, Shape>(s, 2 * j + 2), PackPair<T, Shape>(s, 2 * j + 3));
    }
    FenceAsyncProxy();
    NamedBarrierSync(named_barrier, 128);
    WriteStaged<T, Shape>(staged, map, row, first * 8, kBlocks, out);
    NamedBarrierSync(named_barrier, 128);
  }
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_STORE_CUH_
