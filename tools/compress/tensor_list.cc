#include "tools/compress/tensor_list.h"

#include <cmath>
#include <limits>
#include <utility>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "runtime/safetensors.h"

namespace flashsvd {
namespace {

float LargestValue(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return std::numeric_limits<float>::max();
    case DType::kF16:
      return 65504.0F;
    case DType::kBF16:
      return 0x1.FEp127F;
  }
  return 0;
}

absl::Status CheckRange(const TensorToWrite& tensor) {
  const float largest = LargestValue(tensor.as);
  for (const float value : tensor.values) {
    // Written so that NaN fails too.
    if (!(std::abs(value) <= largest)) {
      return absl::InvalidArgumentError(fmt::format("{}: the value {} does not fit {}", tensor.name,
                                                    value, DTypeName(tensor.as)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void TensorList::Add(std::string name, std::vector<int64_t> shape, std::vector<float> values) {
  tensors_[std::move(name)] = {std::move(shape), std::move(values)};
}

absl::Status TensorList::Write(const std::string& path,
                               const std::map<std::string, std::string>& metadata) const {
  std::vector<TensorToWrite> list;
  list.reserve(tensors_.size());
  for (const auto& [name, tensor] : tensors_) {
    const DType as = tensor.shape.size() < 2 ? DType::kF32 : matrix_dtype_;
    list.push_back({name, tensor.shape, as, tensor.values});
    FSVD_RETURN_IF_ERROR(CheckRange(list.back()));
  }
  return WriteSafetensors(path, list, metadata);
}

}  // namespace flashsvd
