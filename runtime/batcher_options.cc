#include "runtime/batcher_options.h"

#include "fmt/format.h"
#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

// Far beyond any use, so that sums of limits cannot overflow an int.
constexpr int kMaxLimit = 1 << 24;
constexpr absl::Duration kMaxDelay = absl::Milliseconds(2);

absl::Status CheckRange(const char* field, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{}: {} is not within [{}, {}]", field, value, min, max));
}

absl::Status CheckRange(const char* field, absl::Duration value, absl::Duration max) {
  if (value >= absl::ZeroDuration() && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}: {} is not within [0, {}]", field,
                                                absl::FormatDuration(value),
                                                absl::FormatDuration(max)));
}

}  // namespace

absl::Status ValidateBatcherOptions(const BatcherOptions& o) {
  constexpr int64_t kMax64 = int64_t{1} << 60;
  FSVD_RETURN_IF_ERROR(CheckRange("max_batch_tokens", o.max_batch_tokens, 1, kMaxLimit));
  FSVD_RETURN_IF_ERROR(CheckRange("max_batch_sequences", o.max_batch_sequences, 1, kMaxLimit));
  FSVD_RETURN_IF_ERROR(CheckRange("max_seqlen", o.max_seqlen, 1, o.max_batch_tokens));
  FSVD_RETURN_IF_ERROR(CheckRange("max_queue_requests", o.max_queue_requests, 1, 1 << 20));
  FSVD_RETURN_IF_ERROR(CheckRange("max_queue_tokens", o.max_queue_tokens, 1, kMax64));
  FSVD_RETURN_IF_ERROR(CheckRange("max_queue_bytes", o.max_queue_bytes, 1, kMax64));
  FSVD_RETURN_IF_ERROR(CheckRange("max_overtake_age", o.max_overtake_age, absl::Hours(1)));
  FSVD_RETURN_IF_ERROR(CheckRange("max_delay", o.max_delay, kMaxDelay));
  if (o.max_batch_bytes == 0) return absl::OkStatus();
  if (!o.activation_bytes) {
    return absl::InvalidArgumentError(
        fmt::format("max_batch_bytes: {} needs activation_bytes", o.max_batch_bytes));
  }
  const size_t smallest = o.activation_bytes(o.max_seqlen, 1, o.max_seqlen);
  if (smallest > o.max_batch_bytes) {
    return absl::InvalidArgumentError(
        fmt::format("max_batch_bytes: {} does not hold one sequence of max_seqlen {}, which takes "
                    "{} bytes",
                    o.max_batch_bytes, o.max_seqlen, smallest));
  }
  return absl::OkStatus();
}

}  // namespace flashsvd
