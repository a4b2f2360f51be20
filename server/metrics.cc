#include "server/metrics.h"

#include <string_view>
#include <vector>

namespace flashsvd {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;

constexpr std::array<std::string_view, kNumRpcTasks> kTaskNames = {
    "embed", "embed_stream", "tokenize", "get_model", "list_models"};
constexpr std::array<std::string_view, kNumStages> kStageNames = {
    "tokenize", "queue", "copy_in", "compute", "copy_out", "serialize"};

// What the methods answer; all else is counted as UNKNOWN.
constexpr absl::StatusCode kAnsweredCodes[] = {
    absl::StatusCode::kOk,          absl::StatusCode::kCancelled,
    absl::StatusCode::kUnknown,     absl::StatusCode::kInvalidArgument,
    absl::StatusCode::kNotFound,    absl::StatusCode::kDeadlineExceeded,
    absl::StatusCode::kUnavailable, absl::StatusCode::kResourceExhausted,
    absl::StatusCode::kInternal};

// first, 2 first, 4 first, ... up to `last`.
Histogram::BucketBoundaries Doubling(double first, double last) {
  Histogram::BucketBoundaries bounds;
  for (double bound = first; bound <= last; bound *= 2) bounds.push_back(bound);
  return bounds;
}

Histogram::BucketBoundaries RequestSeconds() { return Doubling(0.25e-3, 10); }
// Stages of small requests take microseconds.
Histogram::BucketBoundaries StageSeconds() { return Doubling(0.25e-3 / 16, 10); }
// From a one-token batch of a small model to a full GPU.
Histogram::BucketBoundaries Bytes() { return Doubling(64 * 1024, 64.0 * (1 << 30)); }
Histogram::BucketBoundaries Tokens(double last) { return Doubling(1, last); }
// The plan is exact, so everything is at 1; the bound above it is a hair off so that no sum of
// rounding makes a good batch look bad.
Histogram::BucketBoundaries PlanRatio() { return {0.25, 0.5, 0.75, 0.9, 0.999, 1.001, 1.25, 2.5}; }

}  // namespace

struct Metrics::Families {
  explicit Families(prometheus::Registry& registry) : registry_(registry) {}

  Family<Counter>& Counters(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry_);
  }
  Family<Gauge>& Gauges(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry_);
  }
  Family<Histogram>& Histograms(const char* name, const char* help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry_);
  }

  prometheus::Registry& registry_;
  Family<Counter>& requests = Counters(
      "flashsvd_requests_total",
      "Finished RPCs by status code; every message of an EmbedStream counts as one. An empty model "
      "is a request that named none that there is.");
  Family<Histogram>& duration =
      Histograms("flashsvd_request_duration_seconds",
                 "Time from the arrival of a request until its reply is handed to gRPC.");
  Family<Counter>& rejected = Counters("flashsvd_rejected_total",
                                       "Requests refused, or dropped from the queue, uncomputed.");
  Family<Histogram>& stage =
      Histograms("flashsvd_stage_duration_seconds",
                 "Time per stage: tokenize, queue and serialize of a request; copy_in, compute and "
                 "copy_out of a batch.");
  Family<Counter>& abandoned =
      Counters("flashsvd_abandoned_total",
               "Requests whose client left before they were computed, by the stage they were in.");
  Family<Histogram>& input_tokens =
      Histograms("flashsvd_input_tokens", "Tokens of one input, special tokens included.");
  Family<Counter>& tokens = Counters(
      "flashsvd_tokens_total",
      "Tokens computed. Batches are packed, so kind=\"padding\" stays 0 unless a backend pads.");
  Family<Counter>& truncated = Counters("flashsvd_truncated_inputs_total",
                                        "Inputs that were cut to the model's longest sequence.");
  Family<Histogram>& batch_sequences =
      Histograms("flashsvd_batch_sequences", "Sequences in a batch.");
  Family<Histogram>& batch_tokens = Histograms("flashsvd_batch_tokens", "Tokens in a batch.");
  Family<Counter>& batch_close =
      Counters("flashsvd_batch_close_total", "Batches by what kept them from growing further.");
  Family<Histogram>& workspace = Histograms("flashsvd_batch_workspace_bytes",
                                            "High-water mark of a batch's activation memory.");
  Family<Histogram>& plan_ratio =
      Histograms("flashsvd_workspace_plan_ratio",
                 "Activation memory that a batch used over what was planned; above 1 is a bug.");
  Family<Counter>& busy =
      Counters("flashsvd_device_busy_seconds_total", "Time that the device spent computing.");
  Family<Gauge>& ready = Gauges("flashsvd_ready", "1 while the server accepts requests.");
};

Metrics::Metrics()
    : registry_(std::make_shared<prometheus::Registry>()),
      families_(std::make_shared<Families>(*registry_)),
      ready_(&families_->ready.Add({})) {
  AddRequestMetrics("", &unknown_model_);
}

