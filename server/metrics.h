#ifndef FLASHSVD_SERVER_METRICS_H_
#define FLASHSVD_SERVER_METRICS_H_

#include <array>
#include <atomic>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "runtime/model_registry.h"
#include "runtime/observer.h"

namespace flashsvd {

// Values of the label `task`.
enum class RpcTask : uint8_t { kEmbed, kEmbedStream, kTokenize, kGetModel, kListModels };
inline constexpr int kNumRpcTasks = 5;
// Values of the label `stage` of stage_duration_seconds.
enum class Stage : uint8_t { kTokenize, kQueue, kCopyIn, kCompute, kCopyOut, kSerialize };
inline constexpr int kNumStages = 6;

// Of gRPC's codes; those that no method answers have no series.
inline constexpr int kNumStatusCodes = 17;
inline constexpr int kNumRejections = 7;
inline constexpr int kNumBatchCloses = 5;

class Metrics;

// What is counted of RPCs, for one value of the label `model`. Thread-safe; takes no lock but a
// histogram's own.
class RequestMetrics {
 public:
  // A finished RPC, or message of a stream.
  void OnDone(RpcTask task, absl::StatusCode code, absl::Duration duration);
  void OnRejected(Rejection reason);

 private:
  friend class Metrics;
  friend class ModelMetrics;
  RequestMetrics() = default;

  std::array<std::array<prometheus::Counter*, kNumStatusCodes>, kNumRpcTasks> total_{};
  std::array<prometheus::Histogram*, kNumRpcTasks> duration_{};
  std::array<prometheus::Counter*, kNumRejections> rejected_{};
};

// One model's metrics, looked up once when it is loaded. Thread-safe; takes no lock but a
// histogram's own. Must not outlive its Metrics.
class ModelMetrics : public Observer {
 public:
  void OnBatch(const BatchReport& report) override;
  void OnQueued(absl::Duration time_in_queue) override;
  void OnRejected(Rejection reason) override { requests_.OnRejected(reason); }
  void OnAbandoned() override { abandoned_in_queue_->Increment(); }

  // The client left before its request got as far as the queue.
  void OnAbandonedBeforeQueue() { abandoned_in_tokenize_->Increment(); }
  void OnStage(Stage stage, absl::Duration duration);
  void OnInput(int tokens, bool truncated);

  // Requests between their first byte and their reply.
  void Enter() { in_flight_.fetch_add(1, std::memory_order_relaxed); }
  void Leave() { in_flight_.fetch_sub(1, std::memory_order_relaxed); }
  int in_flight() const { return in_flight_.load(std::memory_order_relaxed); }

  RequestMetrics& requests() { return requests_; }

 private:
  friend class Metrics;
  ModelMetrics() = default;

  RequestMetrics requests_;
  std::atomic<int> in_flight_{0};
  std::array<prometheus::Histogram*, kNumStages> stage_{};
  std::array<prometheus::Counter*, kNumBatchCloses> batch_close_{};
  prometheus::Counter* abandoned_in_queue_ = nullptr;
  prometheus::Counter* abandoned_in_tokenize_ = nullptr;
  prometheus::Histogram* input_tokens_ = nullptr;
  prometheus::Counter* real_tokens_ = nullptr;
  prometheus::Counter* truncated_inputs_ = nullptr;
  prometheus::Histogram* batch_sequences_ = nullptr;
  prometheus::Histogram* batch_tokens_ = nullptr;
  prometheus::Histogram* workspace_bytes_ = nullptr;
  prometheus::Histogram* workspace_plan_ratio_ = nullptr;
  prometheus::Counter* device_busy_seconds_ = nullptr;
};

// REQUIRES: the model was loaded with an observer from Metrics::AddModel, as in all of the server.
inline ModelMetrics& MetricsOf(const ServedModel& served) {
  return static_cast<ModelMetrics&>(*served.observer);
}

// The events that a server counts; what it merely is (memory, queues) is read when scraped, by
// StateCollector. Every label set exists, at 0, from the start. Thread-safe.
class Metrics {
 public:
  Metrics();

  // The metrics of a model that is about to be loaded; `device` is the label of its device.
  std::shared_ptr<ModelMetrics> AddModel(const std::string& name, const std::string& device);

  // For requests that name no model that there is: label model="".
  RequestMetrics& unknown_model() { return unknown_model_; }

  // 1 while requests are served.
  void SetReady(bool ready) { ready_->Set(ready ? 1 : 0); }

  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

 private:
  struct Families;

  void AddRequestMetrics(const std::string& model, RequestMetrics* metrics);

  std::shared_ptr<prometheus::Registry> registry_;
  std::shared_ptr<Families> families_;
  prometheus::Gauge* ready_ = nullptr;
  RequestMetrics unknown_model_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_METRICS_H_
