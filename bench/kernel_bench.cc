// Times every CPU operation at the shapes of MiniLM-L6 and BERT-base, dense and low-rank:
//   kernel_bench [--dtype=f32|bf16] [--threads=N] [--isa=NAME] [--seconds=S] [--filter=TEXT]
// Each line: milliseconds, GFLOP/s, its share of the peak measured on registers in this process,
// and GB/s of weights plus activations touched once. The time is the tenth percentile
// of the runs; with one thread it is the thread's CPU time, so that a shared machine still gives
// figures.

#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend_factory.h"
#include "kernels/cpu/peak.h"

namespace flashsvd {
namespace {

struct Options {
  DType dtype = DType::kBF16;
  int threads = 1;
  std::string isa;
  double seconds = 0.2;
  std::string filter;
};

struct Shape {
  const char* model;
  int d, hidden, heads, rank, head_rank;  // rank 0: dense, head_rank then the head's width
};

constexpr Shape kShapes[] = {
    {"minilm dense", 384, 1536, 12, 0, 32},     {"minilm r192", 384, 1536, 12, 192, 32},
    {"minilm r120", 384, 1536, 12, 120, 20},    {"bert-base dense", 768, 3072, 12, 0, 64},
    {"bert-base r240", 768, 3072, 12, 240, 40},
};
constexpr int kTokens[] = {16, 128, 1024};

std::vector<float> Random(size_t count, float stddev) {
  static std::mt19937 generator(1);
  std::normal_distribution<float> normal(0, stddev);
  std::vector<float> values(count);
  for (float& v : values) v = normal(generator);
  return values;
}

double Seconds(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

void Die(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "kernel_bench: %s\n", status.ToString().c_str());
  std::exit(1);
}

class KernelBench {
 public:
  explicit KernelBench(const Options& options) : options_(options) {
    auto backend = MakeBackend({.device = "cpu",
                                .dtype = options.dtype,
                                .num_threads = options.threads,
                                .cpu_isa = options.isa});
    Die(backend.status());
    backend_ = std::move(backend).value();
    auto stream = backend_->MakeStream();
    Die(stream.status());
    stream_ = std::move(stream).value();
    peak_ = MeasurePeakGflops(options.dtype, options.threads);
    std::printf("%s %s, %d threads, peak %.0f GFLOP/s\n", std::string(backend_->name()).c_str(),
                std::string(DTypeName(options.dtype)).c_str(), backend_->num_threads(), peak_);
    std::printf("%-16s %-22s %6s %9s %8s %6s %7s\n", "model", "operation", "T", "ms", "GFLOP/s",
                "peak", "GB/s");
  }

  void RunShape(const Shape& shape, int tokens) {
    Projection(shape, tokens, "project qkv", shape.heads * 3 * shape.head_rank, 0);
    Projection(shape, tokens, "project (A B)x", shape.d, shape.rank);
    AddNorm(shape, tokens);
    FeedForward(shape, tokens);
    Attention(shape, tokens);
  }

 private:
  struct Cost {
    double flops;
    double bytes;
  };

  Buffer Activations(int64_t rows, int64_t cols) const {
    const std::vector<float> values = Random(rows * cols, 1);
    auto buffer = backend_->Upload(values.data(), values.size(), options_.dtype);
    Die(buffer.status());
    return std::move(buffer).value();
  }

  std::unique_ptr<Linear> MakeLinear(int in, int out, int rank) const {
    const std::vector<float> first =
        Random(size_t(in) * (rank > 0 ? rank : out), 1 / std::sqrt(in));
    const std::vector<float> second = Random(size_t(rank) * out, 1 / std::sqrt(rank + 1));
    const std::vector<float> bias = Random(out, 0.1f);
    LinearSource source = {.in = in, .out = out, .rank = rank, .bias = bias.data()};
    source.weight = rank == 0 ? first.data() : nullptr;
    source.a = rank == 0 ? nullptr : first.data();
    source.b = rank == 0 ? nullptr : second.data();
    auto linear = backend_->PackLinear(source);
    Die(linear.status());
    return std::move(linear).value();
  }

  static double Flops(const Linear& linear, double tokens) {
    return 2 * tokens * static_cast<double>(linear.parameters());
  }

  // As many runs as fit into the time, after one to warm up.
  void Report(const Shape& shape, int tokens, const std::string& operation, Cost cost,
              const std::function<absl::Status()>& run) const {
    const std::string key = std::string(shape.model) + " " + operation;
    if (key.find(options_.filter) == std::string::npos) return;
    const clockid_t clock = options_.threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
    Die(run());
    std::vector<double> times;
    for (double total = 0; total < options_.seconds || times.size() < 5; total += times.back()) {
      const double start = Seconds(clock);
      Die(run());
      times.push_back(Seconds(clock) - start);
    }
    std::nth_element(times.begin(), times.begin() + times.size() / 10, times.end());
    const double seconds = times[times.size() / 10];
    const double gflops = cost.flops / seconds * 1e-9;
    std::printf("%-16s %-22s %6d %9.4f %8.1f %5.0f%% %7.1f\n", shape.model, operation.c_str(),
                tokens, seconds * 1e3, gflops, 100 * gflops / peak_, cost.bytes / seconds * 1e-9);
    std::fflush(stdout);
  }

  Buffer AllocateScratch(size_t bytes) const {
    auto buffer = backend_->Allocate(bytes);
    Die(buffer.status());
    return std::move(buffer).value();
  }

