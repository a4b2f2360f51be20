#include "kernels/host_buffer.h"

#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/arena.h"
#include "kernels/float_convert.h"
#include "kernels/status_macros.h"

namespace flashsvd {

absl::StatusOr<Buffer> AllocateHostBuffer(size_t bytes) {
  if (bytes > SIZE_MAX - kArenaAlignment) {
    return absl::ResourceExhaustedError("cannot allocate " + std::to_string(bytes) + " bytes");
  }
  const size_t rounded = ArenaAlign(bytes == 0 ? 1 : bytes);
  void* data = std::aligned_alloc(kArenaAlignment, rounded);
  if (data == nullptr) {
    return absl::ResourceExhaustedError("cannot allocate " + std::to_string(bytes) +
                                        " bytes of host memory");
  }
  std::memset(data, 0, rounded);
  return Buffer(data, bytes, [](void* p) { std::free(p); });
}

absl::StatusOr<Buffer> UploadToHost(const float* values, size_t count, DType as) {
  FSVD_ASSIGN_OR_RETURN(Buffer buffer, AllocateHostBuffer(count * DTypeBytes(as)));
  if (as == DType::kF32) {
    if (count != 0) std::memcpy(buffer.data(), values, count * sizeof(float));
    return buffer;
  }
  auto* out = static_cast<uint16_t*>(buffer.data());
  for (size_t i = 0; i < count; ++i) out[i] = NarrowFloat(as, values[i]);
  return buffer;
}

}  // namespace flashsvd
