#ifndef FLASHSVD_KERNELS_BACKEND_FACTORY_H_
#define FLASHSVD_KERNELS_BACKEND_FACTORY_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace flashsvd {

struct BackendOptions {
  // "cpu", "cuda", "reference", or "auto" (ResolveDevice).
  std::string device = "auto";
  // Which of several CUDA devices.
  int device_index = 0;
  // f32 and bf16 on the CPU, f16 and bf16 on CUDA devices.
  DType dtype = DType::kF32;
  // CPU threads that share one operation; 0: one per available core.
  int num_threads = 0;
  // CPU instruction set: "" (environment FLASHSVD_CPU_ISA, else the fastest on this CPU),
  // "portable", "avx2", "avx512", "avx512_bf16".
  std::string cpu_isa;
  // CUDA kernels: "" (environment FLASHSVD_CUDA_PATH, else the best for the device), "sm80",
  // "sm90".
  std::string cuda_path;
  // Choose CUDA kernels as for a device of so many multiprocessors; 0: as many as there are. With
  // few of them few rows get the kernels that otherwise take many.
  int cuda_num_sms = 0;
};

// Whether this build has the CUDA backend and this machine a device that it can use.
bool HasCuda();

// What "auto" means here: cuda when HasCuda(), unless float32 is wanted, which is the CPU's alone;
// any other device is itself.
std::string ResolveDevice(const std::string& device, bool wants_f32);

// InvalidArgument names an unknown device, an ISA this CPU lacks, or an unsupported dtype.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options);

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_BACKEND_FACTORY_H_
