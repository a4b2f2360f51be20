#include "kernels/backend_factory.h"

#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/reference.h"

namespace flashsvd {

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options) {
  if (options.device == "cpu" || options.device == "auto") {
    return CpuBackend::Create(options.dtype, options.num_threads, options.cpu_isa);
  }
  if (options.device == "reference") return ReferenceBackend::Create(options.dtype);
  return absl::InvalidArgumentError("device is \"" + options.device +
                                    "\"; this build has cpu, reference and auto");
}

}  // namespace flashsvd
