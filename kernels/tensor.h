#ifndef FLASHSVD_KERNELS_TENSOR_H_
#define FLASHSVD_KERNELS_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <utility>

namespace flashsvd {

// Shape letters, used in every comment of this repository:
//   T    tokens in the packed batch        M   tokens of one sequence
//   S    sequences in the batch            C   tokens of a chunk of whole sequences
//   d    hidden width                      F   feed-forward width
//   H    attention heads                   h   head dim of the original model, d / H
//   R    rank of a per-head factor         r   rank of a full-matrix factor
// Matrices are row-major; a linear map is y = W x + b with W [out, in], or W ~ B A with
// A [r, in] (applied first) and B [out, r].

enum class DType : uint8_t { kF32, kF16, kBF16 };

constexpr size_t DTypeBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

// "f32", "f16", "bf16".
constexpr std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
  }
  return "?";
}

// Activations in backend memory, [rows, cols] in the backend's dtype; rows start `stride` elements
// apart (stride >= cols). Non-owning.
struct Rows {
  void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
};

// Move-only owner of backend memory. The deleter runs once, with the pointer.
class Buffer {
 public:
  Buffer() = default;
  Buffer(void* data, size_t bytes, std::function<void(void*)> deleter)
      : data_(data), bytes_(bytes), deleter_(std::move(deleter)) {}
  Buffer(Buffer&& other) noexcept { Swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Swap(other);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) deleter_(data_);
  }

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void Swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(deleter_, other.deleter_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
  std::function<void(void*)> deleter_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_TENSOR_H_
