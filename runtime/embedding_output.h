#ifndef FLASHSVD_RUNTIME_EMBEDDING_OUTPUT_H_
#define FLASHSVD_RUNTIME_EMBEDDING_OUTPUT_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace flashsvd {

// How pooled vectors are handed out.
struct EmbeddingFormat {
  // Leading components kept, before normalising. 1 to the vector's width.
  int dimensions = 0;
  // Divide by the L2 norm (summed in float64); a zero vector stays zero.
  bool normalize = false;
  // Little-endian, rounded to nearest even.
  DType dtype = DType::kF32;
};

// Rewrites rows of float32 [num_rows, width] at `data`, in place, as [num_rows, dimensions] in the
// format's dtype, packed at the front. Needs no alignment. Returns the bytes that are left.
// Internal: a value that is not finite, which no valid input gives; names the row. The contents are
// then unspecified.
absl::StatusOr<size_t> FormatEmbeddings(std::byte* data, int num_rows, int width,
                                        const EmbeddingFormat& format);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_EMBEDDING_OUTPUT_H_
