#ifndef FLASHSVD_RUNTIME_BATCHER_H_
#define FLASHSVD_RUNTIME_BATCHER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/batcher_options.h"
#include "runtime/clock.h"
#include "runtime/mutex.h"
#include "runtime/observer.h"
#include "runtime/packed_batch.h"
#include "runtime/queue_entry.h"
#include "runtime/request.h"

namespace flashsvd {

class BatchRoom;

// Consecutive sequences of one request within a batch.
struct BatchPiece {
  QueueEntry* entry = nullptr;  // the batcher's
  Request* request = nullptr;   // alive until the batch is completed
  int first_sequence = 0;       // in the request
  int num_sequences = 0;
  int first_row = 0;  // in the batch
};

// What one slot computes in one go. Reused: once grown, Next() allocates nothing.
struct Batch {
  PackedBatch tokens;
  std::vector<BatchPiece> pieces;
  BatchClose close = BatchClose::kEmpty;
  size_t planned_bytes = 0;  // activation_bytes of its shape; 0 without that function
  absl::Duration copy_in;    // time taken to pack `tokens`
};

// A bounded queue of requests from which batches are formed late: nothing is decided before a slot
// asks. First in, first out, with a look ahead: an entry that does not fit whole is passed over
// while it is young, the room is filled from behind it, and what room is left takes as many of its
// sequences as fit. So requests of any size are split where they must be and reassembled; rows of
// one request may be computed by several slots at once.
//
// Entries whose deadline has passed or whose client has left are dropped before they cost compute.
// Every accepted request's `done` runs exactly once, after all its rows are back, never under a
// lock, never inside Submit: it runs inside Next, TryNext, Complete, Abort or the destructor.
//
// Thread-safe; owns no thread. Allocates nothing between admission and completion once it has seen
// its peak load.
class Batcher {
 public:
  // InvalidArgument names the field and its value. `clock` and `observer` must outlive the batcher.
  static absl::StatusOr<std::unique_ptr<Batcher>> Create(const BatcherOptions& options,
                                                         const Clock& clock, Observer& observer);
  // Fails what still waits with UNAVAILABLE.
  // REQUIRES: every batch has been completed; no other call is running.
  ~Batcher();

  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;

  // Queues a request; on an error its `done` never runs. ResourceExhausted: a queue limit (which,
  // and its value). Unavailable: closed. InvalidArgument: no sequence, an empty one, one longer
  // than max_seqlen, inconsistent offsets, no `done`.
  absl::Status Submit(std::shared_ptr<Request> request);

  // Fills `batch`, blocking until there is something to compute. False: closed, and nothing waits
  // any more. A batch that was filled must go back through Complete.
  bool Next(Batch* batch);
  // The same without blocking; false: nothing to compute now.
  bool TryNext(Batch* batch);

  // Ends a batch: accounts for it, and finishes the requests of which this was the last part. An
  // error fails all requests in it, together with what of them still waits. Clears the batch.
  void Complete(Batch& batch, const absl::Status& status, absl::Duration compute,
                size_t activation_bytes);

  // Refuses new requests; what waits is still handed out. Idempotent.
  void Close();
  // Refuses new requests with `status` and fails what waits with it at once.
  void Abort(const absl::Status& status);

  QueueReport queue() const;
  const BatcherOptions& options() const { return options_; }

 private:
  Batcher(const BatcherOptions& options, const Clock& clock, Observer& observer);

  // Which limit a request of this size would break, if any.
  std::optional<Rejection> LimitReached(int64_t tokens, int64_t bytes) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status QueueFull(Rejection limit, int64_t tokens, int64_t bytes) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  QueueEntry* NewEntry() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // How long the next batch is still held back; infinite if nothing waits.
  absl::Duration Holdback(absl::Time now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool IsFullBatchWaiting() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Forms a batch of what waits; false if nothing of it is worth computing.
  bool Form(absl::Time now, Batch* batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Fill(absl::Time now, BatchRoom& room, Batch* batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Take(QueueEntry* entry, int count, absl::Time now, BatchRoom& room, Batch* batch)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Copies the sequences together; needs no lock, since a piece keeps its request alive.
  void Pack(Batch* batch) const;

  // Drops the entry if it is past its deadline or cancelled.
  bool DropIfDead(QueueEntry* entry, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Takes the rest of an entry out of the queue; it finishes once its rows in flight are back.
  void Drop(QueueEntry* entry, const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Drops all dead entries, at most once in a while. Returns whether there were any.
  bool SweepDead(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LeaveQueue(QueueEntry* entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FinishIfOver(QueueEntry* entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Runs `done` of all finished requests.
  void RunDone() ABSL_LOCKS_EXCLUDED(mu_);

  QueueReport Report(absl::Time now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const BatcherOptions options_;
  const Clock& clock_;
  Observer& observer_;

  mutable Mutex mu_;
  CondVar changed_;
  // An entry is on one of three lists, or on none while all of it that is left runs in batches.
  EntryList queue_ ABSL_GUARDED_BY(mu_);     // oldest first
  EntryList finished_ ABSL_GUARDED_BY(mu_);  // `done` is still to run
  EntryList free_ ABSL_GUARDED_BY(mu_);
  std::vector<std::unique_ptr<QueueEntry[]>> entries_ ABSL_GUARDED_BY(mu_);
  int queued_requests_ ABSL_GUARDED_BY(mu_) = 0;
  int queued_sequences_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t queued_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t queued_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time last_sweep_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);  // not OK: closed
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_BATCHER_H_
