#include "bench/encoder_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <random>
#include <span>
#include <utility>

#include "fmt/format.h"
#include "kernels/cpu/peak.h"
#include "kernels/status_macros.h"
#include "runtime/attention_fold.h"
#include "runtime/encoder.h"
#include "runtime/model_config.h"
#include "runtime/random_weights.h"

namespace flashsvd {
namespace {

using SteadyClock = std::chrono::steady_clock;

// A model with its factor pairs multiplied out: the same function, uncompressed.
class DenseView : public WeightSource {
 public:
  explicit DenseView(std::unique_ptr<WeightSource> source) : source_(std::move(source)) {}

  absl::StatusOr<LinearWeights> LoadLinear(const std::string& name, int in, int out,
                                           int heads) const override {
    FSVD_ASSIGN_OR_RETURN(LinearWeights w, source_->LoadLinear(name, in, out, heads));
    if (w.layout == LinearLayout::kDense) return w;
    LinearWeights dense{.name = name, .in = in, .out = out, .bias = w.bias};
    dense.weight.assign(static_cast<size_t>(in) * out, 0);
    const int rows = out / w.heads;
    for (int i = 0; i < out; ++i) {
      const float* a = w.a.data() + static_cast<size_t>(i / rows) * w.rank * in;
      float* to = dense.weight.data() + static_cast<size_t>(i) * in;
      for (int r = 0; r < w.rank; ++r) {
        const float scale = w.b[static_cast<size_t>(i) * w.rank + r];
        for (int j = 0; j < in; ++j) to[j] += scale * a[static_cast<size_t>(r) * in + j];
      }
    }
    return dense;
  }
  absl::StatusOr<std::vector<float>> LoadTensor(const std::string& name,
                                                std::vector<int64_t> shape) const override {
    return source_->LoadTensor(name, std::move(shape));
  }
  bool Has(const std::string& name) const override { return source_->Has(name); }

 private:
  std::unique_ptr<WeightSource> source_;
};

absl::StatusOr<LinearLayout> ParseLayout(const std::string& name) {
  for (const LinearLayout layout : {LinearLayout::kDense, LinearLayout::kFull,
                                    LinearLayout::kPerHead, LinearLayout::kQkvShared}) {
    if (name == LinearLayoutName(layout)) return layout;
  }
  return absl::InvalidArgumentError(
      fmt::format("--layout: \"{}\" is none of dense, per_head, full, qkv_shared", name));
}

absl::StatusOr<std::unique_ptr<WeightSource>> OpenWeights(const EncoderBenchOptions& options,
                                                          bool dense) {
  std::unique_ptr<WeightSource> source;
  if (!options.model_dir.empty()) {
    FSVD_ASSIGN_OR_RETURN(source, Checkpoint::Open(options.model_dir));
    if (dense) source = std::make_unique<DenseView>(std::move(source));
    return source;
  }
  FSVD_ASSIGN_OR_RETURN(const LinearLayout layout, ParseLayout(options.layout));
  return std::make_unique<RandomWeights>(
      RandomWeightsOptions{.layout = dense ? LinearLayout::kDense : layout,
                           .rank_qkv = options.rank_qkv,
                           .rank_ffn = options.rank_ffn,
                           .rank_out = options.rank_out,
                           .seed = options.seed});
}

absl::StatusOr<std::vector<int32_t>> ReadIds(const EncoderBenchOptions& options,
                                             const ModelConfig& config) {
  const size_t count = static_cast<size_t>(options.batch) * options.length;
  std::vector<int32_t> ids(count);
  if (options.ids_file.empty()) {
    std::mt19937_64 generator(options.seed);
    std::uniform_int_distribution<int32_t> id(0, config.vocab - 1);
    for (int32_t& v : ids) v = id(generator);
    return ids;
  }
  std::ifstream file(options.ids_file, std::ios::binary | std::ios::ate);
  const auto bytes = static_cast<std::streamoff>(count * sizeof(int32_t));
  if (!file || file.tellg() != bytes) {
    return absl::InvalidArgumentError(fmt::format("--ids: {} is not a file of {} x {} int32",
                                                  options.ids_file, options.batch, options.length));
  }
  file.seekg(0);
  file.read(reinterpret_cast<char*>(ids.data()), bytes);
  if (!file) return absl::UnavailableError(fmt::format("--ids: cannot read {}", options.ids_file));
  return ids;
}

absl::StatusOr<PackedBatch> MakeBatch(const EncoderBenchOptions& options,
                                      const ModelConfig& config) {
  FSVD_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ReadIds(options, config));
  const std::vector<int32_t> types(options.length, 0);
  PackedBatch batch;
  for (int s = 0; s < options.batch; ++s) {
    batch.Append(std::span(ids).subspan(static_cast<size_t>(s) * options.length, options.length),
                 types);
  }
  return batch;
}

absl::Status WriteOutput(const std::string& path, std::span<const float> output) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(output.data()),
             static_cast<std::streamsize>(output.size_bytes()));
  if (file.flush()) return absl::OkStatus();
  return absl::UnavailableError(fmt::format("--output: cannot write {}", path));
}

