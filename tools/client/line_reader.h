#ifndef FLASHSVD_TOOLS_CLIENT_LINE_READER_H_
#define FLASHSVD_TOOLS_CLIENT_LINE_READER_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace flashsvd {

// Offset of the first byte of `text` that does not begin a well-formed UTF-8 sequence (no
// surrogates, no overlong forms), or npos.
size_t FindInvalidUtf8(std::string_view text);

// The lines of a text file, one at a time, in bounded memory. Not thread-safe.
class LineReader {
 public:
  // "-" is standard input. NotFound or PermissionDenied with the path and the system's reason.
  static absl::StatusOr<LineReader> Open(const std::string& path);

  // Puts the next line into `line`, without its "\n" or "\r\n" and, on line 1, without a byte order
  // mark; false at the end of the file. InvalidArgument, naming file and line, when the line is not
  // UTF-8 or longer than kMaxLineBytes.
  absl::StatusOr<bool> Next(std::string* line);

  // Of the line read last, from 1.
  uint64_t line_number() const { return line_number_; }
  // The path, or "standard input".
  const std::string& name() const { return name_; }

  // Over any server's limit on a text, and small enough for a client to hold a window of them.
  static constexpr size_t kMaxLineBytes = size_t{4} << 20;

 private:
  struct Close {
    void operator()(std::FILE* file) const {
      if (file != stdin) std::fclose(file);
    }
  };
  LineReader(std::unique_ptr<std::FILE, Close> file, std::string name);

  // Appends up to and without the next '\n'; false when the file ended before any byte.
  absl::StatusOr<bool> ReadRaw(std::string* line);

  std::unique_ptr<std::FILE, Close> file_;
  std::string name_;
  std::vector<char> buffer_;
  size_t begin_ = 0;  // unread bytes are [begin_, end_) of buffer_
  size_t end_ = 0;
  uint64_t line_number_ = 0;
};

// Lines of a regular file, counting an unterminated last one; 0 when `path` is none or unreadable.
int64_t CountLines(const std::string& path);

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_CLIENT_LINE_READER_H_
