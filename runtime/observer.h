#ifndef FLASHSVD_RUNTIME_OBSERVER_H_
#define FLASHSVD_RUNTIME_OBSERVER_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/time/time.h"

namespace flashsvd {

// Why a batch was closed. The names are the values of the metric's label.
enum class BatchClose : uint8_t { kTokens, kSequences, kMemory, kEmpty, kDelay };
std::string_view BatchCloseName(BatchClose close);  // "tokens", "sequences", ...

// Why an entry was refused or dropped before it was computed.
enum class Rejection : uint8_t { kItems, kTokens, kBytes, kMemory, kDeadline, kDraining, kInvalid };
std::string_view RejectionName(Rejection reason);  // "items", "tokens", ...

struct BatchReport {
  int num_sequences = 0;
  int num_tokens = 0;
  BatchClose close = BatchClose::kEmpty;
  size_t activation_bytes = 0;          // high-water mark of this batch
  size_t planned_activation_bytes = 0;  // what the plan said for its shape
  absl::Duration copy_in;
  absl::Duration compute;
  absl::Duration copy_out;
};

// The queue as it stands after a change.
struct QueueReport {
  int items = 0;  // sequences
  int64_t tokens = 0;
  int64_t bytes = 0;
  absl::Duration oldest_age;
};

// What the runtime reports about one model. Called from slot threads and from submitters, at times
// with a queue lock held: implementations are thread-safe, quick and never call back.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void OnBatch(const BatchReport&) {}
  virtual void OnQueue(const QueueReport&) {}
  virtual void OnQueued(absl::Duration /*time_in_queue*/) {}
  virtual void OnRejected(Rejection) {}
  virtual void OnAbandoned() {}  // the client left before its entry was computed
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_OBSERVER_H_
