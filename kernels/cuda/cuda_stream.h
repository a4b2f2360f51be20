#ifndef FLASHSVD_KERNELS_CUDA_CUDA_STREAM_H_
#define FLASHSVD_KERNELS_CUDA_CUDA_STREAM_H_

#include <cuda_runtime_api.h>

#include "kernels/backend.h"

namespace flashsvd {

class CudaStream : public Stream {
 public:
  explicit CudaStream(cudaStream_t stream) : stream_(stream) {}
  ~CudaStream() override { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_;
};

// REQUIRES: stream comes from a CudaBackend.
inline cudaStream_t StreamOf(const Stream& stream) {
  return static_cast<const CudaStream&>(stream).get();
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_CUDA_STREAM_H_
