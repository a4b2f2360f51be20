#ifndef FLASHSVD_KERNELS_CUDA_CUDA_LINEAR_H_
#define FLASHSVD_KERNELS_CUDA_CUDA_LINEAR_H_

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/packed_matrix.h"

namespace flashsvd {

// A matrix that gives outputs. Bias is float32, as long as the matrix' padded rows, or null.
struct OutputMatrix {
  PackedMatrix w;
  const float* bias = nullptr;
};

// A linear map in device memory: one packed matrix; or for factor pairs A of all groups as one
// matrix, and B of each.
class CudaLinear : public Linear {
 public:
  CudaLinear(int in, int out, int rank, Buffer memory, PackedMatrix first,
             std::vector<OutputMatrix> outputs)
      : Linear(in, out, rank, static_cast<int>(outputs.size()), memory.bytes()),
        memory_(std::move(memory)),
        first_(first),
        outputs_(std::move(outputs)) {}

  // The dense weight, or A [groups * rank, in]; of several groups, each padded to PaddedRows(rank).
  const PackedMatrix& first() const { return first_; }
  // The dense weight, or B of each group [out / groups, rank].
  const std::vector<OutputMatrix>& outputs() const { return outputs_; }
  // Of a linear map of one group.
  const PackedMatrix& last() const { return outputs_.front().w; }
  const float* bias() const { return outputs_.front().bias; }

 private:
  Buffer memory_;
  PackedMatrix first_;
  std::vector<OutputMatrix> outputs_;
};

// The host image of a CudaLinear: what is copied to the device in one piece, and where in it the
// parts are.
struct LinearImage {
  int rank = 0;  // 0 for a pair that was multiplied out
  int groups = 1;
  std::vector<std::byte> bytes;
  PackedMatrix first;        // data unset
  PackedMatrix second;       // data unset; of one group
  size_t second_offset = 0;  // of group 0
  size_t second_bytes = 0;   // from one group to the next
  size_t bias_offset = 0;    // of group 0
  size_t bias_bytes = 0;     // from one group to the next
  bool has_bias = false;
};

// Packs `source` in `dtype` (kF16 or kBF16, round to nearest even). A factor pair whose product has
// at most a quarter more elements than the pair itself is multiplied out, in float32: one matrix
// product instead of two that depend on each other, and one rounding less. Groups stay pairs.
LinearImage PackLinearImage(const LinearSource& source, DType dtype);

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_CUDA_LINEAR_H_
