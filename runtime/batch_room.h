#ifndef FLASHSVD_RUNTIME_BATCH_ROOM_H_
#define FLASHSVD_RUNTIME_BATCH_ROOM_H_

#include <optional>

#include "runtime/batcher_options.h"
#include "runtime/observer.h"
#include "runtime/queue_entry.h"

namespace flashsvd {

// What a batch holds while it is formed, and what more fits. Lives on the stack of one formation;
// the options must outlive it.
class BatchRoom {
 public:
  explicit BatchRoom(const BatcherOptions& limits) : limits_(limits) {}

  bool IsFull() const {
    return tokens_ >= limits_.max_batch_tokens || sequences_ >= limits_.max_batch_sequences;
  }

  // The limit that the next `count` waiting sequences of the entry would break, if any.
  std::optional<BatchClose> Refuses(const QueueEntry& entry, int count) const;
  // How many of its waiting sequences fit, in order. Notes the limit that ends the count.
  int CountThatFit(const QueueEntry& entry);
  // REQUIRES: they fit.
  void Add(const QueueEntry& entry, int count);

  // Why the batch ends, once the queue offers no more; `otherwise` if no limit ended it.
  BatchClose Close(BatchClose otherwise) const;

 private:
  int Longest(const QueueEntry& entry, int count) const;

  const BatcherOptions& limits_;
  int tokens_ = 0;
  int sequences_ = 0;
  int max_seqlen_ = 0;
  std::optional<BatchClose> refusal_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_BATCH_ROOM_H_
