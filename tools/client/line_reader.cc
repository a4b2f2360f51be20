#include "tools/client/line_reader.h"

#include <sys/stat.h>
#include <unistd.h>
#include <utf8proc.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "fmt/format.h"
#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 16;

}  // namespace

size_t FindInvalidUtf8(std::string_view text) {
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  size_t at = 0;
  while (at < text.size()) {
    if (bytes[at] < 0x80) {
      ++at;
      continue;
    }
    utf8proc_int32_t code_point = 0;
    const utf8proc_ssize_t length = utf8proc_iterate(
        bytes + at, static_cast<utf8proc_ssize_t>(std::min<size_t>(text.size() - at, 4)),
        &code_point);
    if (length <= 0) return at;
    at += static_cast<size_t>(length);
  }
  return std::string_view::npos;
}

LineReader::LineReader(std::unique_ptr<std::FILE, Close> file, std::string name)
    : file_(std::move(file)), name_(std::move(name)), buffer_(kBufferBytes) {}

absl::StatusOr<LineReader> LineReader::Open(const std::string& path) {
  if (path == "-") {
    return LineReader(std::unique_ptr<std::FILE, Close>(stdin), "standard input");
  }
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) {
    return absl::ErrnoToStatus(errno, fmt::format("{}: cannot be opened", path));
  }
  return LineReader(std::unique_ptr<std::FILE, Close>(file), path);
}

absl::StatusOr<bool> LineReader::ReadRaw(std::string* line) {
  bool any = false;
  for (;;) {
    if (begin_ == end_) {
      // read, unlike fread, hands over what a pipe holds instead of waiting for a full buffer.
      const ssize_t count = read(fileno(file_.get()), buffer_.data(), buffer_.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return absl::ErrnoToStatus(errno, fmt::format("{}: cannot be read", name_));
      if (count == 0) return any;
      begin_ = 0;
      end_ = static_cast<size_t>(count);
    }
    any = true;
    const char* from = buffer_.data() + begin_;
    const auto* newline = static_cast<const char*>(std::memchr(from, '\n', end_ - begin_));
    const size_t length = newline != nullptr ? newline - from : end_ - begin_;
    if (line->size() + length > kMaxLineBytes) {
      return absl::InvalidArgumentError(
          fmt::format("{}:{}: longer than {} bytes", name_, line_number_ + 1, kMaxLineBytes));
    }
    line->append(from, length);
    begin_ += length;
    if (newline != nullptr) {
      ++begin_;
      return true;
    }
  }
}

absl::StatusOr<bool> LineReader::Next(std::string* line) {
  line->clear();
  FSVD_ASSIGN_OR_RETURN(const bool any, ReadRaw(line));
  if (!any) return false;
  ++line_number_;
  if (!line->empty() && line->back() == '\r') line->pop_back();
  if (line_number_ == 1 && line->starts_with("\xEF\xBB\xBF")) line->erase(0, 3);
  if (const size_t bad = FindInvalidUtf8(*line); bad != std::string_view::npos) {
    return absl::InvalidArgumentError(fmt::format("{}:{}: not UTF-8 at byte {} (0x{:02x})", name_,
                                                  line_number_, bad,
                                                  static_cast<unsigned char>((*line)[bad])));
  }
  return true;
}

int64_t CountLines(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return 0;
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return 0;
  std::vector<char> buffer(kBufferBytes);
  int64_t lines = 0;
  char last = '\n';
  while (const size_t read = std::fread(buffer.data(), 1, buffer.size(), file)) {
    lines += std::count(buffer.begin(), buffer.begin() + static_cast<ptrdiff_t>(read), '\n');
    last = buffer[read - 1];
  }
  std::fclose(file);
  return lines + (last == '\n' ? 0 : 1);
}

}  // namespace flashsvd
