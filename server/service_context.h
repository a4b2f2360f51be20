#ifndef FLASHSVD_SERVER_SERVICE_CONTEXT_H_
#define FLASHSVD_SERVER_SERVICE_CONTEXT_H_

#include <cstdint>

#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "runtime/clock.h"
#include "runtime/model_registry.h"
#include "server/drain_gate.h"
#include "server/metrics.h"
#include "server/worker_pool.h"

namespace flashsvd {

// What a request may ask for; ServerConfig says where the values come from.
struct RequestLimits {
  int max_inputs_per_request = 256;
  int64_t max_text_bytes = int64_t{1} << 20;
  int64_t max_response_bytes = int64_t{16} << 20;
  int stream_window = 256;
  // About how many tokens of one stream may be on their way: enough to keep the engine busy, too
  // few for bulk work to fill the queue that others wait in.
  int64_t stream_window_tokens = 2 * 16384;
  // Requests and unsent replies that one stream may hold in memory.
  int64_t stream_window_bytes = int64_t{64} << 20;
  absl::Duration default_deadline = absl::Seconds(30);
};

// What RPC handlers share. Everything referred to outlives the service.
struct ServiceContext {
  RequestLimits limits;
  const Clock& clock;
  const ModelRegistry& models;
  Metrics& metrics;
  WorkerPool& workers;
  DrainGate& gate;
};

// Requests up to this size are parsed and tokenised where they arrive, on gRPC's event thread. A
// short text takes 10 to 20 us there, this many bytes of short texts at most about 300 us; larger
// requests would hold up the others that the thread serves.
inline constexpr int64_t kInlineRequestBytes = 2048;

// The client's deadline, or the default one.
absl::Time DeadlineOf(const grpc::ServerContextBase& call, const ServiceContext& context);

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_SERVICE_CONTEXT_H_
