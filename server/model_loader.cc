#include "server/model_loader.h"

#include <exception>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "kernels/cpu/isa.h"
#include "kernels/status_macros.h"
#include "server/state_collector.h"
#include "spdlog/spdlog.h"

namespace flashsvd {
namespace {

double Mib(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// What is left of the budget; 0 means no limit to Model::Load, so nothing left is an error here.
absl::StatusOr<size_t> BudgetLeft(const ServerConfig& config, const ModelRegistry& registry) {
  const auto budget = static_cast<size_t>(config.memory_budget);
  if (budget == 0) return size_t{0};
  size_t used = 0;
  for (const ServedModel& served : registry.All()) {
    used += served.model->memory().fullest_device;
  }
  if (used >= budget) {
    return absl::InvalidArgumentError(
        fmt::format("memory_budget: the models before it use all of {}; lower max_batch_tokens",
                    FormatBytes(config.memory_budget)));
  }
  return budget - used;
}

ModelOptions MakeOptions(const ServerConfig& config, const ModelSpec& spec,
                         const BackendOptions& backend, size_t budget) {
  ModelOptions options;
  options.name = spec.name;
  options.dir = spec.dir;
  options.backend = backend;
  options.memory_budget_bytes = budget;
  if (backend.device == "cuda") options.devices = config.devices;
  options.engine.num_slots = config.slots > 0 ? config.slots : backend.device == "cuda" ? 2 : 1;
  BatcherOptions& batcher = options.engine.batcher;
  batcher.max_batch_tokens = config.max_batch_tokens;
  batcher.max_batch_sequences = config.max_batch_sequences;
  batcher.max_queue_requests = config.max_queue_requests;
  batcher.max_queue_tokens = config.max_queue_tokens != 0 ? config.max_queue_tokens
                                                          : int64_t{16} * config.max_batch_tokens;
  batcher.max_queue_bytes = config.max_queue_bytes;
  batcher.max_delay = absl::Microseconds(config.max_delay_us);
  return options;
}

absl::StatusOr<std::shared_ptr<Model>> LoadOne(const ModelOptions& options, const Clock& clock,
                                               Observer& observer) {
  std::error_code error;
  if (!std::filesystem::is_directory(options.dir, error)) {
    return absl::NotFoundError(fmt::format("{}: no such directory", options.dir));
  }
  try {
    return Model::Load(options, clock, observer);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(fmt::format("{}: not enough memory", options.dir));
  } catch (const std::exception& failure) {
    return absl::InternalError(fmt::format("{}: {}", options.dir, failure.what()));
  }
}

void LogModel(Model& model) {
  const ModelConfig& config = model.config();
  const MemoryInfo& memory = model.memory();
  const EngineOptions& engine = model.options().engine;
  for (const std::string& warning : model.warnings()) {
    spdlog::warn("model {}: {}", model.name(), warning);
  }
  spdlog::info(
      "model {}: {}, {} layers, {} dimensions, {} tokens at most; {}, {}; layout {}, rank {}; "
      "weights {:.1f} MiB (dense {:.1f}), activations {:.1f} MiB in {} slot(s) (dense, unfused "
      "{:.1f}), i/o {:.1f} MiB; batches of at most {} tokens, {} sequences; loaded in {:.2f} s",
      model.name(), config.model_type, config.layers, config.hidden, config.max_seq_length,
      model.backend().name(), DTypeName(model.backend().dtype()), LayoutLabel(model.modules()),
      RankLabel(model.modules()), Mib(memory.weights), Mib(memory.weights_dense_equivalent),
      Mib(memory.arenas), engine.num_slots, Mib(memory.activation_dense_unfused), Mib(memory.io),
      engine.batcher.max_batch_tokens, engine.batcher.max_batch_sequences,
      absl::ToDoubleSeconds(model.load_time()));
}

}  // namespace

absl::StatusOr<BackendOptions> ResolveBackend(const ServerConfig& config) {
  BackendOptions options;
  options.device = ResolveDevice(config.device, config.dtype == "f32");
  options.num_threads = config.threads;
  if (config.cpu_isa != "auto") options.cpu_isa = config.cpu_isa;
  if (config.dtype != "auto") {
    options.dtype = config.dtype == "f16"    ? DType::kF16
                    : config.dtype == "bf16" ? DType::kBF16
                                             : DType::kF32;
  } else if (options.device == "cuda") {
    options.dtype = DType::kBF16;
  } else if (options.device == "cpu") {
    FSVD_ASSIGN_OR_RETURN(const std::string isa, SelectIsa(options.cpu_isa));
    const bool is_native = isa == "avx512_bf16" || isa == "amx_bf16";
    options.dtype = is_native ? DType::kBF16 : DType::kF32;
  }
  return options;
}

std::string DeviceLabel(const ServerConfig& config) {
  const std::string device = ResolveDevice(config.device, config.dtype == "f32");
  return device == "cuda" ? fmt::format("cuda:{}", fmt::join(config.devices, ",")) : device;
}

absl::Status LoadModels(const ServerConfig& config, const Clock& clock, Metrics& metrics,
                        ModelRegistry* registry) {
  FSVD_ASSIGN_OR_RETURN(const BackendOptions backend, ResolveBackend(config));
  for (const ModelSpec& spec : config.models) {
    FSVD_ASSIGN_OR_RETURN(const size_t budget, BudgetLeft(config, *registry));
    const std::shared_ptr<ModelMetrics> observer = metrics.AddModel(spec.name, DeviceLabel(config));
    absl::StatusOr<std::shared_ptr<Model>> model =
        LoadOne(MakeOptions(config, spec, backend, budget), clock, *observer);
    if (!model.ok()) {
      return absl::Status(
          model.status().code(),
          fmt::format("model {}: {}", spec.name, std::string(model.status().message())));
    }
    LogModel(**model);
    FSVD_RETURN_IF_ERROR(registry->Add({observer, *std::move(model)}));
  }
  return absl::OkStatus();
}

}  // namespace flashsvd
