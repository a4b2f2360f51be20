#include "bench/load_gen.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <utility>

#include "flashsvd/v1/encoder.grpc.pb.h"
#include "fmt/format.h"
#include "grpcpp/grpcpp.h"
#include "kernels/status_macros.h"
#include "runtime/mutex.h"

namespace flashsvd {
namespace {

using SteadyClock = std::chrono::steady_clock;

struct Sample {
  double latency = 0;
  double queue = 0;
  double compute = 0;
};

// What one client saw.
struct ClientLog {
  std::vector<Sample> samples;
  std::map<std::string, int64_t> errors;
  int64_t tokens = 0;
  uint64_t activation_bytes = 0;
};

double Milliseconds(SteadyClock::duration d) {
  return std::chrono::duration<double, std::milli>(d).count();
}

// Requests made in advance, so that the loop measures the server.
absl::StatusOr<std::vector<v1::EmbedRequest>> MakeRequests(const LoadOptions& options,
                                                           const v1::Model& model) {
  constexpr int kRequests = 256;
  std::vector<v1::EmbedRequest> requests(kRequests);
  std::mt19937_64 generator(options.seed);
  std::vector<std::string> texts;
  if (!options.texts_file.empty()) {
    std::ifstream file(options.texts_file);
    for (std::string line; std::getline(file, line);) {
      if (!line.empty()) texts.push_back(line);
    }
    if (texts.empty()) {
      return absl::InvalidArgumentError(fmt::format("{}: no texts", options.texts_file));
    }
  }
  const std::vector<int> lengths =
      options.lengths.empty() ? std::vector<int>{128} : options.lengths;
  std::uniform_int_distribution<int32_t> id(1, static_cast<int32_t>(model.vocab_size()) - 1);
  size_t next = 0;
  for (v1::EmbedRequest& request : requests) {
    request.set_model(options.model);
    for (int i = 0; i < options.batch; ++i) {
      if (!texts.empty()) {
        request.mutable_text()->add_texts(texts[next++ % texts.size()]);
        continue;
      }
      auto* sequence = request.mutable_tokens()->add_sequences();
      const int length = lengths[generator() % lengths.size()];
      for (int t = 0; t < length; ++t) sequence->add_ids(id(generator));
    }
  }
  return requests;
}

class Countdown {
 public:
  explicit Countdown(int count) : count_(count) {}
  void Decrement() {
    MutexLock lock(&mu_);
    if (--count_ == 0) zero_.SignalAll();
  }
  void WaitForZero() {
    MutexLock lock(&mu_);
    while (count_ > 0) zero_.Wait(&mu_);
  }

 private:
  Mutex mu_;
  CondVar zero_;
  int count_ ABSL_GUARDED_BY(mu_);
};

// One request in flight, from the first to the last: each answer, on a thread of gRPC's, sends the
// next. Starting costs no thread, so that 4096 clients measure the server and not the scheduler.
class Client {
 public:
  Client(v1::EncoderService::Stub& stub, const std::vector<v1::EmbedRequest>& requests,
         size_t first, SteadyClock::time_point begin, SteadyClock::time_point end,
         Countdown* running)
      : stub_(stub),
        requests_(requests),
        next_(first),
        begin_(begin),
        end_(end),
        running_(*running) {}

  void Send() {
    start_ = SteadyClock::now();
    if (start_ >= end_) {
      running_.Decrement();
      return;
    }
    context_.emplace();
    context_->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    stub_.async()->Embed(&*context_, &requests_[next_++ % requests_.size()], &response_,
                         [this](const grpc::Status& status) {
                           if (start_ >= begin_) Record(status);
                           Send();
                         });
  }

  // Once `running` has reached zero.
  ClientLog TakeLog() {
    MutexLock lock(&mu_);
    return std::move(log_);
  }

 private:
  void Record(const grpc::Status& status) {
    MutexLock lock(&mu_);
    if (!status.ok()) {
      ++log_.errors[fmt::format("{}: {}", static_cast<int>(status.error_code()),
                                status.error_message())];
      return;
    }
    const v1::Usage& usage = response_.usage();
    log_.samples.push_back({.latency = Milliseconds(SteadyClock::now() - start_),
                            .queue = usage.queue_ns() * 1e-6,
                            .compute = usage.compute_ns() * 1e-6});
    log_.tokens += static_cast<int64_t>(usage.tokens());
    log_.activation_bytes = std::max<uint64_t>(log_.activation_bytes, usage.activation_bytes());
  }

