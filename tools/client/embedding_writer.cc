#include "tools/client/embedding_writer.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <iterator>
#include <utility>

#include "fmt/format.h"
#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

static_assert(std::endian::native == std::endian::little, "rows are written as they lie in memory");

// A file under a temporary name until Commit, or directly when the target is no regular file (a
// terminal, a pipe, /dev/null).
class OutputFile {
 public:
  static absl::StatusOr<OutputFile> Open(const std::string& path) {
    OutputFile output;
    output.name_ = path == "-" ? "standard output" : path;
    struct stat info = {};
    if (path == "-") {
      output.file_ = stdout;
    } else if (stat(path.c_str(), &info) != 0 || S_ISREG(info.st_mode)) {
      output.final_path_ = path;
      output.temporary_path_ = fmt::format("{}.{}.partial", path, getpid());
      output.file_ = std::fopen(output.temporary_path_.c_str(), "wb");
    } else {
      output.file_ = std::fopen(path.c_str(), "wb");
    }
    if (output.file_ == nullptr) {
      output.temporary_path_.clear();
      return output.Failed("cannot be written");
    }
    // Whoever reads a pipe or watches a terminal gets each row when it is there.
    if (!output.replaces()) std::setvbuf(output.file_, nullptr, _IOLBF, size_t{1} << 16);
    return output;
  }

  OutputFile(OutputFile&& other) noexcept { *this = std::move(other); }
  OutputFile& operator=(OutputFile&& other) noexcept {
    std::swap(file_, other.file_);
    std::swap(name_, other.name_);
    std::swap(final_path_, other.final_path_);
    std::swap(temporary_path_, other.temporary_path_);
    return *this;
  }
  ~OutputFile() {
    if (file_ != nullptr && file_ != stdout) std::fclose(file_);
    if (replaces()) std::remove(temporary_path_.c_str());
  }

  absl::Status Write(const void* data, size_t bytes) {
    if (std::fwrite(data, 1, bytes, file_) != bytes) return Failed("cannot be written");
    return absl::OkStatus();
  }

  bool Seek(long offset) { return std::fseek(file_, offset, SEEK_SET) == 0; }

  absl::Status Commit() {
    if (std::fflush(file_) != 0) return Failed("cannot be written");
    if (file_ == stdout) return absl::OkStatus();
    if (std::fclose(std::exchange(file_, nullptr)) != 0) return Failed("cannot be closed");
    if (!replaces()) return absl::OkStatus();
    if (std::rename(temporary_path_.c_str(), final_path_.c_str()) != 0) {
      return Failed("cannot be renamed to");
    }
    temporary_path_.clear();
    return absl::OkStatus();
  }

  absl::Status Failed(const char* what) const {
    return absl::ErrnoToStatus(errno, fmt::format("{}: {}", name_, what));
  }
  const std::string& name() const { return name_; }

 private:
  OutputFile() = default;
  bool replaces() const { return !temporary_path_.empty(); }

  std::FILE* file_ = nullptr;
  std::string name_;
  std::string final_path_;
  std::string temporary_path_;
};

// NumPy's format 1.0: a header of fixed size, written first for no row and again at the end.
class NpyWriter : public EmbeddingWriter {
 public:
  static absl::StatusOr<std::unique_ptr<EmbeddingWriter>> Create(OutputFile file) {
    if (!file.Seek(0)) {
      return absl::InvalidArgumentError(fmt::format(
          "{}: npy needs a file that can seek; use JSON lines for a pipe", file.name()));
    }
    auto writer = std::unique_ptr<NpyWriter>(new NpyWriter(std::move(file)));
    FSVD_RETURN_IF_ERROR(writer->WriteHeader());
    return writer;
  }

  absl::Status Append(std::span<const float> row, uint32_t, bool) override {
    if (rows_ > 0 && row.size() != columns_) {
      return absl::InternalError(fmt::format("embedding {} has {} components, those before it {}",
                                             rows_, row.size(), columns_));
    }
    columns_ = row.size();
    ++rows_;
    return file_.Write(row.data(), row.size_bytes());
  }

  absl::Status Finish() override {
    if (!file_.Seek(0)) return file_.Failed("cannot seek");
    FSVD_RETURN_IF_ERROR(WriteHeader());
    return file_.Commit();
  }

 private:
  // Holds two 20-digit numbers, and keeps the data 64-byte aligned as the format asks.
  static constexpr size_t kHeaderBytes = 128;

  explicit NpyWriter(OutputFile file) : file_(std::move(file)) {}

  absl::Status WriteHeader() {
    constexpr std::array<char, 10> kMagic = {
        '\x93', 'N', 'U', 'M', 'P', 'Y', 1, 0, kHeaderBytes - 10, 0};
    std::string header(kMagic.begin(), kMagic.end());
    fmt::format_to(std::back_inserter(header),
                   "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows_,
                   columns_);
    header.resize(kHeaderBytes - 1, ' ');
    header += '\n';
    return file_.Write(header.data(), header.size());
  }

  OutputFile file_;
  size_t rows_ = 0;
  size_t columns_ = 0;
};

// {"index":0,"tokens":7,"truncated":false,"embedding":[...]}, floats in the fewest digits that read
// back as the same value.
class JsonLinesWriter : public EmbeddingWriter {
 public:
  explicit JsonLinesWriter(OutputFile file) : file_(std::move(file)) {}

  absl::Status Append(std::span<const float> row, uint32_t tokens, bool truncated) override {
    line_.clear();
    fmt::format_to(std::back_inserter(line_),
                   R"({{"index":{},"tokens":{},"truncated":{},"embedding":[)", index_++, tokens,
                   truncated);
    for (size_t i = 0; i < row.size(); ++i) {
      fmt::format_to(std::back_inserter(line_), "{}{}", i > 0 ? "," : "", row[i]);
    }
    line_ += "]}\n";
    return file_.Write(line_.data(), line_.size());
  }

  absl::Status Finish() override { return file_.Commit(); }

 private:
  OutputFile file_;
  std::string line_;
  uint64_t index_ = 0;
};

}  // namespace

absl::StatusOr<EmbeddingFormat> FormatOfPath(const std::string& path) {
  if (path.ends_with(".npy")) return EmbeddingFormat::kNpy;
  for (const char* extension : {".jsonl", ".ndjson", ".json"}) {
    if (path.ends_with(extension)) return EmbeddingFormat::kJsonLines;
  }
  return absl::InvalidArgumentError(fmt::format(
      "{}: the extension is none of .npy, .jsonl, .ndjson, .json; give --format", path));
}

absl::StatusOr<std::unique_ptr<EmbeddingWriter>> EmbeddingWriter::Open(const std::string& path,
                                                                       EmbeddingFormat format) {
  FSVD_ASSIGN_OR_RETURN(OutputFile file, OutputFile::Open(path));
  if (format == EmbeddingFormat::kNpy) return NpyWriter::Create(std::move(file));
  return std::make_unique<JsonLinesWriter>(std::move(file));
}

}  // namespace flashsvd