void Metrics::AddRequestMetrics(const std::string& model, RequestMetrics* metrics) {
  for (int task = 0; task < kNumRpcTasks; ++task) {
    // Listing the models names none.
    if (!model.empty() && task == static_cast<int>(RpcTask::kListModels)) continue;
    const std::string task_name(kTaskNames[task]);
    metrics->duration_[task] =
        &families_->duration.Add({{"model", model}, {"task", task_name}}, RequestSeconds());
    for (const absl::StatusCode code : kAnsweredCodes) {
      metrics->total_[task][static_cast<int>(code)] = &families_->requests.Add(
          {{"model", model}, {"task", task_name}, {"code", absl::StatusCodeToString(code)}});
    }
  }
  for (int i = 0; i < kNumRejections; ++i) {
    metrics->rejected_[i] = &families_->rejected.Add(
        {{"model", model}, {"reason", std::string(RejectionName(static_cast<Rejection>(i)))}});
  }
}

std::shared_ptr<ModelMetrics> Metrics::AddModel(const std::string& name,
                                                const std::string& device) {
  std::shared_ptr<ModelMetrics> model(new ModelMetrics);
  Families& families = *families_;
  AddRequestMetrics(name, &model->requests_);
  for (int i = 0; i < kNumStages; ++i) {
    model->stage_[i] = &families.stage.Add(
        {{"model", name}, {"stage", std::string(kStageNames[i])}}, StageSeconds());
  }
  for (int i = 0; i < kNumBatchCloses; ++i) {
    model->batch_close_[i] = &families.batch_close.Add(
        {{"model", name}, {"reason", std::string(BatchCloseName(static_cast<BatchClose>(i)))}});
  }
  model->abandoned_in_queue_ = &families.abandoned.Add({{"model", name}, {"stage", "queue"}});
  model->abandoned_in_tokenize_ = &families.abandoned.Add({{"model", name}, {"stage", "tokenize"}});
  model->input_tokens_ = &families.input_tokens.Add({{"model", name}}, Tokens(8192));
  model->real_tokens_ = &families.tokens.Add({{"model", name}, {"kind", "real"}});
  families.tokens.Add({{"model", name}, {"kind", "padding"}});
  model->truncated_inputs_ = &families.truncated.Add({{"model", name}});
  model->batch_sequences_ = &families.batch_sequences.Add({{"model", name}}, Tokens(1024));
  model->batch_tokens_ = &families.batch_tokens.Add({{"model", name}}, Tokens(65536));
  model->workspace_bytes_ = &families.workspace.Add({{"model", name}}, Bytes());
  model->workspace_plan_ratio_ = &families.plan_ratio.Add({{"model", name}}, PlanRatio());
  model->device_busy_seconds_ = &families.busy.Add({{"device", device}});
  return model;
}

void RequestMetrics::OnDone(RpcTask task, absl::StatusCode code, absl::Duration duration) {
  const int index = static_cast<int>(task);
  const int number = static_cast<int>(code);
  prometheus::Counter* counter =
      number >= 0 && number < kNumStatusCodes ? total_[index][number] : nullptr;
  if (counter == nullptr) counter = total_[index][static_cast<int>(absl::StatusCode::kUnknown)];
  counter->Increment();
  duration_[index]->Observe(absl::ToDoubleSeconds(duration));
}

void RequestMetrics::OnRejected(Rejection reason) {
  rejected_[static_cast<int>(reason)]->Increment();
}

void ModelMetrics::OnBatch(const BatchReport& report) {
  batch_sequences_->Observe(report.num_sequences);
  batch_tokens_->Observe(report.num_tokens);
  real_tokens_->Increment(report.num_tokens);
  batch_close_[static_cast<int>(report.close)]->Increment();
  workspace_bytes_->Observe(static_cast<double>(report.activation_bytes));
  if (report.planned_activation_bytes > 0) {
    workspace_plan_ratio_->Observe(static_cast<double>(report.activation_bytes) /
                                   static_cast<double>(report.planned_activation_bytes));
  }
  device_busy_seconds_->Increment(absl::ToDoubleSeconds(report.compute));
  OnStage(Stage::kCopyIn, report.copy_in);
  OnStage(Stage::kCompute, report.compute);
  OnStage(Stage::kCopyOut, report.copy_out);
}

void ModelMetrics::OnQueued(absl::Duration time_in_queue) { OnStage(Stage::kQueue, time_in_queue); }

void ModelMetrics::OnStage(Stage stage, absl::Duration duration) {
  stage_[static_cast<int>(stage)]->Observe(absl::ToDoubleSeconds(duration));
}

void ModelMetrics::OnInput(int tokens, bool truncated) {
  input_tokens_->Observe(tokens);
  if (truncated) truncated_inputs_->Increment();
}

}  // namespace flashsvd
