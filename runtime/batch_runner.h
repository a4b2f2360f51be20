#ifndef FLASHSVD_RUNTIME_BATCH_RUNNER_H_
#define FLASHSVD_RUNTIME_BATCH_RUNNER_H_

#include <cstddef>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "runtime/encoder.h"
#include "runtime/packed_batch.h"

namespace flashsvd {

// What an engine's slot computes with. Used by one thread at a time.
class BatchRunner {
 public:
  virtual ~BatchRunner() = default;
  // Runs one batch within the batcher's limits. Returns the activation bytes it used. Internal or
  // Unknown mean that the device cannot be used any more; any other error fails this batch alone.
  virtual absl::StatusOr<size_t> Run(const PackedBatch& batch) = 0;
  // [S, d] float32 of the last successful Run.
  virtual std::span<const float> output() const = 0;
};

// Runs the encoder in a slot of its own, allocated here for batches within `limit`. The encoder
// must outlive the runner.
absl::StatusOr<std::unique_ptr<BatchRunner>> MakeEncoderRunner(const Encoder& encoder,
                                                               const BatchShape& limit);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_BATCH_RUNNER_H_
