#include "runtime/memory_budget.h"

#include <algorithm>

#include "fmt/format.h"
#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

double Mib(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// A batch of n tokens has at most n sequences.
BatchLimits WithTokens(BatchLimits limits, int tokens) {
  limits.max_batch_tokens = tokens;
  limits.max_batch_sequences = std::min(limits.max_batch_sequences, tokens);
  return limits;
}

}  // namespace

size_t SlotIoBytes(const Encoder& encoder, const BatchLimits& limits, int max_seqlen) {
  return encoder.StagingBytes(
      encoder.Limit(limits.max_batch_tokens, limits.max_batch_sequences, max_seqlen));
}

size_t SlotBytes(const Encoder& encoder, const BatchLimits& limits, int max_seqlen) {
  const BatchShape shape =
      encoder.Limit(limits.max_batch_tokens, limits.max_batch_sequences, max_seqlen);
  return encoder.Plan(shape).total_bytes + encoder.StagingBytes(shape);
}

absl::StatusOr<BatchLimits> FitToBudget(const Encoder& encoder, const BatchLimits& wanted,
                                        int max_seqlen, size_t budget_bytes, int replicas) {
  FSVD_CHECK(wanted.max_batch_tokens >= max_seqlen && wanted.num_slots > 0 && replicas > 0,
             "%d tokens for sequences of %d, %d slots, %d replicas", wanted.max_batch_tokens,
             max_seqlen, wanted.num_slots, replicas);
  if (budget_bytes == 0) return wanted;
  const size_t weights = replicas * encoder.weight_bytes().resident;
  const auto slots = [&](const BatchLimits& limits) {
    return replicas * limits.num_slots * SlotBytes(encoder, limits, max_seqlen);
  };
  const auto fits = [&](const BatchLimits& limits) {
    return weights + slots(limits) <= budget_bytes;
  };

  BatchLimits limits = WithTokens(wanted, max_seqlen);
  while (limits.num_slots > 1 && !fits(limits)) --limits.num_slots;
  if (!fits(limits)) {
    const size_t least = weights + slots(limits);
    return absl::InvalidArgumentError(fmt::format(
        "memory_budget: {:.1f} MiB is too small{}: weights take {:.1f} MiB and one batch of one "
        "sequence of {} tokens {:.1f} MiB; the smallest budget that would do is {} bytes "
        "({:.1f} MiB)",
        Mib(budget_bytes),
        replicas == 1 ? "" : fmt::format(" for {} replicas on one device", replicas), Mib(weights),
        max_seqlen, Mib(least - weights), least, Mib(least)));
  }
  // Plans are monotonic, so the largest token limit that fits is found by bisection.
  int low = max_seqlen, high = wanted.max_batch_tokens;
  while (low < high) {
    const int middle = low + (high - low + 1) / 2;
    BatchLimits candidate = WithTokens(wanted, middle);
    candidate.num_slots = limits.num_slots;
    if (fits(candidate)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int num_slots = limits.num_slots;
  limits = WithTokens(wanted, low);
  limits.num_slots = num_slots;
  return limits;
}

}  // namespace flashsvd
