#ifndef FLASHSVD_RUNTIME_ENGINE_H_
#define FLASHSVD_RUNTIME_ENGINE_H_

#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/batch_runner.h"
#include "runtime/batcher.h"
#include "runtime/clock.h"
#include "runtime/encoder.h"
#include "runtime/observer.h"
#include "runtime/request.h"

namespace flashsvd {

struct EngineOptions {
  BatcherOptions batcher;
  // Batches in flight at once on each device, each with its own arena and thread.
  int num_slots = 1;
};

// What an engine must know of its model to check a request before it is queued.
struct EngineModel {
  int hidden = 0;  // floats of an output row
  int vocab = 0;
  int type_vocab = 0;
};

// One model at work: a queue and the slots that drain it. Thread-safe.
class Engine {
 public:
  // Allocates options.num_slots slots of each replica of the model (encoders that differ by their
  // device alone) and starts their threads; all draw from the one queue. All pointers and
  // references must outlive the engine. Without options.batcher.activation_bytes the encoder's own
  // plan is used.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(std::span<const Encoder* const> replicas,
                                                        const EngineOptions& options,
                                                        const Clock& clock, Observer& observer);
  // The same with one given runner per slot; options.num_slots is their number.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      std::vector<std::unique_ptr<BatchRunner>> runners, const EngineModel& model,
      const EngineOptions& options, const Clock& clock, Observer& observer);
  // Drains.
  ~Engine();

  // Queues a request; on OK its `done` runs later, exactly once. On an error `done` does not run:
  // ResourceExhausted (queue full; which limit, and its value), Unavailable (draining, or the
  // device failed), InvalidArgument (no sequence, an empty one, one longer than max_seqlen, ids
  // outside the vocabulary, in which case sequence and position are named; no room for the output).
  absl::Status Submit(std::shared_ptr<Request> request);

  // Refuses new requests, finishes every accepted one, joins the slot threads. Idempotent. Not to
  // be called from `done`.
  void Drain();

  // OK, or the error after which the device cannot be used any more. From then on nothing is
  // accepted, and what waited has failed with UNAVAILABLE.
  absl::Status health() const;
  QueueReport queue() const;
  // High-water mark of all arenas, bytes.
  size_t activation_high_water_bytes() const;

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_ENGINE_H_
