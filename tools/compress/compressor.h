#ifndef FLASHSVD_TOOLS_COMPRESS_COMPRESSOR_H_
#define FLASHSVD_TOOLS_COMPRESS_COMPRESSOR_H_

#include <atomic>
#include <cstdio>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "runtime/weights.h"
#include "tools/compress/rank_plan.h"
#include "tools/compress/report.h"

namespace flashsvd {

struct CompressOptions {
  std::string model_dir;
  std::string out_dir;
  double keep = 0;  // in (0, 1]; used unless `ranks` is set
  std::optional<ExplicitRanks> ranks;
  LinearLayout layout = LinearLayout::kPerHead;  // of query, key and value
  DType dtype = DType::kBF16;                    // of every matrix; vectors are always f32
  bool force = false;                            // replace an existing model directory
  int threads = 1;
  std::FILE* progress = nullptr;                 // null: silent
  const std::atomic<bool>* cancelled = nullptr;  // may be null; true stops with Cancelled
};

// Reads the dense BERT-family model in model_dir and writes it to out_dir with the encoder's linear
// modules replaced by truncated SVD factors: a complete model directory in the format of
// docs/checkpoint_format.md. The result does not depend on `threads`. After an error out_dir is as
// it was. Errors name the flag, or the file and tensor.
absl::StatusOr<CompressReport> Compress(const CompressOptions& options);

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_COMPRESS_COMPRESSOR_H_
