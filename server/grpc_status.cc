#include "server/grpc_status.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/cord.h"
#include "fmt/format.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace flashsvd {
namespace {

constexpr char kErrorInfoUrl[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kRetryInfoUrl[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr char kDomain[] = "flashsvd";

google::rpc::ErrorInfo ErrorInfoOf(const absl::Status& status) {
  google::rpc::ErrorInfo info;
  info.set_domain(kDomain);
  if (const auto payload = status.GetPayload(kErrorInfoUrl)) {
    info.ParseFromString(std::string(*payload));
  }
  return info;
}

void SetErrorInfo(const google::rpc::ErrorInfo& info, absl::Status* status) {
  status->SetPayload(kErrorInfoUrl, absl::Cord(info.SerializeAsString()));
}

const char* DefaultReason(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
      return "INVALID_REQUEST";
    case absl::StatusCode::kNotFound:
      return "UNKNOWN_MODEL";
    case absl::StatusCode::kResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case absl::StatusCode::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case absl::StatusCode::kCancelled:
      return "CANCELLED";
    case absl::StatusCode::kUnavailable:
      return "NOT_READY";
    default:
      return "INTERNAL";
  }
}

}  // namespace

absl::Status InvalidField(const std::string& field, std::string_view description) {
  absl::Status status = absl::InvalidArgumentError(fmt::format("{}: {}", field, description));
  google::rpc::ErrorInfo info;
  info.set_domain(kDomain);
  info.set_reason("INVALID_FIELD");
  (*info.mutable_metadata())["field"] = field;
  SetErrorInfo(info, &status);
  return status;
}

absl::Status WithReason(absl::Status status, std::string_view reason) {
  google::rpc::ErrorInfo info = ErrorInfoOf(status);
  info.set_reason(std::string(reason));
  SetErrorInfo(info, &status);
  return status;
}

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  delay = std::max(delay, absl::ZeroDuration());
  google::rpc::RetryInfo info;
  const int64_t seconds = absl::IDivDuration(delay, absl::Seconds(1), &delay);
  info.mutable_retry_delay()->set_seconds(seconds);
  info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(delay)));
  status.SetPayload(kRetryInfoUrl, absl::Cord(info.SerializeAsString()));
  return status;
}

std::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryInfoUrl);
  google::rpc::RetryInfo info;
  if (!payload || !info.ParseFromString(std::string(*payload))) return std::nullopt;
  return absl::Seconds(info.retry_delay().seconds()) +
         absl::Nanoseconds(info.retry_delay().nanos());
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  absl::Status full = status;
  google::rpc::ErrorInfo info = ErrorInfoOf(status);
  if (info.reason().empty()) {
    info.set_reason(DefaultReason(status.code()));
    SetErrorInfo(info, &full);
  }
  google::rpc::Status details;
  details.set_code(static_cast<int>(status.code()));
  const std::string message(status.message());
  details.set_message(message);
  full.ForEachPayload([&](absl::string_view type_url, const absl::Cord& value) {
    google::protobuf::Any* any = details.add_details();
    any->set_type_url(std::string(type_url));
    any->set_value(std::string(value));
  });
  // absl's codes are gRPC's.
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message,
                      details.SerializeAsString());
}

void AddRetryPushback(const absl::Status& status, grpc::ServerContextBase* context) {
  if (const auto delay = RetryDelay(status)) {
    context->AddTrailingMetadata("grpc-retry-pushback-ms",
                                 std::to_string(absl::ToInt64Milliseconds(*delay)));
  }
}

}  // namespace flashsvd
