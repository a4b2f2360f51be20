#ifndef FLASHSVD_KERNELS_CUDA_LAUNCH_CONFIG_CUH_
#define FLASHSVD_KERNELS_CUDA_LAUNCH_CONFIG_CUH_

#include <cuda_runtime.h>

namespace flashsvd {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  int cluster = 1;  // blocks of a cluster, along x; the grid's x is a multiple of it
};

// Launches with programmatic stream serialization: the kernel's blocks may start while the kernel
// before it in the stream finishes, and griddepcontrol.wait holds them until it has. On devices
// before 9.0 the attribute does nothing.
template <class... Params, class... Args>
cudaError_t LaunchKernel(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
                         const Args&... args) {
  if (shape.shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = shape.cluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_LAUNCH_CONFIG_CUH_
