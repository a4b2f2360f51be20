#ifndef FLASHSVD_RUNTIME_MODEL_H_
#define FLASHSVD_RUNTIME_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/backend_factory.h"
#include "runtime/clock.h"
#include "runtime/encoder.h"
#include "runtime/engine.h"
#include "runtime/model_config.h"
#include "runtime/observer.h"
#include "runtime/tokenizer.h"
#include "runtime/weights.h"

namespace flashsvd {

struct ModelOptions {
  std::string name;  // default: the directory's last component
  std::string dir;
  BackendOptions backend;
  // Devices to compute on, each with a replica of the weights and engine.num_slots slots; they
  // share one queue. Empty: backend.device_index alone. A device may come twice.
  std::vector<int> devices;
  EncoderOptions encoder;
  EngineOptions engine;
  // Weights + arenas + I/O buffers of all replicas of one device, in bytes; 0: no limit. From it
  // follow max_batch_tokens and the slots; one that does not hold a single longest sequence is
  // InvalidArgument, with the smallest that would do.
  size_t memory_budget_bytes = 0;
};

// Ranks and layout of one linear module, for GetModel.
struct ModuleInfo {
  std::string name;
  LinearLayout layout = LinearLayout::kDense;
  int rank = 0;
  int64_t parameters = 0;
  int64_t dense_parameters = 0;
};

// Where the model's memory is, in bytes, on all its devices together.
struct MemoryInfo {
  size_t weights = 0;
  size_t weights_dense_equivalent = 0;
  size_t arenas = 0;  // planned activations of all slots at the batch limits
  size_t activation_per_slot = 0;
  size_t activation_dense_unfused = 0;  // what the dense, unfused forward needs at the same limits
  size_t io = 0;
  size_t fullest_device = 0;  // weights + arenas + io of the device that has most replicas
  size_t budget = 0;          // of one device; 0: none
};

// A served model: config, tokenizer, encoder and the engine that runs it. Thread-safe. Destruction
// drains the engine first.
class Model {
 public:
  // Reads the directory, plans memory, allocates everything. Errors name file and field.
  // `clock` and `observer` must outlive the model.
  static absl::StatusOr<std::shared_ptr<Model>> Load(const ModelOptions& options,
                                                     const Clock& clock, Observer& observer);
  ~Model();

  const std::string& name() const { return options_.name; }
  // The options as resolved: name, batch limits and slots filled in.
  const ModelOptions& options() const { return options_; }
  const ModelConfig& config() const { return config_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  // Those of the first replica; all are alike but for their device.
  const Encoder& encoder() const { return *replicas_.front().encoder; }
  const Backend& backend() const { return *replicas_.front().backend; }
  int num_replicas() const { return static_cast<int>(replicas_.size()); }
  Engine& engine() { return *engine_; }
  const std::vector<ModuleInfo>& modules() const { return modules_; }
  const MemoryInfo& memory() const { return memory_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  absl::Duration load_time() const { return load_time_; }
  // Device allocations made by Load, and since: the memory contract is that the latter is zero.
  int64_t load_allocations() const { return load_allocations_; }
  int64_t serve_allocations() const { return num_allocations() - load_allocations_; }

 private:
  struct Replica {
    std::unique_ptr<Backend> backend;
    std::unique_ptr<Encoder> encoder;
  };

  Model() = default;
  int64_t num_allocations() const;

  ModelOptions options_;
  ModelConfig config_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<Replica> replicas_;
  std::unique_ptr<Engine> engine_;  // destroyed first: its slot threads use all of the above
  std::vector<ModuleInfo> modules_;
  MemoryInfo memory_;
  std::vector<std::string> warnings_;
  absl::Duration load_time_;
  int64_t load_allocations_ = 0;
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_MODEL_H_
