#include "tools/client/retry.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/strings/numbers.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace flashsvd {
namespace {

constexpr absl::Duration kFirstDelay = absl::Milliseconds(100);
constexpr absl::Duration kLongestUnadvised = absl::Seconds(5);
constexpr absl::Duration kLongest = absl::Seconds(30);

std::optional<absl::Duration> RetryInfoDelay(const std::string& status_details) {
  google::rpc::Status status;
  if (!status.ParseFromString(status_details)) return std::nullopt;
  google::rpc::RetryInfo info;
  for (const google::protobuf::Any& detail : status.details()) {
    if (!detail.UnpackTo(&info)) continue;
    const absl::Duration delay =
        absl::Seconds(info.retry_delay().seconds()) + absl::Nanoseconds(info.retry_delay().nanos());
    return std::max(absl::ZeroDuration(), delay);
  }
  return std::nullopt;
}

}  // namespace

RetryAdvice ParseRetryAdvice(const std::optional<std::string>& pushback,
                             const std::string& status_details) {
  RetryAdvice advice;
  advice.delay = RetryInfoDelay(status_details);
  if (!pushback) return advice;
  int32_t milliseconds = 0;
  if (!absl::SimpleAtoi(*pushback, &milliseconds) || milliseconds < 0) {
    advice.forbidden = true;
    return advice;
  }
  const absl::Duration delay = absl::Milliseconds(milliseconds);
  advice.delay = advice.delay ? std::max(*advice.delay, delay) : delay;
  return advice;
}

RetryAdvice RetryAdviceOf(const grpc::ClientContext& context, const grpc::Status& status) {
  std::optional<std::string> pushback;
  const auto& trailers = context.GetServerTrailingMetadata();
  if (const auto it = trailers.find("grpc-retry-pushback-ms"); it != trailers.end()) {
    pushback = std::string(it->second.data(), it->second.size());
  }
  return ParseRetryAdvice(pushback, status.error_details());
}

std::optional<absl::Duration> RetryDelay(absl::StatusCode code, const RetryAdvice& advice,
                                         int attempt, double jitter) {
  if (advice.forbidden) return std::nullopt;
  const bool busy = code == absl::StatusCode::kResourceExhausted;
  if (code != absl::StatusCode::kUnavailable && !(busy && advice.delay)) return std::nullopt;
  if (advice.delay) return std::min(*advice.delay, kLongest);
  const absl::Duration delay = std::min(kFirstDelay * std::exp2(attempt), kLongestUnadvised);
  return delay * (1 - 0.2 * jitter);
}

}  // namespace flashsvd
