#ifndef FLASHSVD_SERVER_GRPC_STATUS_H_
#define FLASHSVD_SERVER_GRPC_STATUS_H_

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"

// absl::Status on its way to a client. Details (google.rpc.ErrorInfo, google.rpc.RetryInfo) travel
// as payloads of the absl::Status, keyed by their type URL, and become the details of the
// google.rpc.Status that the trailer carries.
namespace flashsvd {

// INVALID_ARGUMENT "field: description", the field also in ErrorInfo.metadata["field"].
absl::Status InvalidField(const std::string& field, std::string_view description);

// `status` with ErrorInfo.reason. Without one, ToGrpcStatus takes a reason from the code.
absl::Status WithReason(absl::Status status, std::string_view reason);

// `status` with RetryInfo: the same call may succeed after `delay`.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);
std::optional<absl::Duration> RetryDelay(const absl::Status& status);

grpc::Status ToGrpcStatus(const absl::Status& status);

// Adds the trailer "grpc-retry-pushback-ms", which gRPC's own retries obey, if `status` has a
// RetryInfo. Call before the RPC is finished.
void AddRetryPushback(const absl::Status& status, grpc::ServerContextBase* context);

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_GRPC_STATUS_H_
