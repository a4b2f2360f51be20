#ifndef FLASHSVD_TOOLS_CLIENT_EMBEDDING_WRITER_H_
#define FLASHSVD_TOOLS_CLIENT_EMBEDDING_WRITER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace flashsvd {

enum class EmbeddingFormat : uint8_t { kNpy, kJsonLines };

// By extension: .npy; .jsonl, .ndjson and .json. InvalidArgument for any other, naming them.
absl::StatusOr<EmbeddingFormat> FormatOfPath(const std::string& path);

// Where embeddings go, row by row, in bounded memory. Not thread-safe.
class EmbeddingWriter {
 public:
  // "-" is standard output. A regular file appears under its name when Finish succeeds; until then,
  // and for good after a failure, what stood there stays. InvalidArgument: npy to a file that
  // cannot seek, since its header states the number of rows, known at the end.
  static absl::StatusOr<std::unique_ptr<EmbeddingWriter>> Open(const std::string& path,
                                                               EmbeddingFormat format);
  // Without Finish, removes what was written to a regular file.
  virtual ~EmbeddingWriter() = default;

  // One embedding: `tokens` that the model saw of its text, and whether it was cut. All rows have
  // the same length.
  virtual absl::Status Append(std::span<const float> row, uint32_t tokens, bool truncated) = 0;
  virtual absl::Status Finish() = 0;
};

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_CLIENT_EMBEDDING_WRITER_H_
