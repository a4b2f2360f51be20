#ifndef FLASHSVD_RUNTIME_BATCHER_OPTIONS_H_
#define FLASHSVD_RUNTIME_BATCHER_OPTIONS_H_

#include <cstddef>
#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace flashsvd {

struct BatcherOptions {
  // Limits of one batch.
  int max_batch_tokens = 16384;
  int max_batch_sequences = 512;
  int max_seqlen = 512;  // longest sequence accepted; at most max_batch_tokens
  // Bytes that a batch of this shape takes, non-decreasing in every argument, and the most that a
  // batch may take. 0: no limit. A limit must hold one sequence of max_seqlen.
  std::function<size_t(int tokens, int sequences, int max_seqlen)> activation_bytes;
  size_t max_batch_bytes = 0;

  // Limits of the queue: what waits, not what runs. A request that is larger than the limit on
  // tokens or bytes is accepted when nothing else waits, so every request can be served.
  int max_queue_requests = 1024;
  int64_t max_queue_tokens = 16 * 16384;
  // Ids, types and offsets of the waiting requests, and the output rows that they hold.
  int64_t max_queue_bytes = int64_t{64} << 20;

  // An entry that does not fit into a batch may be passed over by later ones until it has waited
  // this long.
  absl::Duration max_overtake_age = absl::Milliseconds(5);
  // How long a slot that asks holds back a batch that is not full, 0 to 2 ms. 0: not at all.
  absl::Duration max_delay = absl::ZeroDuration();
};

// InvalidArgument names the field and its value.
absl::Status ValidateBatcherOptions(const BatcherOptions& options);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_BATCHER_OPTIONS_H_
