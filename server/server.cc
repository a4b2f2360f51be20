#include "server/server.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "fmt/format.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "kernels/status_macros.h"
#include "server/host_port.h"
#include "server/model_loader.h"
#include "spdlog/spdlog.h"

namespace flashsvd {
namespace {

// How long new calls are still answered with UNAVAILABLE once nothing is left to do. gRPC's
// Shutdown cancels what arrives while it runs, and clients do not retry CANCELLED.
constexpr absl::Duration kLinger = absl::Milliseconds(100);
// For answers that are written but still on their way.
constexpr absl::Duration kGoodbye = absl::Seconds(1);

RequestLimits LimitsOf(const ServerConfig& config) {
  RequestLimits limits;
  limits.max_inputs_per_request = config.max_inputs_per_request;
  limits.max_text_bytes = config.max_text_bytes;
  limits.max_response_bytes = config.max_message_bytes;
  limits.stream_window = config.stream_window;
  limits.stream_window_tokens = int64_t{2} * config.max_batch_tokens;
  limits.stream_window_bytes = config.max_queue_bytes;
  limits.default_deadline = config.default_deadline;
  return limits;
}

WorkerPool::Options WorkersOf(const ServerConfig& config) {
  WorkerPool::Options options;
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  options.num_threads =
      config.tokenizer_threads != 0 ? config.tokenizer_threads : std::clamp(cores - 1, 1, 4);
  options.max_jobs = config.max_queue_requests;
  options.max_bytes = config.max_queue_bytes;
  return options;
}

// gRPC takes milliseconds in an int; INT_MAX is "never".
int ArgumentMs(absl::Duration duration) {
  return static_cast<int>(
      std::min<int64_t>(absl::ToInt64Milliseconds(duration), std::numeric_limits<int>::max()));
}

void SetConnectionOptions(const ServerConfig& config, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(static_cast<int>(config.max_message_bytes));
  if (config.max_connection_age > absl::ZeroDuration()) {
    builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                                ArgumentMs(config.max_connection_age));
    builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
                                ArgumentMs(config.max_connection_age_grace));
  }
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              ArgumentMs(config.min_ping_interval));
  // Two servers on one port would be a misconfiguration that goes unnoticed.
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerConfig& config,
                                                      const Clock& clock) {
  std::unique_ptr<Server> server(new Server(config, clock));
  FSVD_RETURN_IF_ERROR(server->ListenMetrics());
  FSVD_RETURN_IF_ERROR(server->Listen());
  return server;
}

Server::Server(const ServerConfig& config, const Clock& clock)
    : config_(config),
      clock_(clock),
      state_(std::make_shared<StateCollector>(models_, DeviceLabel(config), config.memory_budget)),
      workers_(WorkersOf(config)),
      health_({"", kEncoderServiceName}),
      encoder_(ServiceContext{LimitsOf(config), clock, models_, metrics_, workers_, gate_}) {}

Server::~Server() { Drain(); }

absl::Status Server::ListenMetrics() {
  if (config_.metrics_port < 0) return absl::OkStatus();
  FSVD_ASSIGN_OR_RETURN(endpoint_, MetricsEndpoint::Start(config_.listen, config_.metrics_port,
                                                          {metrics_.registry(), state_}));
  return absl::OkStatus();
}

absl::Status Server::Listen() {
  // Our own health service takes the place of gRPC's.
  grpc::EnableDefaultHealthCheckService(false);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  SetConnectionOptions(config_, &builder);
  const std::string address = HostPort(config_.listen, config_.port);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(&encoder_);
  builder.RegisterService(&health_);
  grpc_ = builder.BuildAndStart();
  if (grpc_ == nullptr || port_ == 0) {
    return absl::UnavailableError(
        fmt::format("port: cannot listen on {} (is the port taken?)", address));
  }
  return absl::OkStatus();
}

absl::Status Server::LoadModels() {
  FSVD_RETURN_IF_ERROR(flashsvd::LoadModels(config_, clock_, metrics_, &models_));
  health_.SetServing("", true);
  health_.SetServing(kEncoderServiceName, true);
  metrics_.SetReady(true);
  return absl::OkStatus();
}

int Server::metrics_port() const { return endpoint_ == nullptr ? -1 : endpoint_->port(); }

absl::Status Server::DeviceHealth() const {
  for (const ServedModel& served : models_.All()) {
    FSVD_RETURN_IF_ERROR(served.model->engine().health());
  }
  return absl::OkStatus();
}

void Server::ReportFailure() {
  metrics_.SetReady(false);
  health_.SetServing("", false);
  health_.SetServing(kEncoderServiceName, false);
}

void Server::ReportDraining() {
  metrics_.SetReady(false);
  health_.SetServing(kEncoderServiceName, false);
}

void Server::Drain() {
  MutexLock lock(&drain_mu_);
  if (drained_) return;
  drained_ = true;
  ReportDraining();
  encoder_.DrainStreams();
  if (!gate_.CloseAndWait(config_.drain_timeout)) {
    spdlog::warn("calls were still running after {}; cancelling them",
                 absl::FormatDuration(config_.drain_timeout));
  }
  absl::SleepFor(kLinger);
  // Watches have no end of their own, and would keep Shutdown waiting until its deadline.
  health_.Shutdown();
  if (grpc_ != nullptr) grpc_->Shutdown(absl::ToChronoTime(absl::Now() + kGoodbye));
  for (const ServedModel& served : models_.All()) served.model->engine().Drain();
  endpoint_.reset();
}

std::string Server::RenderMetrics() const {
  return flashsvd::RenderMetrics({metrics_.registry(), state_});
}

}  // namespace flashsvd
