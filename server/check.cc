#include "server/check.h"

#include <chrono>
#include <filesystem>
#include <fstream>
#include <latch>
#include <memory>
#include <system_error>
#include <vector>

#include "fmt/format.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "kernels/status_macros.h"
#include "server/encoder_service.h"
#include "server/host_port.h"
#include "server/model_loader.h"
#include "server/state_collector.h"

namespace flashsvd {
namespace {

constexpr std::chrono::seconds kHealthcheckTimeout{3};

absl::Status RunOneToken(Model& model) {
  Encoding encoding;
  const EncodeOptions options{.max_tokens = model.config().max_seq_length,
                              .add_special_tokens = false};
  FSVD_RETURN_IF_ERROR(model.tokenizer().Encode("a", options, &encoding));
  std::vector<float> row(model.config().hidden);
  std::latch computed(1);
  RequestResult outcome;
  const auto request = std::make_shared<Request>();
  request->input.Append({encoding.ids.data(), 1}, {encoding.type_ids.data(), 1});
  request->output = reinterpret_cast<std::byte*>(row.data());
  request->row_stride_bytes = sizeof(float) * row.size();
  request->done = [&](const RequestResult& result) {
    outcome = result;
    computed.count_down();
  };
  FSVD_RETURN_IF_ERROR(model.engine().Submit(request));
  computed.wait();
  return outcome.status;
}

std::string Row(const std::string& name, const std::string& value) {
  return fmt::format("  {:<34}{:>16}\n", name, value);
}

std::string MibRow(const std::string& name, size_t bytes) {
  return Row(name, fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20)));
}

std::string Describe(Model& model) {
  const ModelConfig& config = model.config();
  const MemoryInfo& memory = model.memory();
  const EngineOptions& engine = model.options().engine;
  std::string table = fmt::format(
      "model {} ({})\n  {}, {} layers, {} dimensions, {} heads; layout {}, rank {}; {} in {}\n",
      model.name(), model.options().dir, config.model_type, config.layers, config.hidden,
      config.heads, LayoutLabel(model.modules()), RankLabel(model.modules()),
      model.backend().name(), DTypeName(model.backend().dtype()));
  table += MibRow("weights", memory.weights);
  table += MibRow("  the dense model's", memory.weights_dense_equivalent);
  table += MibRow("activations, all slots", memory.arenas);
  table += MibRow("  dense and unfused", memory.activation_dense_unfused);
  table += MibRow("input and output, all slots", memory.io);
  table += MibRow("sum", memory.weights + memory.arenas + memory.io);
  table += memory.budget == 0 ? Row("budget", "none") : MibRow("budget", memory.budget);
  table += Row("slots", fmt::format("{}", engine.num_slots));
  table += Row("tokens of an input, at most", fmt::format("{}", config.max_seq_length));
  table += Row("tokens of a batch, at most", fmt::format("{}", engine.batcher.max_batch_tokens));
  table +=
      Row("sequences of a batch, at most", fmt::format("{}", engine.batcher.max_batch_sequences));
  table += MibRow("used by one token", model.engine().activation_high_water_bytes());
  for (const std::string& warning : model.warnings()) table += fmt::format("  note: {}\n", warning);
  return table;
}

// The gRPC port of a port file.
absl::StatusOr<int> ReadPortFile(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  int port = 0;
  if (file >> word >> port && word == "grpc" && port > 0 && port < 65536) return port;
  return absl::UnavailableError(fmt::format("port_file: {} names no gRPC port", path));
}

// Where a server that listens on `listen` is reached from its own machine.
std::string LocalHost(const std::string& listen) {
  if (listen == "0.0.0.0") return "127.0.0.1";
  if (listen == "::" || listen == "[::]") return "::1";
  return listen;
}

}  // namespace

absl::StatusOr<std::string> RunCheck(const ServerConfig& config) {
  SystemClock clock;
  Metrics metrics;
  ModelRegistry registry;
  FSVD_RETURN_IF_ERROR(LoadModels(config, clock, metrics, &registry));
  std::string table;
  size_t total = 0;
  for (const ServedModel& served : registry.All()) {
    Model& model = *served.model;
    if (const absl::Status status = RunOneToken(model); !status.ok()) {
      return absl::Status(status.code(), fmt::format("model {}: one token: {}", model.name(),
                                                     std::string(status.message())));
    }
    table += Describe(model);
    total += model.memory().weights + model.memory().arenas + model.memory().io;
  }
  if (config.models.size() > 1) table += "all models\n" + MibRow("sum", total);
  return table;
}

absl::Status RunHealthcheck(const ServerConfig& config) {
  int port = config.port;
  if (!config.port_file.empty() && port == 0) {
    FSVD_ASSIGN_OR_RETURN(port, ReadPortFile(config.port_file));
  }
  const std::string address = HostPort(LocalHost(config.listen), port);
  const auto stub = grpc::health::v1::Health::NewStub(
      grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kHealthcheckTimeout);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(kEncoderServiceName);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, request, &response);
  if (!status.ok()) {
    return absl::UnavailableError(fmt::format("{}: {}", address, status.error_message()));
  }
  if (response.status() != grpc::health::v1::HealthCheckResponse::SERVING) {
    return absl::UnavailableError(
        fmt::format("{}: {}", address,
                    grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status())));
  }
  return absl::OkStatus();
}

absl::Status WritePortFile(const std::string& path, int port, int metrics_port) {
  const std::string temporary = path + ".tmp";
  std::ofstream file(temporary, std::ios::trunc);
  file << fmt::format("grpc {}\n", port);
  if (metrics_port >= 0) file << fmt::format("metrics {}\n", metrics_port);
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(temporary, path, error);
  if (!file || error) {
    return absl::InvalidArgumentError(fmt::format("port_file: cannot write {}", path));
  }
  return absl::OkStatus();
}

}  // namespace flashsvd
