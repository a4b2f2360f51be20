// flashsvd-server: flags -> config -> server -> serve until a signal comes.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "runtime/clock.h"
#include "server/check.h"
#include "server/config.h"
#include "server/lifecycle.h"
#include "server/logging.h"
#include "server/server.h"
#include "server/version.h"
#include "spdlog/spdlog.h"

namespace flashsvd {
namespace {

constexpr int kUsageError = 2;

// What a user sees of an error is one line.
std::string OneLine(const absl::Status& status) {
  std::string line(status.message());
  std::replace(line.begin(), line.end(), '\n', ' ');
  return line;
}

int Fail(const absl::Status& status, int exit_status) {
  std::fprintf(stderr, "flashsvd-server: %s\n", OneLine(status).c_str());
  return exit_status;
}

int Check(const ServerConfig& config) {
  SetUpLogging("text", "off");
  const absl::StatusOr<std::string> table = RunCheck(config);
  if (!table.ok()) return Fail(table.status(), 1);
  std::fputs(table->c_str(), stdout);
  return 0;
}

int Healthcheck(const ServerConfig& config) {
  SetUpLogging("text", "off");
  const absl::Status status = RunHealthcheck(config);
  if (!status.ok()) return Fail(status, 1);
  std::puts("SERVING");
  return 0;
}

absl::StatusOr<std::unique_ptr<Server>> StartServer(const ServerConfig& config,
                                                    const Clock& clock) {
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(config, clock);
  if (!server.ok()) return server;
  const int port = (*server)->port(), metrics_port = (*server)->metrics_port();
  spdlog::info("flashsvd-server {} listens on {}, gRPC port {}, metrics port {}", kVersion,
               config.listen, port, metrics_port < 0 ? "none" : std::to_string(metrics_port));
  if (!config.port_file.empty()) {
    const absl::Status status = WritePortFile(config.port_file, port, metrics_port);
    if (!status.ok()) return status;
  }
  const absl::Status loaded = (*server)->LoadModels();
  if (!loaded.ok()) return loaded;
  return server;
}

int Serve(const ServerConfig& config) {
  ShutdownSignals signals;
  SetUpLogging(config.log_format, config.log_level);
  const SystemClock clock;
  const absl::StatusOr<std::unique_ptr<Server>> server = StartServer(config, clock);
  if (!server.ok()) {
    spdlog::error("{}", OneLine(server.status()));
    return 1;
  }
  signals.Arm();
  spdlog::info("ready: {} model(s)", config.models.size());
  return ServeUntilShutdown(**server, signals, config.drain_delay);
}

int Main(int argc, char** argv) {
  const absl::StatusOr<CommandLine> command = ParseCommandLine(argc, argv);
  if (!command.ok()) return Fail(command.status(), kUsageError);
  switch (command->mode) {
    case CommandLine::Mode::kPrint:
      std::fputs(command->text.c_str(), stdout);
      return 0;
    case CommandLine::Mode::kCheck:
      return Check(command->config);
    case CommandLine::Mode::kHealthcheck:
      return Healthcheck(command->config);
    case CommandLine::Mode::kServe:
      return Serve(command->config);
  }
  return kUsageError;
}

}  // namespace
}  // namespace flashsvd

int main(int argc, char** argv) { return flashsvd::Main(argc, argv); }
