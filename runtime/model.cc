#include "runtime/model.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <span>
#include <utility>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "runtime/memory_budget.h"

namespace flashsvd {
namespace {

// The linear modules of a BERT layer, with their shapes.
struct ModuleShape {
  const char* name;
  int in;
  int out;
};

std::vector<ModuleShape> LayerModules(const ModelConfig& c) {
  return {
      {"attention.self.query", c.hidden, c.hidden}, {"attention.self.key", c.hidden, c.hidden},
      {"attention.self.value", c.hidden, c.hidden}, {"attention.output.dense", c.hidden, c.hidden},
      {"intermediate.dense", c.hidden, c.ffn},      {"output.dense", c.ffn, c.hidden}};
}

// From the checkpoint's metadata: layouts, ranks and sizes, without reading weights.
std::vector<ModuleInfo> DescribeModules(const Checkpoint& checkpoint, const ModelConfig& config) {
  std::vector<ModuleInfo> modules;
  for (int layer = 0; layer < config.layers; ++layer) {
    for (const ModuleShape& shape : LayerModules(config)) {
      ModuleInfo info{.name = fmt::format("encoder.layer.{}.{}", layer, shape.name)};
      info.dense_parameters = static_cast<int64_t>(shape.in) * shape.out;
      info.parameters = info.dense_parameters;
      if (const auto it = checkpoint.lowrank_modules().find(info.name);
          it != checkpoint.lowrank_modules().end()) {
        info.layout = it->second.layout;
        info.rank = it->second.rank;
        const int64_t heads = info.layout == LinearLayout::kPerHead ? config.heads : 1;
        // The shared basis is counted with the query.
        const bool basis = info.layout != LinearLayout::kQkvShared || info.name.ends_with(".query");
        info.parameters = info.rank * (heads * (basis ? shape.in : 0) + shape.out);
      }
      modules.push_back(std::move(info));
    }
  }
  return modules;
}

// A tokenizer and a model that do not belong together would fail on every request.
absl::Status CheckTokenizer(const Tokenizer& tokenizer, const ModelConfig& config,
                            const std::string& dir) {
  if (tokenizer.vocab_size() > config.vocab) {
    return absl::InvalidArgumentError(
        fmt::format("{}: the tokenizer has {} tokens, config.json's vocab_size is {}", dir,
                    tokenizer.vocab_size(), config.vocab));
  }
  if (tokenizer.num_special_tokens() >= config.max_seq_length) {
    return absl::InvalidArgumentError(
        fmt::format("{}: the tokenizer adds {} special tokens, the longest input has {} tokens",
                    dir, tokenizer.num_special_tokens(), config.max_seq_length));
  }
  Encoding encoding;
  FSVD_RETURN_IF_ERROR(tokenizer.Encode("a", {.max_tokens = config.max_seq_length}, &encoding));
  for (const int32_t type : encoding.type_ids) {
    if (type >= config.type_vocab) {
      return absl::InvalidArgumentError(
          fmt::format("{}: the tokenizer gives type id {}, config.json's type_vocab_size is {}",
                      dir, type, config.type_vocab));
    }
  }
  return absl::OkStatus();
}

std::string DirectoryName(const std::string& dir) {
  const std::filesystem::path path = std::filesystem::path(dir).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

// Replicas on the device that has most of them: one may come twice.
int MostOnOneDevice(std::span<const int> devices) {
  std::map<int, int> replicas;
  int most = 1;
  for (const int device : devices) most = std::max(most, ++replicas[device]);
  return most;
}

// Fills in the batch limits and the slots that the budget allows.
absl::Status ResolveLimits(const Encoder& encoder, int replicas_of_device, ModelOptions* options) {
  BatcherOptions& batcher = options->engine.batcher;
  batcher.max_seqlen = encoder.config().max_seq_length;
  if (batcher.max_batch_tokens < batcher.max_seqlen) {
    return absl::InvalidArgumentError(
        fmt::format("max_batch_tokens: {} is less than one input of {} tokens",
                    batcher.max_batch_tokens, batcher.max_seqlen));
  }
  if (options->engine.num_slots < 1) {
    return absl::InvalidArgumentError(
        fmt::format("slots: {}, must be at least 1", options->engine.num_slots));
  }
  FSVD_ASSIGN_OR_RETURN(
      const BatchLimits limits,
      FitToBudget(encoder,
                  {.max_batch_tokens = batcher.max_batch_tokens,
                   .max_batch_sequences = batcher.max_batch_sequences,
                   .num_slots = options->engine.num_slots},
                  batcher.max_seqlen, options->memory_budget_bytes, replicas_of_device));
  batcher.max_batch_tokens = limits.max_batch_tokens;
  batcher.max_batch_sequences = limits.max_batch_sequences;
  options->engine.num_slots = limits.num_slots;
  return absl::OkStatus();
}

MemoryInfo DescribeMemory(const Encoder& encoder, const ModelOptions& options, size_t replicas,
                          int replicas_of_device) {
  const BatcherOptions& batcher = options.engine.batcher;
  const BatchLimits limits{.max_batch_tokens = batcher.max_batch_tokens,
                           .max_batch_sequences = batcher.max_batch_sequences,
                           .num_slots = options.engine.num_slots};
  const size_t slots = replicas * limits.num_slots;
  MemoryInfo memory;
  memory.weights = replicas * encoder.weight_bytes().resident;
  memory.weights_dense_equivalent = replicas * encoder.weight_bytes().dense_equivalent;
  memory.activation_per_slot =
      encoder
          .Plan(encoder.Limit(limits.max_batch_tokens, limits.max_batch_sequences,
                              batcher.max_seqlen))
          .total_bytes;
  memory.arenas = slots * memory.activation_per_slot;
  memory.activation_dense_unfused =
      slots * DenseUnfusedActivationBytes(limits.max_batch_tokens, encoder.config().hidden,
                                          encoder.config().ffn,
                                          DTypeBytes(encoder.backend().dtype()));
  memory.io = slots * SlotIoBytes(encoder, limits, batcher.max_seqlen);
  memory.fullest_device =
      (memory.weights + memory.arenas + memory.io) / replicas * replicas_of_device;
  memory.budget = options.memory_budget_bytes;
  return memory;
}

}  // namespace

Model::~Model() = default;

int64_t Model::num_allocations() const {
  int64_t allocations = 0;
  for (const Replica& replica : replicas_) allocations += replica.backend->num_allocations();
  return allocations;
}

absl::StatusOr<std::shared_ptr<Model>> Model::Load(const ModelOptions& options, const Clock& clock,
                                                   Observer& observer) {
  const absl::Time start = clock.Now();
  auto model = std::shared_ptr<Model>(new Model);
  model->options_ = options;
  if (model->options_.name.empty()) model->options_.name = DirectoryName(options.dir);

  FSVD_ASSIGN_OR_RETURN(model->config_, LoadModelConfig(options.dir));
  FSVD_ASSIGN_OR_RETURN(model->tokenizer_, LoadTokenizer(options.dir));
  FSVD_RETURN_IF_ERROR(CheckTokenizer(*model->tokenizer_, model->config_, options.dir));
  FSVD_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                        Checkpoint::Open(options.dir));
  model->warnings_ = checkpoint->Warnings();
  model->modules_ = DescribeModules(*checkpoint, model->config_);

  std::vector<int> devices = options.devices;
  if (devices.empty()) devices.push_back(options.backend.device_index);
  std::vector<const Encoder*> encoders;
  for (const int device : devices) {
    BackendOptions backend = options.backend;
    backend.device_index = device;
    Replica replica;
    FSVD_ASSIGN_OR_RETURN(replica.backend, MakeBackend(backend));
    FSVD_ASSIGN_OR_RETURN(replica.encoder, Encoder::Create(*checkpoint, model->config_,
                                                           *replica.backend, options.encoder));
    encoders.push_back(replica.encoder.get());
    model->replicas_.push_back(std::move(replica));
  }
  const int on_one = MostOnOneDevice(devices);
  FSVD_RETURN_IF_ERROR(ResolveLimits(model->encoder(), on_one, &model->options_));
  model->memory_ = DescribeMemory(model->encoder(), model->options_, devices.size(), on_one);
  FSVD_ASSIGN_OR_RETURN(model->engine_,
                        Engine::Create(encoders, model->options_.engine, clock, observer));
  model->load_allocations_ = model->num_allocations();
  model->load_time_ = clock.Now() - start;
  return model;
}

}  // namespace flashsvd
