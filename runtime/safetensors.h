#ifndef FLASHSVD_RUNTIME_SAFETENSORS_H_
#define FLASHSVD_RUNTIME_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace flashsvd {

// One tensor of an open file. `data` points into the mapping and lives as long as the file.
struct TensorEntry {
  std::string dtype;           // as the header spells it: "F32", "BF16", "I64", ...
  std::vector<int64_t> shape;  // [] is a scalar
  const std::byte* data = nullptr;
  size_t bytes = 0;

  int64_t elements() const;
};

// A safetensors file, or a sharded set with its index, mapped read-only. Every header field and
// offset is checked on opening: lengths, JSON types, duplicate names, dtype, shape overflow, bytes
// against shape, overlaps, holes, the end of the file. Immutable; thread-safe.
class SafetensorsFile {
 public:
  // `path` is a .safetensors file, or a model.safetensors.index.json whose shards lie beside it.
  // NotFound: no such file. InvalidArgument or DataLoss: names file, tensor and field.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::map<std::string, TensorEntry>& tensors() const { return tensors_; }
  // The header's __metadata__ (of all shards; a key that two shards give differently is an error).
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // Null if there is none.
  const TensorEntry* Find(const std::string& name) const;
  const std::string& path() const { return path_; }

 private:
  struct Mapping;
  explicit SafetensorsFile(std::string path);
  absl::Status AddShard(const std::string& path);

  std::string path_;
  std::vector<std::unique_ptr<Mapping>> mappings_;
  std::map<std::string, TensorEntry> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Converts F32, F16 or BF16 to float32. InvalidArgument for other dtypes.
// REQUIRES: out.size() == entry.elements().
absl::Status ToFloat(const TensorEntry& entry, std::span<float> out);

// A tensor to be written; float32 values are rounded to `as` (to nearest even) on the way out.
struct TensorToWrite {
  std::string name;
  std::vector<int64_t> shape;
  DType as = DType::kF32;
  std::span<const float> values;  // borrowed until the writer returns
};

// Writes one file, tensors in the given order, header padded to 8 bytes, through a temporary file
// that is renamed at the end: a reader never sees half a file.
absl::Status WriteSafetensors(const std::string& path, std::span<const TensorToWrite> tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_SAFETENSORS_H_
