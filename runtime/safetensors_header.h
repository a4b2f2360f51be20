#ifndef FLASHSVD_RUNTIME_SAFETENSORS_HEADER_H_
#define FLASHSVD_RUNTIME_SAFETENSORS_HEADER_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/safetensors.h"

namespace flashsvd {

// The parsed header of one safetensors file; the entries point into the file's bytes.
struct SafetensorsHeader {
  std::map<std::string, TensorEntry> tensors;
  std::map<std::string, std::string> metadata;
};

// Checks everything that SafetensorsFile promises. Errors name `path`, the tensor and the field:
// DataLoss where the file is shorter than it says, else InvalidArgument.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(const std::string& path,
                                                         std::span<const std::byte> file);

// "[2, 3]".
std::string ShapeText(std::span<const int64_t> shape);

// The header length that readers of the format accept.
constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
// Dimensions of one tensor; no model has more than five.
constexpr size_t kMaxSafetensorsDims = 32;

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_SAFETENSORS_HEADER_H_
