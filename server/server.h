#ifndef FLASHSVD_SERVER_SERVER_H_
#define FLASHSVD_SERVER_SERVER_H_

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpcpp/server.h"
#include "runtime/clock.h"
#include "runtime/model_registry.h"
#include "runtime/mutex.h"
#include "server/config.h"
#include "server/encoder_service.h"
#include "server/health_service.h"
#include "server/metrics.h"
#include "server/metrics_endpoint.h"
#include "server/state_collector.h"
#include "server/worker_pool.h"

namespace flashsvd {

// Everything that runs: services, models, metrics. Life of a server: Start, LoadModels, Drain.
// Thread-safe.
class Server {
 public:
  // Listens on both ports; health is NOT_SERVING and every request UNAVAILABLE until models are
  // loaded. Errors name the key whose address cannot be bound. `clock` must outlive the server.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerConfig& config,
                                                       const Clock& clock);
  // Drains.
  ~Server();

  // Loads all models, then reports SERVING.
  absl::Status LoadModels();

  int port() const { return port_; }
  int metrics_port() const;  // -1: none

  // The first error after which a device cannot be used any more; OK if there is none.
  absl::Status DeviceHealth() const;
  // Reports NOT_SERVING under every name.
  void ReportFailure();

  // First half of a drain: load balancers are told to send no more, requests are still served. The
  // name "" stays SERVING, so that no liveness probe kills a process that drains.
  void ReportDraining();
  // Second half: answers new calls with UNAVAILABLE and all that were accepted before with what
  // they asked for (for at most config.drain_timeout, then they are cancelled), then stops gRPC,
  // engines and metrics. Idempotent.
  void Drain();

  const ModelRegistry& models() const { return models_; }
  // What the metrics port answers.
  std::string RenderMetrics() const;

 private:
  Server(const ServerConfig& config, const Clock& clock);

  absl::Status Listen();
  absl::Status ListenMetrics();

  const ServerConfig config_;
  const Clock& clock_;
  // In this order: what comes later uses what comes before.
  Metrics metrics_;
  ModelRegistry models_;
  std::shared_ptr<StateCollector> state_;
  WorkerPool workers_;
  DrainGate gate_;
  HealthService health_;
  EncoderService encoder_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> grpc_;

  Mutex drain_mu_;
  bool drained_ ABSL_GUARDED_BY(drain_mu_) = false;
  std::unique_ptr<MetricsEndpoint> endpoint_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_SERVER_H_
