#include "runtime/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "kernels/float_convert.h"
#include "kernels/status_macros.h"
#include "runtime/mapped_file.h"
#include "runtime/safetensors_header.h"
#include "runtime/strict_json.h"

namespace flashsvd {
namespace {

constexpr std::string_view kIndexSuffix = ".index.json";

// Tensor name -> name of its shard.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  FSVD_ASSIGN_OR_RETURN(const nlohmann::json index, ReadJsonFile(path));
  if (!index.is_object() || !index.contains("weight_map")) {
    return absl::InvalidArgumentError(fmt::format("{}: weight_map: missing", path));
  }
  const nlohmann::json& weight_map = index["weight_map"];
  if (!weight_map.is_object() || weight_map.empty()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: weight_map: {} instead of an object with tensors", path,
                    weight_map.is_object() ? "an empty object" : JsonTypeName(weight_map)));
  }
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, value] : weight_map.items()) {
    if (!value.is_string()) {
      return absl::InvalidArgumentError(fmt::format("{}: weight_map: {}: {} instead of a file name",
                                                    path, Quoted(tensor), JsonTypeName(value)));
    }
    // Shards lie beside the index; a model directory must not reach for other files.
    const auto& file = value.get_ref<const std::string&>();
    const bool odd = std::any_of(file.begin(), file.end(), [](unsigned char c) {
      return c < 0x20 || c == 0x7f || c == '/' || c == '\\';
    });
    if (odd || file.empty() || file == "." || file == "..") {
      return absl::InvalidArgumentError(
          fmt::format("{}: weight_map: {}: {} is not a plain file name in the model directory",
                      path, Quoted(tensor), Quoted(file)));
    }
    shards.emplace(tensor, file);
  }
  return shards;
}

// memcpy, because tensors need not be aligned in a file. The conversion is a template argument, so
// that it is inlined and the loop vectorised.
template <float (*kConvert)(uint16_t)>
void Widen(const std::byte* from, std::span<float> to) {
  for (size_t i = 0; i < to.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, from + i * sizeof bits, sizeof bits);
    to[i] = kConvert(bits);
  }
}

}  // namespace

struct SafetensorsFile::Mapping {
  MappedFile file;
};

SafetensorsFile::SafetensorsFile(std::string path) : path_(std::move(path)) {}
SafetensorsFile::~SafetensorsFile() = default;

int64_t TensorEntry::elements() const {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  auto file = std::unique_ptr<SafetensorsFile>(new SafetensorsFile(path));
  if (!path.ends_with(kIndexSuffix)) {
    FSVD_RETURN_IF_ERROR(file->AddShard(path));
    return file;
  }
  FSVD_ASSIGN_OR_RETURN(const auto index, ReadIndex(path));
  const std::string dir = path.substr(0, path.rfind('/') + 1);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : index) shards.insert(shard);
  // Each tensor of the set, with the shard that holds it.
  std::map<std::string, std::string> found;
  for (const std::string& shard : shards) {
    if (absl::Status status = file->AddShard(dir + shard); !status.ok()) {
      if (!absl::IsNotFound(status)) return status;
      return absl::InvalidArgumentError(
          fmt::format("{}: weight_map: shard {} does not exist", path, Quoted(shard)));
    }
    for (const auto& [tensor, entry] : file->tensors_) found.emplace(tensor, shard);
  }
  for (const auto& [tensor, shard] : found) {
    auto it = index.find(tensor);
    if (it == index.end()) {
      return absl::InvalidArgumentError(
          fmt::format("{}: weight_map: tensor {} of shard {} is missing from the index", path,
                      Quoted(tensor), Quoted(shard)));
    }
  }
  for (const auto& [tensor, shard] : index) {
    auto it = found.find(tensor);
    if (it == found.end() || it->second != shard) {
      return absl::InvalidArgumentError(fmt::format("{}: weight_map: tensor {} is not in shard {}",
                                                    path, Quoted(tensor), Quoted(shard)));
    }
  }
  return file;
}

absl::Status SafetensorsFile::AddShard(const std::string& path) {
  FSVD_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  FSVD_ASSIGN_OR_RETURN(SafetensorsHeader header, ParseSafetensorsHeader(path, file.bytes()));
  mappings_.push_back(std::make_unique<Mapping>(Mapping{std::move(file)}));
  for (auto& [name, entry] : header.tensors) {
    if (!tensors_.emplace(name, std::move(entry)).second) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensor {}: another shard holds it, too", path, Quoted(name)));
    }
  }
  for (auto& [key, value] : header.metadata) {
    auto [it, inserted] = metadata_.emplace(key, value);
    if (!inserted && it->second != value) {
      return absl::InvalidArgumentError(
          fmt::format("{}: __metadata__: {}: {}, but another shard says {}", path, Quoted(key),
                      Quoted(value), Quoted(it->second)));
    }
  }
  return absl::OkStatus();
}

const TensorEntry* SafetensorsFile::Find(const std::string& name) const {
  auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

absl::Status ToFloat(const TensorEntry& entry, std::span<float> out) {
  FSVD_CHECK(out.size() == static_cast<size_t>(entry.elements()), "%zu floats for %lld elements",
             out.size(), static_cast<long long>(entry.elements()));
  if (entry.dtype == "F32") {
    if (!out.empty()) std::memcpy(out.data(), entry.data, out.size_bytes());
  } else if (entry.dtype == "F16") {
    Widen<FloatFromF16>(entry.data, out);
  } else if (entry.dtype == "BF16") {
    Widen<FloatFromBf16>(entry.data, out);
  } else {
    return absl::InvalidArgumentError(
        fmt::format("dtype {} is not F32, F16 or BF16", Quoted(entry.dtype)));
  }
  return absl::OkStatus();
}

}  // namespace flashsvd