  void Projection(const Shape& shape, int tokens, const char* name, int out, int rank) {
    const auto linear = MakeLinear(shape.d, out, rank);
    const Buffer x = Activations(tokens, shape.d), y = Activations(tokens, out);
    const ProjectArgs args = {.linear = linear.get(),
                              .x = {x.data(), tokens, shape.d, shape.d},
                              .y = {y.data(), tokens, out, out}};
    const Buffer scratch = AllocateScratch(backend_->ScratchBytes(args));
    Report(shape, tokens, name,
           {Flops(*linear, tokens), double(linear->bytes() + x.bytes() + y.bytes())}, [&] {
             return backend_->Project(args, {scratch.data(), scratch.bytes()}, *stream_);
           });
  }

  void AddNorm(const Shape& shape, int tokens) {
    const auto linear = MakeLinear(shape.d, shape.d, shape.rank);
    const std::vector<float> gamma(shape.d, 1), beta(shape.d, 0);
    const Buffer y = Activations(tokens, shape.d), x = Activations(tokens, shape.d);
    const ProjectAddNormArgs args = {.linear = linear.get(),
                                     .y = {y.data(), tokens, shape.d, shape.d},
                                     .x = {x.data(), tokens, shape.d, shape.d},
                                     .norm = {gamma.data(), beta.data(), 1e-12f}};
    const Buffer scratch = AllocateScratch(backend_->ScratchBytes(args));
    Report(shape, tokens, "project+add+norm",
           {Flops(*linear, tokens), double(linear->bytes() + y.bytes() + 2 * x.bytes())}, [&] {
             return backend_->ProjectAddNorm(args, {scratch.data(), scratch.bytes()}, *stream_);
           });
  }

  void FeedForward(const Shape& shape, int tokens) {
    const auto up = MakeLinear(shape.d, shape.hidden, shape.rank);
    const auto down = MakeLinear(shape.hidden, shape.d, shape.rank);
    const std::vector<float> gamma(shape.d, 1), beta(shape.d, 0);
    const Buffer x = Activations(tokens, shape.d);
    const FeedForwardArgs args = {.up = up.get(),
                                  .down = down.get(),
                                  .activation = Activation::kGelu,
                                  .x = {x.data(), tokens, shape.d, shape.d},
                                  .norm = {gamma.data(), beta.data(), 1e-12f}};
    const Buffer scratch = AllocateScratch(backend_->ScratchBytes(args));
    Report(shape, tokens, "feed-forward",
           {Flops(*up, tokens) + Flops(*down, tokens),
            double(up->bytes() + down->bytes() + 2 * x.bytes())},
           [&] {
             return backend_->FeedForward(args, {scratch.data(), scratch.bytes()}, *stream_);
           });
  }

  // Sequences of at most 512 tokens.
  void Attention(const Shape& shape, int tokens) {
    const int length = std::min(tokens, 512), sequences = tokens / length, h = shape.head_rank;
    std::vector<int32_t> cu;
    for (int s = 0; s <= sequences; ++s) cu.push_back(s * length);
    const int64_t columns = int64_t{shape.heads} * 3 * h, out = int64_t{shape.heads} * h;
    const Buffer qkv = Activations(tokens, columns), context = Activations(tokens, out);
    const AttentionArgs args = {.qkv = {qkv.data(), tokens, columns, columns},
                                .context = {context.data(), tokens, out, out},
                                .host_cu_seqlens = cu.data(),
                                .num_sequences = sequences,
                                .max_seqlen = length,
                                .num_heads = shape.heads,
                                .d_qk = h,
                                .d_v = h,
                                .scale = 1 / std::sqrt(float(h))};
    const Buffer scratch = AllocateScratch(backend_->ScratchBytes(args));
    Report(shape, tokens,
           "attention " + std::to_string(sequences) + "x" + std::to_string(length) + " h" +
               std::to_string(h),
           {4.0 * tokens * length * shape.heads * h, double(qkv.bytes() + context.bytes())}, [&] {
             return backend_->Attention(args, {scratch.data(), scratch.bytes()}, *stream_);
           });
  }

  const Options options_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  double peak_ = 0;
};

bool Parse(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const size_t equals = argument.find('=');
    if (equals == std::string_view::npos) return false;
    const std::string value(argument.substr(equals + 1));
    const std::string_view flag = argument.substr(0, equals);
    if (flag == "--dtype" && (value == "f32" || value == "bf16")) {
      options->dtype = value == "f32" ? DType::kF32 : DType::kBF16;
    } else if (flag == "--threads") {
      options->threads = std::max(1, std::atoi(value.c_str()));
    } else if (flag == "--isa") {
      options->isa = value;
      setenv("FLASHSVD_CPU_ISA", value.c_str(), 1);  // the peak's choice as well
    } else if (flag == "--seconds") {
      options->seconds = std::atof(value.c_str());
    } else if (flag == "--filter") {
      options->filter = value;
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace flashsvd

int main(int argc, char** argv) {
  flashsvd::Options options;
  if (!flashsvd::Parse(argc, argv, &options)) {
    std::fprintf(stderr,
                 "usage: kernel_bench [--dtype=f32|bf16] [--threads=N] [--isa=NAME] "
                 "[--seconds=S] [--filter=TEXT]\n");
    return 2;
  }
  flashsvd::KernelBench bench(options);
  for (const flashsvd::Shape& shape : flashsvd::kShapes) {
    for (int tokens : flashsvd::kTokens) bench.RunShape(shape, tokens);
  }
}
