#ifndef FLASHSVD_KERNELS_CPU_ISA_H_
#define FLASHSVD_KERNELS_CPU_ISA_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/tensor.h"

namespace flashsvd {

// Instruction sets compiled in, whether or not this CPU has them.
std::vector<std::string> CompiledIsas();

// Those that this CPU and its operating system support, "portable" first.
std::vector<std::string> AvailableIsas();

// `requested`, or if empty the environment's FLASHSVD_CPU_ISA, or if that is unset or empty the
// fastest on this CPU. InvalidArgument names the choice and those available.
absl::StatusOr<std::string> SelectIsa(std::string_view requested);

// REQUIRES: isa is one of AvailableIsas(); dtype is f32 or bf16.
const KernelTable& KernelsFor(std::string_view isa, DType dtype);

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CPU_ISA_H_
