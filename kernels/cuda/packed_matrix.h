#ifndef FLASHSVD_KERNELS_CUDA_PACKED_MATRIX_H_
#define FLASHSVD_KERNELS_CUDA_PACKED_MATRIX_H_

#include <cstddef>
#include <cstdint>

namespace flashsvd {

// A weight W [n, k] in device memory, in the one form that every CUDA kernel reads. Eight
// consecutive k of one row are a 16-byte unit, and the units of one group of eight k lie row after
// row:
//   element (i, j) is at ((j / 8) * n_padded + i) * 8 + j % 8
// and everything outside [n, k] is zero. A tile of BN rows and BK columns is BK / 8 runs of BN x 16
// bytes. In shared memory, as [BK / 8][BN][8], it feeds ldmatrix without bank conflicts and is
// wgmma's K-major operand without swizzle (leading byte offset 16 BN, stride byte offset 128). So
// one packing serves any tile that tile_policy may choose, on any architecture.
struct PackedMatrix {
  const void* data = nullptr;
  int n = 0;
  int k = 0;
  int n_padded = 0;  // multiple of 8
  int k_padded = 0;  // multiple of 16
};

constexpr int PaddedRows(int n) { return (n + 7) / 8 * 8; }
constexpr int PaddedDepth(int k) { return (k + 15) / 16 * 16; }
constexpr size_t PackedElements(int n, int k) {
  return static_cast<size_t>(PaddedRows(n)) * PaddedDepth(k);
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_PACKED_MATRIX_H_
