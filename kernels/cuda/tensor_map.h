#ifndef FLASHSVD_KERNELS_CUDA_TENSOR_MAP_H_
#define FLASHSVD_KERNELS_CUDA_TENSOR_MAP_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "kernels/cuda/packed_matrix.h"
#include "kernels/tensor.h"

namespace flashsvd {

// Descriptors for the bulk tensor copy engine (compute capability 9.0). Elements are 16 bits; what
// lies outside the matrix reads as zero. Encoded on the host, passed by value as a
// __grid_constant__ parameter. cudaErrorInvalidValue when the engine cannot address the matrix.

// A box of `rows` x 64 columns of row-major x, rows of 128 bytes in the 128-byte swizzle
// (Swizzle128Descriptor). Coordinates (column, row).
cudaError_t SwizzledRowsMap(const Rows& x, int rows, CUtensorMap* map);

// The same with fewer columns, a multiple of 8; the rows stay 128 bytes apart in shared memory.
cudaError_t SwizzledColumnsMap(const Rows& x, int rows, int cols, CUtensorMap* map);

// A box of `rows` x `cols` columns of row-major x, as [cols / 8][rows][8] without swizzle
// (CoreMatrixDescriptor, leading 16 rows, stride 128). Coordinates (0, row, column / 8): CopyBox3.
// REQUIRES: rows at most 256, cols a multiple of 8.
cudaError_t CoreMatrixRowsMap(const Rows& x, int rows, int cols, CUtensorMap* map);

// A box of `rows` rows and `depth` columns of a packed weight, as [depth / 8][rows][8].
// Coordinates (0, row / 8, column / 8): CopyBox3.
// REQUIRES: rows and depth are multiples of 8, rows at most 2048.
cudaError_t PackedMatrixMap(const PackedMatrix& w, int rows, int depth, CUtensorMap* map);

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_TENSOR_MAP_H_
