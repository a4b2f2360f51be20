#include "runtime/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace flashsvd {

// A file that another process shortens while it is mapped raises SIGBUS when the lost pages are
// read. That is out of scope: replace a model by renaming a new file over the old one, as
// WriteSafetensors does, and the mapping keeps the old content.
absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  // A name with a NUL would open whatever stands before it.
  if (path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError("a file name holds a NUL character");
  }
  // O_NONBLOCK: opening a pipe must not wait for its writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    if (errno == ENOENT || errno == ENOTDIR) {
      return absl::NotFoundError(fmt::format("{}: no such file", path));
    }
    return absl::ErrnoToStatus(errno, fmt::format("{}: cannot be opened", path));
  }
  struct stat info = {};
  if (fstat(fd, &info) != 0) {
    const int error = errno;
    close(fd);
    return absl::ErrnoToStatus(error, fmt::format("{}: cannot be examined", path));
  }
  if (!S_ISREG(info.st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(fmt::format(
        "{}: {}, not a file", path, S_ISDIR(info.st_mode) ? "a directory" : "a pipe or device"));
  }
  const size_t size = static_cast<size_t>(info.st_size);
  if (size == 0) {
    close(fd);
    return MappedFile(nullptr, 0);
  }
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  const int error = errno;
  close(fd);
  if (data == MAP_FAILED) {
    return absl::ErrnoToStatus(error, fmt::format("{}: {} bytes cannot be mapped", path, size));
  }
  return MappedFile(static_cast<const std::byte*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace flashsvd
