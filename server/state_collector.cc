#include "server/state_collector.h"

#include <algorithm>
#include <set>
#include <utility>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "server/metrics.h"
#include "server/version.h"

namespace flashsvd {
namespace {

using prometheus::MetricFamily;

// A gauge with one sample per model.
template <typename Value>
MetricFamily PerModel(const char* name, const char* help, const std::vector<ServedModel>& models,
                      Value value) {
  MetricFamily family = MakeFamily(name, help);
  for (const ServedModel& served : models) {
    AddSample(&family, {{"model", served.model->name()}}, static_cast<double>(value(served)));
  }
  return family;
}

}  // namespace

MetricFamily MakeFamily(const std::string& name, const std::string& help,
                        prometheus::MetricType type) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

void AddSample(MetricFamily* family, std::vector<prometheus::ClientMetric::Label> labels,
               double value) {
  prometheus::ClientMetric metric;
  metric.label = std::move(labels);
  if (family->type == prometheus::MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family->metric.push_back(std::move(metric));
}

std::string RankLabel(const std::vector<ModuleInfo>& modules) {
  int least = 0, most = 0;
  for (const ModuleInfo& module : modules) {
    if (module.rank == 0) continue;
    least = least == 0 ? module.rank : std::min(least, module.rank);
    most = std::max(most, module.rank);
  }
  return least == most ? fmt::format("{}", most) : fmt::format("{}-{}", least, most);
}

std::string LayoutLabel(const std::vector<ModuleInfo>& modules) {
  std::set<std::string> layouts;
  for (const ModuleInfo& module : modules) {
    if (module.layout != LinearLayout::kDense) {
      layouts.insert(std::string(LinearLayoutName(module.layout)));
    }
  }
  return layouts.empty() ? "dense" : fmt::format("{}", fmt::join(layouts, "+"));
}

StateCollector::StateCollector(const ModelRegistry& models, std::string device,
                               size_t memory_budget_bytes)
    : models_(models), device_(std::move(device)), memory_budget_bytes_(memory_budget_bytes) {}

std::vector<MetricFamily> StateCollector::Collect() const {
  const std::vector<ServedModel> models = models_.All();
  std::vector<MetricFamily> families;
  CollectQueues(models, &families);
  CollectMemory(models, &families);
  CollectModels(models, &families);
  CollectProcess(&families);
  return families;
}

void StateCollector::CollectQueues(const std::vector<ServedModel>& models,
                                   std::vector<MetricFamily>* out) const {
  // One report per model, so that its numbers belong together.
  MetricFamily items = MakeFamily("flashsvd_queue_items", "Sequences that wait for a batch.");
  MetricFamily tokens = MakeFamily("flashsvd_queue_tokens", "Tokens that wait for a batch.");
  MetricFamily bytes = MakeFamily("flashsvd_queue_bytes", "Memory that waiting requests hold.");
  MetricFamily age = MakeFamily("flashsvd_queue_oldest_age_seconds",
                                "How long the oldest waiting request has waited.");
  for (const ServedModel& served : models) {
    const QueueReport queue = served.model->engine().queue();
    const std::string& name = served.model->name();
    AddSample(&items, {{"model", name}}, queue.items);
    AddSample(&tokens, {{"model", name}}, static_cast<double>(queue.tokens));
    AddSample(&bytes, {{"model", name}}, static_cast<double>(queue.bytes));
    AddSample(&age, {{"model", name}}, absl::ToDoubleSeconds(queue.oldest_age));
  }
  for (MetricFamily* family : {&items, &tokens, &bytes, &age}) out->push_back(std::move(*family));
  out->push_back(PerModel("flashsvd_requests_in_flight",
                          "Requests between their arrival and their reply.", models,
                          [](const ServedModel& served) { return MetricsOf(served).in_flight(); }));
}

void StateCollector::CollectMemory(const std::vector<ServedModel>& models,
                                   std::vector<MetricFamily>* out) const {
  double weights = 0, workspace = 0, io = 0, workspace_peak = 0, healthy = 1;
  double load_allocations = 0, serve_allocations = 0;
  for (const ServedModel& served : models) {
    const MemoryInfo& memory = served.model->memory();
    weights += static_cast<double>(memory.weights);
    workspace += static_cast<double>(memory.arenas);
    io += static_cast<double>(memory.io);
    workspace_peak += static_cast<double>(served.model->engine().activation_high_water_bytes());
    if (!served.model->engine().health().ok()) healthy = 0;
    load_allocations += static_cast<double>(served.model->load_allocations());
    serve_allocations += static_cast<double>(served.model->serve_allocations());
  }
  MetricFamily now = MakeFamily("flashsvd_device_memory_bytes",
                                "Memory allocated when the models were loaded, by use; it never "
                                "grows while serving.");
  MetricFamily peak = MakeFamily("flashsvd_device_memory_peak_bytes",
                                 "The most of it that was in use at any time since start.");
  const auto label = [&](const char* pool) {
    return std::vector<prometheus::ClientMetric::Label>{{"device", device_}, {"pool", pool}};
  };
  AddSample(&now, label("weights"), weights);
  AddSample(&now, label("workspace"), workspace);
  AddSample(&now, label("io"), io);
  AddSample(&peak, label("weights"), weights);
  AddSample(&peak, label("workspace"), workspace_peak);
  AddSample(&peak, label("io"), io);
  MetricFamily budget = MakeFamily("flashsvd_device_memory_budget_bytes",
                                   "The configured memory_budget; 0 if there is none.");
  AddSample(&budget, {{"device", device_}}, static_cast<double>(memory_budget_bytes_));
  MetricFamily health = MakeFamily("flashsvd_device_healthy",
                                   "0 after an error that the device cannot recover from.");
  AddSample(&health, {{"device", device_}}, healthy);
  MetricFamily allocations = MakeFamily("flashsvd_device_allocations_total",
                                        "Device allocations; those of phase serve stay 0.",
                                        prometheus::MetricType::Counter);
  AddSample(&allocations, {{"device", device_}, {"phase", "load"}}, load_allocations);
  AddSample(&allocations, {{"device", device_}, {"phase", "serve"}}, serve_allocations);
  for (MetricFamily* family : {&now, &peak, &budget, &health, &allocations})
    out->push_back(std::move(*family));
}

void StateCollector::CollectModels(const std::vector<ServedModel>& models,
                                   std::vector<MetricFamily>* out) const {
  out->push_back(PerModel("flashsvd_weight_bytes", "Weights as they lie in memory.", models,
                          [](const ServedModel& s) { return s.model->memory().weights; }));
  out->push_back(
      PerModel("flashsvd_weight_dense_equivalent_bytes",
               "Weights of the same model uncompressed, at the same precision.", models,
               [](const ServedModel& s) { return s.model->memory().weights_dense_equivalent; }));
  out->push_back(
      PerModel("flashsvd_model_load_duration_seconds", "Time it took to load the model.", models,
               [](const ServedModel& s) { return absl::ToDoubleSeconds(s.model->load_time()); }));
  MetricFamily info = MakeFamily("flashsvd_model_info", "1 for every model loaded.");
  for (const ServedModel& served : models) {
    const Model& model = *served.model;
    AddSample(&info,
              {{"model", model.name()},
               {"arch", model.config().model_type},
               {"backend", std::string(model.backend().name())},
               {"dtype", std::string(DTypeName(model.backend().dtype()))},
               {"layout", LayoutLabel(model.modules())},
               {"rank", RankLabel(model.modules())}},
              1);
  }
  out->push_back(std::move(info));
  MetricFamily build = MakeFamily("flashsvd_build_info", "1; what this program is.");
  AddSample(&build, {{"version", kVersion}, {"cuda", kCudaVersion}}, 1);
  out->push_back(std::move(build));
}

}  // namespace flashsvd
