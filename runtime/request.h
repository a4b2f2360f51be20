#ifndef FLASHSVD_RUNTIME_REQUEST_H_
#define FLASHSVD_RUNTIME_REQUEST_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/packed_batch.h"

namespace flashsvd {

// How a request went; the times are those of its last sequence to finish.
struct RequestResult {
  absl::Status status;
  absl::Duration queue;    // from Submit to the start of its last batch
  absl::Duration compute;  // device time of the batches that it was in
  int batches = 0;
  size_t activation_bytes = 0;  // high-water mark of the largest of them
};

// Tokenised sequences on their way through an Engine. The submitter fills it and keeps it alive
// through the shared_ptr; after Submit only `cancelled` may be touched until `done` has run.
struct Request {
  PackedBatch input;
  // Row s of [S, d] float32 receives sequence s, wherever the submitter wants it (the response
  // message itself). Rows are row_stride_bytes apart and need no alignment.
  std::byte* output = nullptr;
  size_t row_stride_bytes = 0;
  // Dropped with DEADLINE_EXCEEDED if it has not begun by then.
  absl::Time deadline = absl::InfiniteFuture();
  // Set by the submitter when its client has left: sequences not yet in a batch are dropped with
  // CANCELLED.
  std::atomic<bool> cancelled{false};
  // Runs exactly once, on a slot thread or inside a failing path of the engine, never inside
  // Submit. Must not block.
  std::function<void(const RequestResult&)> done;
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_REQUEST_H_
