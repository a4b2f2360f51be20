// flashsvd-bench: the runtime without a server around it, and a running server under load.

#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "bench/encoder_bench.h"
#include "bench/load_gen.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace flashsvd {
namespace {

constexpr char kFooter[] =
    "Examples:\n"
    "  flashsvd-bench encoder --model models/all-MiniLM-L6-v2 --batch 32 --length 128\n"
    "  flashsvd-bench encoder --shape bert-base --layout per_head --ranks 40,240,240 \\\n"
    "      --dtype bf16 --batch 32 --length 512 --compare-dense\n"
    "  flashsvd-bench load --address localhost:50051 --lengths 16,64,128 --concurrency 16\n";

double Mib(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

nlohmann::ordered_json ToJson(const EncoderBenchOptions& options, const EncoderBenchResult& r) {
  return {{"name", r.name},
          {"model", options.model_dir.empty() ? options.shape : options.model_dir},
          {"batch", options.batch},
          {"length", options.length},
          {"backend", r.backend},
          {"dtype", r.dtype},
          {"threads", r.threads},
          {"passes", r.passes},
          {"latency_ms_p50", r.latency_ms_p50},
          {"latency_ms_p90", r.latency_ms_p90},
          {"tokens_per_s", r.tokens_per_s},
          {"gflops", r.gflops},
          {"peak_gflops", r.peak_gflops},
          {"peak_share", r.peak_gflops > 0 ? r.gflops / r.peak_gflops : 0},
          {"weight_bytes", r.weight_bytes},
          {"activation_planned_bytes", r.activation_planned_bytes},
          {"activation_high_water_bytes", r.activation_high_water_bytes},
          {"rss_above_loaded_bytes", r.rss_above_loaded_bytes}};
}

void PrintTable(const std::vector<EncoderBenchResult>& results) {
  fmt::print("{:<14} {:<18} {:>5} {:>9} {:>9} {:>10} {:>8} {:>6} {:>10} {:>12} {:>12}\n", "",
             "backend", "dtype", "p50 ms", "p90 ms", "tokens/s", "GFLOP/s", "peak", "weights MiB",
             "planned MiB", "high-w. MiB");
  for (const EncoderBenchResult& r : results) {
    fmt::print(
        "{:<14} {:<18} {:>5} {:>9.2f} {:>9.2f} {:>10.0f} {:>8.1f} {:>6} {:>10.1f} {:>12.2f} "
        "{:>12.2f}\n",
        r.name, fmt::format("{} x{}", r.backend, r.threads), r.dtype, r.latency_ms_p50,
        r.latency_ms_p90, r.tokens_per_s, r.gflops,
        r.peak_gflops > 0 ? fmt::format("{:.0f}%", 100 * r.gflops / r.peak_gflops) : "-",
        Mib(r.weight_bytes), Mib(r.activation_planned_bytes), Mib(r.activation_high_water_bytes));
  }
  if (results.size() == 2) {
    fmt::print(
        "low-rank is {:.2f}x as fast as dense, with {:.0f}% of its activation bytes and "
        "{:.0f}% of its weight bytes\n",
        results[1].latency_ms_p50 / results[0].latency_ms_p50,
        100.0 * results[0].activation_high_water_bytes / results[1].activation_high_water_bytes,
        100.0 * results[0].weight_bytes / results[1].weight_bytes);
  }
}

struct EncoderCommand {
  EncoderBenchOptions options;
  std::string dtype = "auto";
  std::vector<int> ranks;
  bool json = false;

  void Register(CLI::App& app);
  int Run();
};

void EncoderCommand::Register(CLI::App& app) {
  auto* model = app.add_option("--model", options.model_dir, "model directory");
  app.add_option("--shape", options.shape,
                 "random weights of this shape: minilm, bert-base, bert-large")
      ->excludes(model);
  app.add_option("--layout", options.layout,
                 "per_head, full or qkv_shared for a shape; dense: the same model uncompressed and "
                 "unfused");
  app.add_option("--ranks", ranks,
                 "R,r_ffn,r_out: of query, key and value (per head for per_head), of the "
                 "feed-forward, of the attention output")
      ->delimiter(',')
      ->expected(3);
  app.add_option("--batch", options.batch, "sequences")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--length", options.length, "tokens of each")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--ids", options.ids_file,
                 "file of raw int32 token ids [batch * length]; default: random");
  app.add_option("--output", options.output_file,
                 "write the pooled vectors there, raw float32 [batch, dimensions]");
  app.add_option(
         "--dtype", dtype,
         "f32 and bf16 on a CPU, f16 and bf16 on CUDA devices; auto: the first of them that "
         "loses no range (f32, bf16)")
      ->check(CLI::IsMember({"auto", "f32", "f16", "bf16"}))
      ->capture_default_str();
  app.add_option("--device", options.backend.device, "auto, cpu, cuda or reference")
      ->capture_default_str();
  app.add_option("--device-index", options.backend.device_index, "which of several CUDA devices")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--cuda-path", options.backend.cuda_path,
                 "CUDA kernels, sm80 or sm90; default: the best for the device");
  app.add_option("--isa", options.backend.cpu_isa,
                 "CPU instruction set; default: the fastest here");
  app.add_option("--threads", options.backend.num_threads, "0: one per core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--chunk-tokens", options.chunk_tokens,
                 "tokens of an attention chunk; 0: what the device likes best")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "measured time")->capture_default_str();
  app.add_option("--seed", options.seed, "of weights and ids")->capture_default_str();
  app.add_flag("--compare-dense", options.compare_dense,
               "also run dense and unfused, in turn, in this process");
  app.add_flag("--json", json, "one JSON object a line instead of a table");
}

