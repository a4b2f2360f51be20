#include "runtime/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>
#include <tuple>
#include <utility>

#include "kernels/status_macros.h"
#include "runtime/strict_json.h"

namespace flashsvd {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian");

constexpr size_t kLengthBytes = 8;

// Bytes of one element, 0 for a dtype that the format does not have or that is not whole bytes.
size_t ElementBytes(std::string_view dtype) {
  constexpr std::pair<std::string_view, size_t> kDTypes[] = {
      {"BOOL", 1},        {"U8", 1},          {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
      {"F8_E4M3FNUZ", 1}, {"F8_E5M2FNUZ", 1}, {"F16", 2}, {"F8_E8M0", 1}, {"BF16", 2},
      {"I16", 2},         {"U16", 2},         {"F32", 4}, {"I32", 4},     {"U32", 4},
      {"F64", 8},         {"I64", 8},         {"U64", 8}, {"C64", 8}};
  for (const auto& [name, bytes] : kDTypes) {
    if (name == dtype) return bytes;
  }
  return 0;
}

// Names file and tensor, and field where one is to blame, in front of what is wrong.
class Blame {
 public:
  Blame(const std::string& path, const std::string& tensor) : path_(path), tensor_(tensor) {}

  absl::Status Invalid(std::string_view field, std::string_view what) const {
    return absl::InvalidArgumentError(Text(field, what));
  }
  absl::Status Lost(std::string_view field, std::string_view what) const {
    return absl::DataLossError(Text(field, what));
  }

 private:
  std::string Text(std::string_view field, std::string_view what) const {
    return fmt::format("{}: tensor {}: {}: {}", path_, Quoted(tensor_), field, what);
  }

  const std::string& path_;
  const std::string& tensor_;
};

// A JSON integer in [0, 2^63).
bool ReadSize(const Json& value, int64_t* out) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > INT64_MAX) return false;
  *out = value.get<int64_t>();
  return true;
}

absl::Status CheckFields(const Json& value, const Blame& blame) {
  if (!value.is_object()) {
    return blame.Invalid("entry", fmt::format("{} instead of an object", JsonTypeName(value)));
  }
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    if (!value.contains(field)) return blame.Invalid(field, "missing");
  }
  for (const auto& [key, unused] : value.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return blame.Invalid(Quoted(key), "unknown field");
    }
  }
  return absl::OkStatus();
}

// The bytes that dtype and shape stand for.
absl::StatusOr<size_t> ReadShape(const Json& value, const Blame& blame, TensorEntry* entry) {
  const Json& dtype = value["dtype"];
  if (!dtype.is_string()) {
    return blame.Invalid("dtype", fmt::format("{} instead of a string", JsonTypeName(dtype)));
  }
  entry->dtype = dtype.get<std::string>();
  const size_t element_bytes = ElementBytes(entry->dtype);
  if (element_bytes == 0) {
    return blame.Invalid("dtype", fmt::format("unknown type {}", Quoted(entry->dtype)));
  }
  const Json& shape = value["shape"];
  if (!shape.is_array()) {
    return blame.Invalid("shape", fmt::format("{} instead of an array", JsonTypeName(shape)));
  }
  if (shape.size() > kMaxSafetensorsDims) {
    return blame.Invalid(
        "shape", fmt::format("{} dimensions, more than {}", shape.size(), kMaxSafetensorsDims));
  }
  // An overflow is refused even where a zero follows, so that elements() never overflows.
  int64_t bytes = static_cast<int64_t>(element_bytes);
  for (const Json& size : shape) {
    int64_t dim = 0;
    if (!ReadSize(size, &dim)) {
      return blame.Invalid("shape",
                           fmt::format("{} is not an integer from 0 to 2^63 - 1",
                                       Quoted(size.is_structured() ? "..." : size.dump())));
    }
    entry->shape.push_back(dim);
    if (__builtin_mul_overflow(bytes, dim, &bytes)) {
      return blame.Invalid("shape", "the product of the dimensions overflows");
    }
  }
  return static_cast<size_t>(bytes);
}

