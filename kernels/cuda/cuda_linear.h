#ifndef FLASHSVD_KERNELS_CUDA_CUDA_LINEAR_H_
#define FLASHSVD_KERNELS_CUDA_CUDA_LINEAR_H_

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/packed_matrix.h"

namespace flashsvd {

// A linear map in device memory: one packed matrix, or two for a factor pair. Bias is float32, as
// long as the padded rows of the last matrix, or null.
class CudaLinear : public Linear {
 public:
  CudaLinear(int in, int out, int rank, Buffer memory, PackedMatrix first, PackedMatrix second,
             const float* bias)
      : Linear(in, out, rank, memory.bytes()),
        memory_(std::move(memory)),
        first_(first),
        second_(second),
        bias_(bias) {}

  // The dense weight, or A.
  const PackedMatrix& first() const { return first_; }
  // The matrix that gives the output: the dense weight, or B.
  const PackedMatrix& last() const { return rank() > 0 ? second_ : first_; }
  const float* bias() const { return bias_; }

 private:
  Buffer memory_;
  PackedMatrix first_;
  PackedMatrix second_;
  const float* bias_;
};

// The host image of a CudaLinear: what is copied to the device in one piece, and where in it the
// parts are.
struct LinearImage {
  int rank = 0;  // 0 for a pair that was multiplied out
  std::vector<std::byte> bytes;
  PackedMatrix first;   // data unset
  PackedMatrix second;  // data unset
  size_t second_offset = 0;
  size_t bias_offset = 0;
  bool has_bias = false;
};

// Packs `source` in `dtype` (kF16 or kBF16, round to nearest even). A factor pair whose product has
// at most a quarter more elements than the pair itself is multiplied out, in float32: one matrix
// product instead of two that depend on each other, and one rounding less.
LinearImage PackLinearImage(const LinearSource& source, DType dtype);

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_CUDA_LINEAR_H_
