#include <algorithm>
#include <memory>

#include "absl/time/clock.h"
#include "fmt/format.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "kernels/status_macros.h"
#include "tools/client/commands.h"

namespace flashsvd {
namespace {

using grpc::health::v1::HealthCheckResponse;

constexpr absl::Duration kPollInterval = absl::Milliseconds(50);

absl::StatusOr<HealthCheckResponse::ServingStatus> Check(Connection& connection,
                                                         const std::string& service,
                                                         absl::Duration timeout) {
  const std::unique_ptr<grpc::health::v1::Health::Stub> stub =
      grpc::health::v1::Health::NewStub(connection.channel());
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, request, &response);
  if (!status.ok()) return connection.Error(status);
  return response.status();
}

}  // namespace

absl::Status RunHealth(Connection& connection, const HealthFlags& flags) {
  const absl::Time give_up = absl::Now() + flags.wait;
  for (;;) {
    const absl::Duration timeout =
        flags.wait > absl::ZeroDuration()
            ? std::max(kPollInterval, std::min(give_up - absl::Now(), connection.options().timeout))
            : connection.options().timeout;
    const absl::StatusOr<HealthCheckResponse::ServingStatus> state =
        Check(connection, flags.service, timeout);
    const bool serving = state.ok() && *state == HealthCheckResponse::SERVING;
    if (serving || absl::Now() + kPollInterval > give_up) {
      FSVD_RETURN_IF_ERROR(state.status());
      const std::string& name = HealthCheckResponse::ServingStatus_Name(*state);
      if (!flags.quiet) fmt::print("{}\n", name);
      if (serving) return absl::OkStatus();
      return absl::UnavailableError(fmt::format("{}: {} is {}", connection.options().address,
                                                flags.service.empty() ? "server" : flags.service,
                                                name));
    }
    absl::SleepFor(kPollInterval);
  }
}

}  // namespace flashsvd
