#ifndef FLASHSVD_SERVER_STATE_COLLECTOR_H_
#define FLASHSVD_SERVER_STATE_COLLECTOR_H_

#include <cstddef>
#include <string>
#include <vector>

#include "prometheus/collectable.h"
#include "prometheus/metric_family.h"
#include "runtime/model_registry.h"

namespace flashsvd {

// The metrics that are read when scraped rather than counted: queues, memory, models, process.
// Thread-safe.
class StateCollector : public prometheus::Collectable {
 public:
  // `models` must outlive the collector. `memory_budget_bytes` is the server's; 0: none.
  StateCollector(const ModelRegistry& models, std::string device, size_t memory_budget_bytes);

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  void CollectQueues(const std::vector<ServedModel>& models,
                     std::vector<prometheus::MetricFamily>* out) const;
  void CollectMemory(const std::vector<ServedModel>& models,
                     std::vector<prometheus::MetricFamily>* out) const;
  void CollectModels(const std::vector<ServedModel>& models,
                     std::vector<prometheus::MetricFamily>* out) const;

  const ModelRegistry& models_;
  const std::string device_;
  const size_t memory_budget_bytes_;
};

// The standard process_* metrics, the heap (host_heap_bytes) and the memory control group
// (cgroup_memory_*) of this process.
void CollectProcess(std::vector<prometheus::MetricFamily>* out);

// A family without samples. `type` is kGauge or kCounter.
prometheus::MetricFamily MakeFamily(const std::string& name, const std::string& help,
                                    prometheus::MetricType type = prometheus::MetricType::Gauge);
void AddSample(prometheus::MetricFamily* family,
               std::vector<prometheus::ClientMetric::Label> labels, double value);

// Rank and layout of a model in one label value each: "20-120", "per_head"; "0" and "dense".
std::string RankLabel(const std::vector<ModuleInfo>& modules);
std::string LayoutLabel(const std::vector<ModuleInfo>& modules);

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_STATE_COLLECTOR_H_
