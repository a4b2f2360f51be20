#ifndef FLASHSVD_KERNELS_CUDA_CUDA_STREAM_H_
#define FLASHSVD_KERNELS_CUDA_CUDA_STREAM_H_

#include <cuda_runtime_api.h>

#include "kernels/backend.h"
#include "kernels/cuda/last_write.h"

namespace flashsvd {

class CudaStream : public Stream {
 public:
  explicit CudaStream(cudaStream_t stream) : stream_(stream) {}
  ~CudaStream() override { cudaStreamDestroy(stream_); }

  // To enqueue something: what it writes is not known until last_write() is told.
  cudaStream_t ForNext() {
    last_write_.Forget();
    return stream_;
  }
  LastWrite& last_write() { return last_write_; }

 private:
  cudaStream_t stream_;
  LastWrite last_write_;
};

// REQUIRES: stream comes from a CudaBackend.
inline CudaStream& CudaStreamOf(Stream& stream) { return static_cast<CudaStream&>(stream); }

inline cudaStream_t StreamOf(Stream& stream) { return CudaStreamOf(stream).ForNext(); }

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_CUDA_STREAM_H_
