#include "kernels/cuda/cuda_device.h"

namespace flashsvd {
namespace {

std::string Mib(size_t bytes) {
  const size_t tenths = (bytes * 10 + (1 << 19)) >> 20;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " MiB";
}

}  // namespace

int NumCudaDevices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();  // the absence of a driver is no error of what comes after
    return 0;
  }
  return count;
}

absl::Status CudaStatus(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(what + ": " + cudaGetErrorName(error) + ": " +
                             cudaGetErrorString(error));
}

absl::Status OutOfDeviceMemory(size_t bytes, const std::string& what) {
  (void)cudaGetLastError();
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) (void)cudaGetLastError();
  return absl::ResourceExhaustedError(what + " needs " + Mib(bytes) + " of device memory; " +
                                      Mib(free) + " of " + Mib(total) + " are free");
}

absl::StatusOr<DeviceFacts> ReadDeviceFacts(int index) {
  const int count = NumCudaDevices();
  if (index < 0 || index >= count) {
    return absl::InvalidArgumentError("device cuda:" + std::to_string(index) +
                                      ": this machine has " + std::to_string(count) +
                                      " CUDA devices");
  }
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess) {
    return CudaStatus(error, "reading the properties of cuda:" + std::to_string(index));
  }
  DeviceFacts facts;
  facts.num_sms = properties.multiProcessorCount;
  facts.compute_capability = properties.major * 10 + properties.minor;
  facts.shared_bytes_per_block = properties.sharedMemPerBlockOptin;
  if (facts.compute_capability < kMinComputeCapability) {
    return absl::InvalidArgumentError(
        "device cuda:" + std::to_string(index) + " (" + properties.name +
        ") has compute capability " + std::to_string(properties.major) + "." +
        std::to_string(properties.minor) + ", at least 8.0 is needed");
  }
  return facts;
}

}  // namespace flashsvd