// "VmRSS" or "VmHWM" of this process, in bytes; 0 where /proc does not tell.
size_t ProcessMemory(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.compare(0, field.size() + 1, field + ":") == 0) {
      return std::stoull(line.substr(field.size() + 1)) * 1024;
    }
  }
  return 0;
}

// One model under measurement.
struct Contender {
  EncoderBenchResult result;
  std::unique_ptr<Encoder> encoder;
  std::unique_ptr<ExecutionSlot> slot;
  double flops = 0;
  std::vector<double> milliseconds;

  absl::Status Pass(const PackedBatch& batch) {
    const auto start = SteadyClock::now();
    FSVD_ASSIGN_OR_RETURN(result.activation_high_water_bytes, encoder->Forward(batch, *slot));
    milliseconds.push_back(
        std::chrono::duration<double, std::milli>(SteadyClock::now() - start).count());
    return absl::OkStatus();
  }

  void Summarise(int num_tokens) {
    std::sort(milliseconds.begin(), milliseconds.end());
    result.passes = static_cast<int>(milliseconds.size());
    result.latency_ms_p50 = milliseconds[milliseconds.size() / 2];
    result.latency_ms_p90 = milliseconds[milliseconds.size() * 9 / 10];
    result.tokens_per_s = num_tokens / result.latency_ms_p50 * 1e3;
    result.gflops = flops / result.latency_ms_p50 * 1e-6;
  }
};

absl::StatusOr<Contender> MakeContender(const EncoderBenchOptions& options,
                                        const ModelConfig& config, const Backend& backend,
                                        const PackedBatch& batch, bool dense) {
  FSVD_ASSIGN_OR_RETURN(const std::unique_ptr<WeightSource> weights, OpenWeights(options, dense));
  Contender c;
  FSVD_ASSIGN_OR_RETURN(
      c.encoder, Encoder::Create(*weights, config, backend,
                                 {.chunk_tokens = options.chunk_tokens, .streaming = !dense}));
  // Peak resident memory from here on: what one forward pass adds to the loaded model.
  std::ofstream("/proc/self/clear_refs") << "5";
  const size_t loaded = ProcessMemory("VmRSS");
  const BatchShape limit =
      c.encoder->Limit(batch.num_tokens(), batch.num_sequences(), batch.max_seqlen);
  FSVD_ASSIGN_OR_RETURN(c.slot, c.encoder->MakeSlot(limit));
  for (int i = 0; i < 2; ++i) FSVD_RETURN_IF_ERROR(c.Pass(batch));
  c.milliseconds.clear();
  const size_t peak = ProcessMemory("VmHWM");

  c.flops = c.encoder->Flops(batch);
  const WeightBytes& bytes = c.encoder->weight_bytes();
  c.result.name = dense                                                      ? "dense unfused"
                  : bytes.linear_parameters == bytes.dense_linear_parameters ? "dense"
                                                                             : "low-rank";
  c.result.backend = std::string(backend.name());
  c.result.dtype = std::string(DTypeName(backend.dtype()));
  c.result.threads = backend.num_threads();
  c.result.weight_bytes = c.encoder->weight_bytes().resident;
  c.result.activation_planned_bytes = c.slot->arena().capacity();
  c.result.rss_above_loaded_bytes = peak > loaded ? peak - loaded : 0;
  return c;
}

}  // namespace

absl::StatusOr<std::vector<EncoderBenchResult>> RunEncoderBench(
    const EncoderBenchOptions& options) {
  FSVD_ASSIGN_OR_RETURN(const ModelConfig config, options.model_dir.empty()
                                                      ? NamedShape(options.shape)
                                                      : LoadModelConfig(options.model_dir));
  if (options.length > config.max_positions) {
    return absl::InvalidArgumentError(
        fmt::format("--length: {} is more than the model's {} positions", options.length,
                    config.max_positions));
  }
  FSVD_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeBackend(options.backend));
  FSVD_ASSIGN_OR_RETURN(const PackedBatch batch, MakeBatch(options, config));
  const bool dense = options.layout == "dense";

  std::vector<Contender> contenders;
  FSVD_ASSIGN_OR_RETURN(Contender first, MakeContender(options, config, *backend, batch, dense));
  contenders.push_back(std::move(first));
  if (options.compare_dense && !dense) {
    FSVD_ASSIGN_OR_RETURN(Contender second, MakeContender(options, config, *backend, batch, true));
    contenders.push_back(std::move(second));
  }

  // In turn, so that a noisy neighbour disturbs all alike.
  const auto start = SteadyClock::now();
  const std::chrono::duration<double> wanted(options.seconds * contenders.size());
  for (int pass = 0; pass < 5 || SteadyClock::now() - start < wanted; ++pass) {
    for (Contender& c : contenders) FSVD_RETURN_IF_ERROR(c.Pass(batch));
  }

  if (!options.output_file.empty()) {
    FSVD_RETURN_IF_ERROR(WriteOutput(options.output_file, contenders.front().slot->output()));
  }
  const double peak = backend->shares_host_memory()
                          ? MeasurePeakGflops(backend->dtype(), backend->num_threads())
                          : 0;
  std::vector<EncoderBenchResult> results;
  for (Contender& c : contenders) {
    c.Summarise(batch.num_tokens());
    c.result.peak_gflops = peak;
    results.push_back(c.result);
  }
  return results;
}

}  // namespace flashsvd
