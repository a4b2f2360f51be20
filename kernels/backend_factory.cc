#include "kernels/backend_factory.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/reference.h"

#if FSVD_CUDA
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_device.h"
#endif

namespace flashsvd {
namespace {

absl::StatusOr<std::unique_ptr<Backend>> MakeCuda([[maybe_unused]] const BackendOptions& options) {
#if FSVD_CUDA
  return CudaBackend::Create(options.dtype, options.device_index, options.cuda_path,
                             options.cuda_num_sms);
#else
  return absl::InvalidArgumentError(
      "device is \"cuda\"; this build has no CUDA (preset cuda-release)");
#endif
}

}  // namespace

bool HasCuda() {
#if FSVD_CUDA
  return ReadDeviceFacts(0).ok();
#else
  return false;
#endif
}

std::string ResolveDevice(const std::string& device, bool wants_f32) {
  if (device != "auto") return device;
  return !wants_f32 && HasCuda() ? "cuda" : "cpu";
}

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options) {
  const std::string device = ResolveDevice(options.device, options.dtype == DType::kF32);
  if (device == "cuda") return MakeCuda(options);
  if (device == "cpu") {
    return CpuBackend::Create(options.dtype, options.num_threads, options.cpu_isa);
  }
  if (device == "reference") return ReferenceBackend::Create(options.dtype);
  return absl::InvalidArgumentError("device is \"" + device +
                                    "\"; there are auto, cpu, cuda and reference");
}

}  // namespace flashsvd
