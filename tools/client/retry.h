#ifndef FLASHSVD_TOOLS_CLIENT_RETRY_H_
#define FLASHSVD_TOOLS_CLIENT_RETRY_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/status.h"

namespace flashsvd {

// What a server said about sending a failed call again.
struct RetryAdvice {
  bool forbidden = false;  // "do not"
  std::optional<absl::Duration> delay;
};

// Reads grpc-retry-pushback-ms (by gRPC's rule a value that is no non-negative number forbids) and
// google.rpc.RetryInfo in serialised google.rpc.Status details; where both are there, the longer
// delay counts. `pushback` is empty when there is no such header. Malformed details are no advice.
RetryAdvice ParseRetryAdvice(const std::optional<std::string>& pushback,
                             const std::string& status_details);

// As above, of a finished call.
RetryAdvice RetryAdviceOf(const grpc::ClientContext& context, const grpc::Status& status);

// How long to wait before try number `attempt` + 1 (attempt counts from 0); nullopt when trying
// again would be of no use.
//   UNAVAILABLE: as advised, else 0.1 s doubling up to 5 s.
//   RESOURCE_EXHAUSTED: the same if advised; without advice a message was over a limit, and
//   nullopt.
// Never longer than 30 s. `jitter` in [0, 1) takes off up to a fifth of an unadvised delay, so that
// clients which failed together do not come back together.
std::optional<absl::Duration> RetryDelay(absl::StatusCode code, const RetryAdvice& advice,
                                         int attempt, double jitter);

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_CLIENT_RETRY_H_