int EncoderCommand::Run() {
  if (options.model_dir.empty() == options.shape.empty()) {
    fmt::print(stderr, "flashsvd-bench: give one of --model and --shape\n");
    return 2;
  }
  if (!options.shape.empty() && options.layout.empty()) options.layout = "dense";
  if (!options.shape.empty() && options.layout != "dense" && ranks.empty()) {
    fmt::print(stderr, "flashsvd-bench: --layout {} needs --ranks R,r_ffn,r_out\n", options.layout);
    return 2;
  }
  if (!ranks.empty()) {
    options.rank_qkv = ranks[0];
    options.rank_ffn = ranks[1];
    options.rank_out = ranks[2];
  }
  if (dtype == "auto") {
    dtype = ResolveDevice(options.backend.device, false) == "cuda" ? "bf16" : "f32";
  }
  options.backend.dtype = dtype == "bf16"  ? DType::kBF16
                          : dtype == "f16" ? DType::kF16
                                           : DType::kF32;

  const auto results = RunEncoderBench(options);
  if (!results.ok()) {
    fmt::print(stderr, "flashsvd-bench: {}\n", std::string(results.status().message()));
    return 1;
  }
  if (json) {
    for (const EncoderBenchResult& r : *results) std::cout << ToJson(options, r).dump() << "\n";
  } else {
    PrintTable(*results);
  }
  return 0;
}

struct LoadCommand {
  LoadOptions options;
  bool json = false;

  void Register(CLI::App& app);
  int Run() const;
};

void LoadCommand::Register(CLI::App& app) {
  app.add_option("--address", options.address, "of the server")->capture_default_str();
  app.add_option("--model", options.model, "default: the server's only one");
  auto* texts = app.add_option("--texts", options.texts_file, "file with one text a line");
  app.add_option("--lengths", options.lengths,
                 "tokens of synthetic inputs, drawn evenly; default 128")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->excludes(texts);
  app.add_option("--batch", options.batch, "inputs of a request")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--concurrency", options.concurrency, "requests in flight")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--connections", options.connections,
                 "TCP connections that they share; 0: one for every 16, at most 16")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  app.add_option("--warm-up", options.warm_up_seconds, "seconds before those that are measured")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "measured time")->capture_default_str();
  app.add_option("--seed", options.seed, "of ids and lengths")->capture_default_str();
  app.add_flag("--json", json, "a JSON object instead of a table");
}

int LoadCommand::Run() const {
  const auto result = RunLoad(options);
  if (!result.ok()) {
    fmt::print(stderr, "flashsvd-bench: {}\n", std::string(result.status().message()));
    return 1;
  }
  const LoadResult& r = *result;
  if (json) {
    const nlohmann::ordered_json object = {{"concurrency", options.concurrency},
                                           {"batch", options.batch},
                                           {"requests", r.requests},
                                           {"errors", r.errors},
                                           {"latency_ms_p50", r.latency_p50},
                                           {"latency_ms_p90", r.latency_p90},
                                           {"latency_ms_p99", r.latency_p99},
                                           {"queue_ms_p50", r.queue_p50},
                                           {"compute_ms_p50", r.compute_p50},
                                           {"overhead_ms_p50", r.overhead_p50},
                                           {"requests_per_s", r.requests_per_s},
                                           {"tokens_per_s", r.tokens_per_s},
                                           {"activation_bytes", r.activation_bytes}};
    std::cout << object.dump() << "\n";
  } else {
    fmt::print("{:>9} {:>8} {:>8} {:>8} {:>8} {:>10} {:>11} {:>10} {:>10} {:>8}\n", "in flight",
               "requests", "p50 ms", "p90 ms", "p99 ms", "queue p50", "compute p50", "over. p50",
               "tokens/s", "act. MiB");
    fmt::print(
        "{:>9} {:>8} {:>8.2f} {:>8.2f} {:>8.2f} {:>10.2f} {:>11.2f} {:>10.2f} {:>10.0f} "
        "{:>8.2f}\n",
        options.concurrency, r.requests, r.latency_p50, r.latency_p90, r.latency_p99, r.queue_p50,
        r.compute_p50, r.overhead_p50, r.tokens_per_s, Mib(r.activation_bytes));
    for (const auto& [error, count] : r.errors) fmt::print("{} x {}\n", count, error);
  }
  return r.requests > 0 ? 0 : 1;
}

int Main(int argc, char** argv) {
  CLI::App app{"Measures the FlashSVD runtime, with and without a server around it."};
  app.require_subcommand(1);
  app.footer(kFooter);
  CLI::App& encoder = *app.add_subcommand("encoder", "one forward pass, over and over");
  CLI::App& load = *app.add_subcommand("load", "a closed loop against a running server");
  EncoderCommand encoder_command;
  LoadCommand load_command;
  encoder_command.Register(encoder);
  load_command.Register(load);
  CLI11_PARSE(app, argc, argv);
  return encoder.parsed() ? encoder_command.Run() : load_command.Run();
}

}  // namespace
}  // namespace flashsvd

int main(int argc, char** argv) { return flashsvd::Main(argc, argv); }
