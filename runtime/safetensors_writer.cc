#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "kernels/float_convert.h"
#include "kernels/status_macros.h"
#include "runtime/safetensors.h"
#include "runtime/safetensors_header.h"
#include "runtime/strict_json.h"

namespace flashsvd {
namespace {

constexpr std::string_view SafetensorsName(DType dtype) {
  return dtype == DType::kF32 ? "F32" : dtype == DType::kF16 ? "F16" : "BF16";
}

// A file beside `path` that replaces it on Commit and is removed otherwise.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path)
      : path_(path), temporary_(fmt::format("{}.{}.tmp", path, getpid())) {}
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (fd_ < 0) return;
    close(fd_);
    unlink(temporary_.c_str());
  }

  absl::Status Create() {
    fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    return fd_ < 0 ? Failed("cannot be created") : absl::OkStatus();
  }

  absl::Status Write(const void* data, size_t bytes) {
    const auto* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t written = write(fd_, from, bytes);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return Failed("cannot be written");
      from += written;
      bytes -= static_cast<size_t>(written);
    }
    return absl::OkStatus();
  }

  absl::Status Commit() {
    if (fsync(fd_) != 0) return Failed("cannot be flushed");
    if (rename(temporary_.c_str(), path_.c_str()) != 0) return Failed("cannot be renamed");
    close(std::exchange(fd_, -1));
    return absl::OkStatus();
  }

 private:
  absl::Status Failed(std::string_view what) const {
    return absl::ErrnoToStatus(errno, fmt::format("{}: {}", temporary_, what));
  }

  const std::string path_;
  const std::string temporary_;
  int fd_ = -1;
};

absl::Status CheckTensor(const std::string& path, const TensorToWrite& tensor) {
  const auto invalid = [&](std::string_view what) {
    return absl::InvalidArgumentError(
        fmt::format("{}: tensor {}: {}", path, Quoted(tensor.name), what));
  };
  int64_t elements = 1;
  for (int64_t size : tensor.shape) {
    if (size < 0 || __builtin_mul_overflow(elements, size, &elements)) {
      return invalid(fmt::format("shape {} is negative or too large", ShapeText(tensor.shape)));
    }
  }
  if (tensor.shape.size() > kMaxSafetensorsDims) return invalid("too many dimensions");
  if (static_cast<size_t>(elements) != tensor.values.size()) {
    return invalid(fmt::format("shape {} does not hold {} values", ShapeText(tensor.shape),
                               tensor.values.size()));
  }
  return absl::OkStatus();
}

// The length field and the padded header.
absl::StatusOr<std::string> MakeHeader(const std::string& path,
                                       std::span<const TensorToWrite> tensors,
                                       const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::set<std::string> names = {"__metadata__"};
  size_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    FSVD_RETURN_IF_ERROR(CheckTensor(path, tensor));
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensor {}: the name is taken or reserved", path, Quoted(tensor.name)));
    }
    const size_t end = offset + tensor.values.size() * DTypeBytes(tensor.as);
    // ordered_json looks a key up in linear time; the set above is what keeps names apart.
    header.get_ref<nlohmann::ordered_json::object_t&>().push_back(
        {tensor.name,
         {{"dtype", SafetensorsName(tensor.as)},
          {"shape", tensor.shape},
          {"data_offsets", {offset, end}}}});
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::type_error&) {
    return absl::InvalidArgumentError(
        fmt::format("{}: a tensor name or the metadata is not UTF-8", path));
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(
        fmt::format("{}: the header would take {} bytes, more than {}", path, text.size(),
                    kMaxSafetensorsHeaderBytes));
  }
  const uint64_t length = text.size();
  std::string out(sizeof length, '\0');
  std::memcpy(out.data(), &length, sizeof length);
  return out + text;
}

// Narrows through a block that stays in cache. A finite value that becomes infinite is an error:
// the file could not be served.
template <uint16_t (*kConvert)(float)>
absl::Status WriteNarrow(const std::string& path, const TensorToWrite& tensor,
                         TemporaryFile& file) {
  constexpr size_t kBlock = 16384;
  uint16_t block[kBlock];
  const uint16_t infinity = kConvert(std::numeric_limits<float>::infinity());
  for (size_t start = 0; start < tensor.values.size(); start += kBlock) {
    const auto values =
        tensor.values.subspan(start, std::min(kBlock, tensor.values.size() - start));
    for (size_t i = 0; i < values.size(); ++i) block[i] = kConvert(values[i]);
    uint16_t largest = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      largest = std::max(largest, static_cast<uint16_t>(block[i] & 0x7fff));
    }
    for (size_t i = 0; largest >= infinity && i < values.size(); ++i) {
      if ((block[i] & 0x7fff) == infinity && std::isfinite(values[i])) {
        return absl::InvalidArgumentError(
            fmt::format("{}: tensor {}: element {}, {}, is too large for {}", path,
                        Quoted(tensor.name), start + i, values[i], DTypeName(tensor.as)));
      }
    }
    FSVD_RETURN_IF_ERROR(file.Write(block, values.size() * sizeof(uint16_t)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteSafetensors(const std::string& path, std::span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata) {
  FSVD_ASSIGN_OR_RETURN(const std::string header, MakeHeader(path, tensors, metadata));
  TemporaryFile file(path);
  FSVD_RETURN_IF_ERROR(file.Create());
  FSVD_RETURN_IF_ERROR(file.Write(header.data(), header.size()));
  for (const TensorToWrite& tensor : tensors) {
    switch (tensor.as) {
      case DType::kF32:
        FSVD_RETURN_IF_ERROR(file.Write(tensor.values.data(), tensor.values.size_bytes()));
        break;
      case DType::kF16:
        FSVD_RETURN_IF_ERROR(WriteNarrow<F16FromFloat>(path, tensor, file));
        break;
      case DType::kBF16:
        FSVD_RETURN_IF_ERROR(WriteNarrow<Bf16FromFloat>(path, tensor, file));
        break;
    }
  }
  return file.Commit();
}

}  // namespace flashsvd
