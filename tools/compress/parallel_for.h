#ifndef FLASHSVD_TOOLS_COMPRESS_PARALLEL_FOR_H_
#define FLASHSVD_TOOLS_COMPRESS_PARALLEL_FOR_H_

#include <atomic>
#include <cstddef>
#include <functional>

#include "absl/status/status.h"

namespace flashsvd {

// Runs task(0) ... task(count - 1) on `threads` threads, each taking the next index. After an
// error, or once *cancelled (may be null) is true, no further task starts; returns the error of the
// lowest index that failed, or Cancelled. REQUIRES: threads >= 1.
absl::Status ParallelFor(size_t count, int threads, const std::atomic<bool>* cancelled,
                         const std::function<absl::Status(size_t)>& task);

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_COMPRESS_PARALLEL_FOR_H_
