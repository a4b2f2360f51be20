#ifndef FLASHSVD_KERNELS_HOST_BUFFER_H_
#define FLASHSVD_KERNELS_HOST_BUFFER_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace flashsvd {

// Zero-filled host memory, aligned to kArenaAlignment. ResourceExhausted when there is none.
absl::StatusOr<Buffer> AllocateHostBuffer(size_t bytes);

// `count` float32 values as `as`, rounded to nearest even.
absl::StatusOr<Buffer> UploadToHost(const float* values, size_t count, DType as);

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_HOST_BUFFER_H_