  v1::EncoderService::Stub& stub_;
  const std::vector<v1::EmbedRequest>& requests_;
  size_t next_;
  const SteadyClock::time_point begin_;  // what is sent before is warming up
  const SteadyClock::time_point end_;
  Countdown& running_;
  Mutex mu_;
  ClientLog log_ ABSL_GUARDED_BY(mu_);
  SteadyClock::time_point start_;
  std::optional<grpc::ClientContext> context_;
  v1::EmbedResponse response_;
};

// A connection of its own each: channels to one address share one unless told otherwise.
std::vector<std::unique_ptr<v1::EncoderService::Stub>> Connect(const LoadOptions& options) {
  constexpr int kRequestsPerConnection = 16;
  constexpr int kMostConnections = 16;
  const int count =
      options.connections > 0
          ? std::min(options.connections, options.concurrency)
          : std::clamp(options.concurrency / kRequestsPerConnection, 1, kMostConnections);
  std::vector<std::unique_ptr<v1::EncoderService::Stub>> stubs;
  for (int i = 0; i < count; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stubs.push_back(v1::EncoderService::NewStub(
        grpc::CreateCustomChannel(options.address, grpc::InsecureChannelCredentials(), arguments)));
  }
  return stubs;
}

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const size_t rank =
      std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(rank), values.end());
  return values[rank];
}

template <typename Of>
std::vector<double> Collect(const std::vector<Sample>& samples, Of of) {
  std::vector<double> values;
  values.reserve(samples.size());
  for (const Sample& s : samples) values.push_back(of(s));
  return values;
}

LoadResult Summarise(std::deque<Client>& clients, double seconds) {
  LoadResult result;
  std::vector<Sample> samples;
  int64_t tokens = 0;
  for (Client& client : clients) {
    const ClientLog log = client.TakeLog();
    samples.insert(samples.end(), log.samples.begin(), log.samples.end());
    for (const auto& [error, count] : log.errors) result.errors[error] += count;
    tokens += log.tokens;
    result.activation_bytes = std::max(result.activation_bytes, log.activation_bytes);
  }
  const auto latencies = Collect(samples, [](const Sample& s) { return s.latency; });
  result.requests = static_cast<int64_t>(samples.size());
  result.latency_p50 = Percentile(latencies, 0.5);
  result.latency_p90 = Percentile(latencies, 0.9);
  result.latency_p99 = Percentile(latencies, 0.99);
  result.compute_p50 = Percentile(Collect(samples, [](const Sample& s) { return s.compute; }), 0.5);
  result.queue_p50 = Percentile(Collect(samples, [](const Sample& s) { return s.queue; }), 0.5);
  result.overhead_p50 = Percentile(
      Collect(samples, [](const Sample& s) { return s.latency - s.queue - s.compute; }), 0.5);
  result.requests_per_s = static_cast<double>(result.requests) / seconds;
  result.tokens_per_s = static_cast<double>(tokens) / seconds;
  return result;
}

}  // namespace

absl::StatusOr<LoadResult> RunLoad(const LoadOptions& options) {
  const auto stubs = Connect(options);
  v1::Model model;
  {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::GetModelRequest request;
    request.set_model(options.model);
    const grpc::Status status = stubs.front()->GetModel(&context, request, &model);
    if (!status.ok()) {
      return absl::UnavailableError(fmt::format("{}: {}", options.address, status.error_message()));
    }
  }
  FSVD_ASSIGN_OR_RETURN(const std::vector<v1::EmbedRequest> requests, MakeRequests(options, model));

  const auto duration = [](double seconds) {
    return std::chrono::duration_cast<SteadyClock::duration>(
        std::chrono::duration<double>(seconds));
  };
  const auto begin = SteadyClock::now() + duration(options.warm_up_seconds);
  const auto end = begin + duration(options.seconds);
  Countdown running(options.concurrency);
  std::deque<Client> clients;
  for (int c = 0; c < options.concurrency; ++c) {
    clients.emplace_back(*stubs[c % stubs.size()], requests, static_cast<size_t>(c) * 17, begin,
                         end, &running);
  }
  for (Client& client : clients) client.Send();
  running.WaitForZero();
  return Summarise(clients, options.seconds);
}

}  // namespace flashsvd
