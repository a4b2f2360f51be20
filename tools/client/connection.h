#ifndef FLASHSVD_TOOLS_CLIENT_CONNECTION_H_
#define FLASHSVD_TOOLS_CLIENT_CONNECTION_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/random/random.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "flashsvd/v1/encoder.grpc.pb.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "tools/client/retry.h"

namespace flashsvd {

struct ConnectionOptions {
  std::string address = "127.0.0.1:50051";
  // Of one call; of a stream, the longest time without an answer.
  absl::Duration timeout = absl::Seconds(60);
  // Tries after the first of a call that failed with UNAVAILABLE or RESOURCE_EXHAUSTED.
  int retries = 5;
};

// A server, and the rules for calling it. Not thread-safe.
class Connection {
 public:
  // Connects on the first call. Receives messages of any size: what comes back is as large as what
  // was asked for.
  explicit Connection(ConnectionOptions options);

  using UnaryCall = std::function<grpc::Status(grpc::ClientContext*)>;
  // Runs `call` with the timeout, again as RetryDelay says. Errors start with the address.
  absl::Status Call(const UnaryCall& call);

  // RetryDelay with this connection's jitter; nullopt also when `attempt` is past the last retry.
  std::optional<absl::Duration> DelayBeforeRetry(absl::StatusCode code, const RetryAdvice& advice,
                                                 int attempt);

  // "ADDRESS: message", with the call's code.
  absl::Status Error(const grpc::Status& status) const;

  const ConnectionOptions& options() const { return options_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  v1::EncoderService::Stub& stub() { return *stub_; }

 private:
  const ConnectionOptions options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::EncoderService::Stub> stub_;
  absl::BitGen random_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_CLIENT_CONNECTION_H_
