#ifndef FLASHSVD_SERVER_MODEL_LOADER_H_
#define FLASHSVD_SERVER_MODEL_LOADER_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/clock.h"
#include "runtime/model_registry.h"
#include "server/config.h"
#include "server/metrics.h"

namespace flashsvd {

// `dtype: auto` and `device: auto` resolved for this machine.
absl::StatusOr<BackendOptions> ResolveBackend(const ServerConfig& config);

// The value of the metrics' label `device`: "cpu", "cuda:0", "cuda:0,1".
std::string DeviceLabel(const ServerConfig& config);

// Loads the models in order, each within what the earlier ones left of memory_budget, and adds them
// to `registry`. Logs a line per model. Errors name model, file and field. `clock` and `metrics`
// must outlive the models.
absl::Status LoadModels(const ServerConfig& config, const Clock& clock, Metrics& metrics,
                        ModelRegistry* registry);

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_MODEL_LOADER_H_
