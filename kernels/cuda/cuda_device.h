#ifndef FLASHSVD_KERNELS_CUDA_CUDA_DEVICE_H_
#define FLASHSVD_KERNELS_CUDA_CUDA_DEVICE_H_

#include <cuda_runtime_api.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/tile_policy.h"

namespace flashsvd {

// Compute capability 8.0 and newer: what the kernels are built for.
inline constexpr int kMinComputeCapability = 80;

// Devices that the driver shows; 0 without a driver.
int NumCudaDevices();

// Facts of device `index`. InvalidArgument: no such device (how many there are), or one older than
// kMinComputeCapability. Internal: the driver failed.
absl::StatusOr<DeviceFacts> ReadDeviceFacts(int index);

// OK, or Internal with `what` and CUDA's own words.
absl::Status CudaStatus(cudaError_t error, const std::string& what);

// ResourceExhausted naming what was needed and what is free on the current device.
absl::Status OutOfDeviceMemory(size_t bytes, const std::string& what);

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_CUDA_DEVICE_H_
