#ifndef FLASHSVD_RUNTIME_MAPPED_FILE_H_
#define FLASHSVD_RUNTIME_MAPPED_FILE_H_

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace flashsvd {

// A regular file mapped read-only. Move-only.
class MappedFile {
 public:
  // NotFound: no such file. InvalidArgument: a directory, pipe or device. Other failures carry the
  // code of errno. Every error names `path`. An empty file maps to no bytes.
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile(const std::byte* data, size_t size) : data_(data), size_(size) {}

  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_MAPPED_FILE_H_
