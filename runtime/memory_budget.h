#ifndef FLASHSVD_RUNTIME_MEMORY_BUDGET_H_
#define FLASHSVD_RUNTIME_MEMORY_BUDGET_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "runtime/encoder.h"

namespace flashsvd {

// What a budget is divided into. The server derives its batch limit from the budget, not the other
// way round (design.md section 3).
struct BatchLimits {
  int max_batch_tokens = 0;
  int max_batch_sequences = 0;
  int num_slots = 0;
};

// Bytes of one slot's inputs and outputs at these limits, of host and device together.
size_t SlotIoBytes(const Encoder& encoder, const BatchLimits& limits, int max_seqlen);

// Bytes of one slot: planned activations and I/O.
size_t SlotBytes(const Encoder& encoder, const BatchLimits& limits, int max_seqlen);

// The largest limits within `wanted` such that weights and slots of `replicas` alike, which share a
// device, fit `budget_bytes` (0: no limit, `wanted` as it is): tokens shrink first, down to one
// sequence of max_seqlen, then slots.
// InvalidArgument: not even one slot for one longest sequence fits; the message names the smallest
// budget that would do.
absl::StatusOr<BatchLimits> FitToBudget(const Encoder& encoder, const BatchLimits& wanted,
                                        int max_seqlen, size_t budget_bytes, int replicas = 1);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_MEMORY_BUDGET_H_
