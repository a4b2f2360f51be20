#include "bench/load_gen.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <memory>
#include <random>
#include <thread>
#include <utility>

#include "flashsvd/v1/encoder.grpc.pb.h"
#include "fmt/format.h"
#include "grpcpp/grpcpp.h"
#include "kernels/status_macros.h"

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

void RunClient(v1::EncoderService::Stub& stub, const std::vector<v1::EmbedRequest>& requests,
               size_t first, SteadyClock::time_point begin, SteadyClock::time_point end,
               ClientLog* log) {
  for (size_t i = first; SteadyClock::now() < end; ++i) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    v1::EmbedResponse response;
    const auto start = SteadyClock::now();
    const grpc::Status status = stub.Embed(&context, requests[i % requests.size()], &response);
    const auto stop = SteadyClock::now();
    if (start < begin) continue;  // warming up
    if (!status.ok()) {
      ++log->errors[fmt::format("{}: {}", static_cast<int>(status.error_code()),
                                status.error_message())];
      continue;
    }
    const v1::Usage& usage = response.usage();
    log->samples.push_back({.latency = Milliseconds(stop - start),
                            .queue = usage.queue_ns() * 1e-6,
                            .compute = usage.compute_ns() * 1e-6});
    log->tokens += static_cast<int64_t>(usage.tokens());
    log->activation_bytes = std::max<uint64_t>(log->activation_bytes, usage.activation_bytes());
  }
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

LoadResult Summarise(const std::vector<ClientLog>& logs, double seconds) {
  LoadResult result;
  std::vector<Sample> samples;
  int64_t tokens = 0;
  for (const ClientLog& log : logs) {
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
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  const auto channel =
      grpc::CreateCustomChannel(options.address, grpc::InsecureChannelCredentials(), arguments);
  const auto stub = v1::EncoderService::NewStub(channel);
  v1::Model model;
  {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::GetModelRequest request;
    request.set_model(options.model);
    const grpc::Status status = stub->GetModel(&context, request, &model);
    if (!status.ok()) {
      return absl::UnavailableError(fmt::format("{}: {}", options.address, status.error_message()));
    }
  }
  FSVD_ASSIGN_OR_RETURN(const std::vector<v1::EmbedRequest> requests, MakeRequests(options, model));

  const auto begin = SteadyClock::now() + std::chrono::seconds(1);
  const auto end = begin + std::chrono::duration_cast<SteadyClock::duration>(
                               std::chrono::duration<double>(options.seconds));
  std::vector<ClientLog> logs(options.concurrency);
  std::vector<std::thread> clients;
  for (int c = 0; c < options.concurrency; ++c) {
    clients.emplace_back(RunClient, std::ref(*stub), std::cref(requests),
                         static_cast<size_t>(c) * 17, begin, end, &logs[c]);
  }
  for (std::thread& client : clients) client.join();
  return Summarise(logs, options.seconds);
}

}  // namespace flashsvd
