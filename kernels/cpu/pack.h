#ifndef FLASHSVD_KERNELS_CPU_PACK_H_
#define FLASHSVD_KERNELS_CPU_PACK_H_

#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cpu/kernel_table.h"

namespace flashsvd {

// A linear map in the panels of kernel_table.h, which every instruction set reads.
class CpuLinear : public Linear {
 public:
  // InvalidArgument when `source` lacks a matrix or has a size below one. dtype is f32 or bf16.
  static absl::StatusOr<std::unique_ptr<CpuLinear>> Pack(const LinearSource& source, DType dtype);

  // One for each group, which gives the columns of y behind those of the group before.
  const std::vector<PackedLinear>& parts() const { return parts_; }

 private:
  CpuLinear(const LinearSource& source, Buffer memory, std::vector<PackedLinear> parts);

  Buffer memory_;
  std::vector<PackedLinear> parts_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CPU_PACK_H_
