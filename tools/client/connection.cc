#include "tools/client/connection.h"

#include <utility>

#include "absl/time/clock.h"
#include "fmt/format.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"

namespace flashsvd {
namespace {

bool IsLoopback(const std::string& address) {
  return address.starts_with("127.") || address.starts_with("localhost") ||
         address.starts_with("[::1]") || address.starts_with("unix:");
}

}  // namespace

Connection::Connection(ConnectionOptions options) : options_(std::move(options)) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  // This client reconnects and tries again by its own rules; gRPC's would hide the reason.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // gRPC sends everything through $http_proxy, which knows no server on this machine.
  if (IsLoopback(options_.address)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  channel_ =
      grpc::CreateCustomChannel(options_.address, grpc::InsecureChannelCredentials(), arguments);
  stub_ = v1::EncoderService::NewStub(channel_);
}

absl::Status Connection::Call(const UnaryCall& call) {
  for (int attempt = 0;; ++attempt) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + options_.timeout));
    const grpc::Status status = call(&context);
    if (status.ok()) return absl::OkStatus();
    const std::optional<absl::Duration> delay =
        DelayBeforeRetry(static_cast<absl::StatusCode>(status.error_code()),
                         RetryAdviceOf(context, status), attempt);
    if (!delay) return Error(status);
    absl::SleepFor(*delay);
  }
}

std::optional<absl::Duration> Connection::DelayBeforeRetry(absl::StatusCode code,
                                                           const RetryAdvice& advice, int attempt) {
  if (attempt >= options_.retries) return std::nullopt;
  return RetryDelay(code, advice, attempt, absl::Uniform(random_, 0.0, 1.0));
}

absl::Status Connection::Error(const grpc::Status& status) const {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      fmt::format("{}: {}", options_.address, status.error_message()));
}

}  // namespace flashsvd