absl::StatusOr<TensorEntry> ReadEntry(const Json& value, const Blame& blame,
                                      std::span<const std::byte> data) {
  FSVD_RETURN_IF_ERROR(CheckFields(value, blame));
  TensorEntry entry;
  FSVD_ASSIGN_OR_RETURN(entry.bytes, ReadShape(value, blame, &entry));
  const Json& offsets = value["data_offsets"];
  int64_t begin = 0, end = 0;
  if (!offsets.is_array() || offsets.size() != 2 || !ReadSize(offsets[0], &begin) ||
      !ReadSize(offsets[1], &end)) {
    return blame.Invalid("data_offsets", "not an array of two integers from 0 to 2^63 - 1");
  }
  if (begin > end) {
    return blame.Invalid("data_offsets", fmt::format("begin {} is past end {}", begin, end));
  }
  if (static_cast<size_t>(end - begin) != entry.bytes) {
    return blame.Invalid("data_offsets",
                         fmt::format("{} bytes, but {} {} takes {}", end - begin, entry.dtype,
                                     ShapeText(entry.shape), entry.bytes));
  }
  if (static_cast<size_t>(end) > data.size()) {
    return blame.Lost("data_offsets", fmt::format("end {} is past the {} bytes of data in the file",
                                                  end, data.size()));
  }
  entry.data = data.data() + begin;
  return entry;
}

absl::Status ReadMetadata(const std::string& path, const Json& value,
                          std::map<std::string, std::string>* metadata) {
  if (!value.is_object()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: __metadata__: {} instead of an object", path, JsonTypeName(value)));
  }
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) {
      return absl::InvalidArgumentError(fmt::format("{}: __metadata__: {}: {} instead of a string",
                                                    path, Quoted(key), JsonTypeName(text)));
    }
    metadata->emplace(key, text.get<std::string>());
  }
  return absl::OkStatus();
}

// The tensors must tile the data section: no overlap, no hole, nothing behind the last one.
absl::Status CheckTiling(const std::string& path, const std::map<std::string, TensorEntry>& tensors,
                         std::span<const std::byte> data) {
  std::vector<std::pair<const std::string*, const TensorEntry*>> in_order;
  in_order.reserve(tensors.size());
  for (const auto& [name, entry] : tensors) in_order.emplace_back(&name, &entry);
  std::sort(in_order.begin(), in_order.end(), [](const auto& a, const auto& b) {
    return std::tie(a.second->data, a.second->bytes) < std::tie(b.second->data, b.second->bytes);
  });
  size_t covered = 0;
  const std::string* previous = nullptr;
  for (const auto& [name, entry] : in_order) {
    const size_t begin = static_cast<size_t>(entry->data - data.data());
    const Blame blame(path, *name);
    if (begin < covered) {
      return blame.Invalid("data_offsets",
                           fmt::format("begin {} overlaps tensor {}, which ends at {}", begin,
                                       Quoted(*previous), covered));
    }
    if (begin > covered) {
      return blame.Invalid(
          "data_offsets",
          fmt::format("begin {} leaves a hole: the data before it ends at {}", begin, covered));
    }
    covered = begin + entry->bytes;
    previous = name;
  }
  if (covered != data.size()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {} trailing bytes belong to no tensor", path, data.size() - covered));
  }
  return absl::OkStatus();
}

}  // namespace

std::string ShapeText(std::span<const int64_t> shape) {
  std::string text = "[";
  for (int64_t size : shape) text += fmt::format("{}{}", text.size() > 1 ? ", " : "", size);
  return text + "]";
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(const std::string& path,
                                                         std::span<const std::byte> file) {
  if (file.size() < kLengthBytes) {
    return absl::DataLossError(
        fmt::format("{}: {} bytes, too short for a safetensors header", path, file.size()));
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), kLengthBytes);
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(
        fmt::format("{}: header length {} is more than the {} allowed: not a safetensors file?",
                    path, header_bytes, kMaxSafetensorsHeaderBytes));
  }
  if (header_bytes > file.size() - kLengthBytes) {
    return absl::DataLossError(
        fmt::format("{}: header length {} is past the end of a file of {} bytes", path,
                    header_bytes, file.size()));
  }
  const auto* text = reinterpret_cast<const char*>(file.data() + kLengthBytes);
  const auto data = file.subspan(kLengthBytes + header_bytes);
  auto json = ParseStrictJson({text, header_bytes});
  if (!json.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: header: {}", path, std::string(json.status().message())));
  }
  if (text[0] != '{') {
    return absl::InvalidArgumentError(
        fmt::format("{}: header: does not begin with the brace of an object", path));
  }
  SafetensorsHeader header;
  for (const auto& [name, value] : json->items()) {
    if (name == "__metadata__") {
      FSVD_RETURN_IF_ERROR(ReadMetadata(path, value, &header.metadata));
      continue;
    }
    FSVD_ASSIGN_OR_RETURN(TensorEntry entry, ReadEntry(value, Blame(path, name), data));
    header.tensors.emplace(name, std::move(entry));
  }
  FSVD_RETURN_IF_ERROR(CheckTiling(path, header.tensors, data));
  return header;
}

}  // namespace flashsvd
