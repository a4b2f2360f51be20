#include "server/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/metrics_endpoint.h"
#include "server/state_collector.h"

namespace flashsvd {
namespace {

using ::testing::HasSubstr;

// Text exposition, taken apart and checked line by line.
struct Exposition {
  std::map<std::string, std::string> types;
  std::set<std::string> helped;
  std::map<std::string, double> samples;  // by series

  explicit Exposition(const std::string& text) {
    const std::regex sample(
        R"(([a-z_:][a-z0-9_:]*)(\{[a-z]+="[^"]*"(?:,[a-z]+="[^"]*")*\})? (\S+))");
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string hash, kind, name, rest;
      if (line.starts_with("# ")) {
        words >> hash >> kind >> name;
        std::getline(words, rest);
        EXPECT_GT(rest.size(), 1u) << line;
        if (kind == "HELP") {
          EXPECT_TRUE(helped.insert(name).second) << line;
        }
        if (kind == "TYPE") types[name] = rest.substr(1);
        continue;
      }
      std::smatch match;
      if (!std::regex_match(line, match, sample)) {
        ADD_FAILURE() << line;
        continue;
      }
      const std::string series = match[1].str() + match[2].str();
      EXPECT_TRUE(samples.emplace(series, std::stod(match[3])).second) << "twice: " << series;
    }
  }

  double operator[](const std::string& series) const {
    const auto it = samples.find(series);
    if (it == samples.end()) {
      ADD_FAILURE() << "no series " << series;
      return -1;
    }
    return it->second;
  }
};

class MetricsTest : public ::testing::Test {
 protected:
  std::string Render() { return RenderMetrics({metrics_.registry(), state_}); }

  Metrics metrics_;
  ModelRegistry models_;
  std::shared_ptr<ModelMetrics> model_ = metrics_.AddModel("m", "cpu");
  std::shared_ptr<StateCollector> state_ =
      std::make_shared<StateCollector>(models_, "cpu", size_t{1} << 29);
};

TEST_F(MetricsTest, EveryFamilyHasTypeAndHelp) {
  const Exposition exposition(Render());
  for (const auto& [name, type] : exposition.types) {
    EXPECT_EQ(exposition.helped.count(name), 1u) << name;
    EXPECT_TRUE(name.starts_with("flashsvd_") || name.starts_with("process_")) << name;
    EXPECT_EQ(type == "counter", name.ends_with("_total")) << name;
  }
  EXPECT_EQ(exposition.types.size(), exposition.helped.size());
}

TEST_F(MetricsTest, LabelSetsExistAtZeroBeforeAnythingHappens) {
  const Exposition exposition(Render());
  for (const std::string series :
       {"flashsvd_requests_total{code=\"OK\",model=\"m\",task=\"embed\"}",
        "flashsvd_requests_total{code=\"RESOURCE_EXHAUSTED\",model=\"m\",task=\"embed_stream\"}",
        "flashsvd_requests_total{code=\"NOT_FOUND\",model=\"\",task=\"tokenize\"}",
        "flashsvd_requests_total{code=\"OK\",model=\"\",task=\"list_models\"}",
        "flashsvd_request_duration_seconds_count{model=\"m\",task=\"embed\"}",
        "flashsvd_rejected_total{model=\"m\",reason=\"items\"}",
        "flashsvd_rejected_total{model=\"m\",reason=\"memory\"}",
        "flashsvd_abandoned_total{model=\"m\",stage=\"queue\"}",
        "flashsvd_tokens_total{kind=\"real\",model=\"m\"}",
        "flashsvd_tokens_total{kind=\"padding\",model=\"m\"}",
        "flashsvd_truncated_inputs_total{model=\"m\"}",
        "flashsvd_input_tokens_count{model=\"m\"}",
        "flashsvd_batch_sequences_count{model=\"m\"}",
        "flashsvd_batch_tokens_count{model=\"m\"}",
        "flashsvd_batch_close_total{model=\"m\",reason=\"delay\"}",
        "flashsvd_batch_workspace_bytes_count{model=\"m\"}",
        "flashsvd_workspace_plan_ratio_count{model=\"m\"}",
        "flashsvd_device_busy_seconds_total{device=\"cpu\"}",
        "flashsvd_device_memory_bytes{device=\"cpu\",pool=\"workspace\"}",
        "flashsvd_device_allocations_total{device=\"cpu\",phase=\"serve\"}",
        "flashsvd_device_memory_peak_bytes{device=\"cpu\",pool=\"workspace\"}",
        "flashsvd_ready"}) {
    EXPECT_EQ(exposition[series], 0) << series;
  }
  for (const std::string stage :
       {"tokenize", "queue", "copy_in", "compute", "copy_out", "serialize"}) {
    EXPECT_EQ(
        exposition["flashsvd_stage_duration_seconds_count{model=\"m\",stage=\"" + stage + "\"}"],
        0);
  }
}

TEST_F(MetricsTest, BatchIsCounted) {
  BatchReport report;
  report.num_sequences = 3;
  report.num_tokens = 70;
  report.close = BatchClose::kTokens;
  report.activation_bytes = 5 << 20;
  report.planned_activation_bytes = 5 << 20;
  report.compute = absl::Milliseconds(3);
  model_->OnBatch(report);
  model_->OnBatch(report);
  const Exposition exposition(Render());
  EXPECT_EQ(exposition["flashsvd_tokens_total{kind=\"real\",model=\"m\"}"], 140);
  EXPECT_EQ(exposition["flashsvd_batch_close_total{model=\"m\",reason=\"tokens\"}"], 2);
  EXPECT_EQ(exposition["flashsvd_batch_tokens_bucket{model=\"m\",le=\"64\"}"], 0);
  EXPECT_EQ(exposition["flashsvd_batch_tokens_bucket{model=\"m\",le=\"128\"}"], 2);
  EXPECT_EQ(exposition["flashsvd_batch_workspace_bytes_bucket{model=\"m\",le=\"4194304\"}"], 0);
  EXPECT_EQ(exposition["flashsvd_batch_workspace_bytes_bucket{model=\"m\",le=\"8388608\"}"], 2);
  EXPECT_EQ(exposition["flashsvd_workspace_plan_ratio_bucket{model=\"m\",le=\"0.999\"}"], 0);
  EXPECT_EQ(exposition["flashsvd_workspace_plan_ratio_bucket{model=\"m\",le=\"1.001\"}"], 2);
  EXPECT_NEAR(exposition["flashsvd_device_busy_seconds_total{device=\"cpu\"}"], 0.006, 1e-9);
  EXPECT_NEAR(exposition["flashsvd_stage_duration_seconds_sum{model=\"m\",stage=\"compute\"}"],
              0.006, 1e-9);
}

TEST_F(MetricsTest, RequestsAreCountedByCode) {
  model_->requests().OnDone(RpcTask::kEmbed, absl::StatusCode::kOk, absl::Milliseconds(2));
  model_->requests().OnDone(RpcTask::kEmbed, absl::StatusCode::kUnavailable, absl::Seconds(20));
  // No method answers with this one.
  model_->requests().OnDone(RpcTask::kEmbed, absl::StatusCode::kAborted, absl::ZeroDuration());
  model_->OnRejected(Rejection::kTokens);
  model_->OnAbandoned();
  model_->OnInput(9, true);
  const Exposition exposition(Render());
  EXPECT_EQ(exposition["flashsvd_requests_total{code=\"OK\",model=\"m\",task=\"embed\"}"], 1);
  EXPECT_EQ(exposition["flashsvd_requests_total{code=\"UNAVAILABLE\",model=\"m\",task=\"embed\"}"],
            1);
  EXPECT_EQ(exposition["flashsvd_requests_total{code=\"UNKNOWN\",model=\"m\",task=\"embed\"}"], 1);
  EXPECT_EQ(
      exposition
          ["flashsvd_request_duration_seconds_bucket{model=\"m\",task=\"embed\",le=\"+Inf\"}"],
      3);
  EXPECT_EQ(exposition["flashsvd_request_duration_seconds_bucket{model=\"m\",task=\"embed\",le="
                       "\"0.002\"}"],
            2);
  EXPECT_EQ(exposition["flashsvd_rejected_total{model=\"m\",reason=\"tokens\"}"], 1);
  EXPECT_EQ(exposition["flashsvd_abandoned_total{model=\"m\",stage=\"queue\"}"], 1);
  EXPECT_EQ(exposition["flashsvd_truncated_inputs_total{model=\"m\"}"], 1);
}

TEST_F(MetricsTest, ProcessAndMemoryAreRead) {
  metrics_.SetReady(true);
  const Exposition exposition(Render());
  EXPECT_EQ(exposition["flashsvd_ready"], 1);
  EXPECT_EQ(exposition["flashsvd_device_memory_budget_bytes{device=\"cpu\"}"], 1 << 29);
  EXPECT_EQ(exposition["flashsvd_device_healthy{device=\"cpu\"}"], 1);
  EXPECT_GT(exposition["process_resident_memory_bytes"], 1 << 20);
  EXPECT_GT(exposition["process_virtual_memory_bytes"],
            exposition["process_resident_memory_bytes"]);
  EXPECT_GE(exposition["process_open_fds"], 3);
  EXPECT_GT(exposition["process_max_fds"], exposition["process_open_fds"]);
  EXPECT_GE(exposition["process_cpu_seconds_total"], 0);
  EXPECT_GE(exposition["process_threads"], 1);
  // After 2020, and not in the future.
  EXPECT_GT(exposition["process_start_time_seconds"], 1.577e9);
  EXPECT_LT(exposition["process_start_time_seconds"],
            absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()) + 2);
  EXPECT_GT(exposition["flashsvd_cgroup_memory_limit_bytes"], 1 << 20);
  EXPECT_GE(exposition["flashsvd_host_heap_bytes{state=\"resident\"}"],
            exposition["flashsvd_host_heap_bytes{state=\"allocated\"}"]);
}

std::string Get(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const std::string request = "GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
  EXPECT_EQ(send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t n = 0; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) answer.append(buffer, n);
  close(fd);
  return answer;
}

TEST_F(MetricsTest, EndpointAnswersScrapes) {
  const auto endpoint = MetricsEndpoint::Start("127.0.0.1", 0, {metrics_.registry(), state_});
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  const std::string answer = Get((*endpoint)->port(), "/metrics");
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200 OK\r\n")) << answer.substr(0, 100);
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
  const size_t body = answer.find("\r\n\r\n");
  ASSERT_NE(body, std::string::npos);
  EXPECT_EQ(Exposition(answer.substr(body + 4))["flashsvd_ready"], 0);
  EXPECT_TRUE(Get((*endpoint)->port(), "/").starts_with("HTTP/1.1 404"));

  const auto second =
      MetricsEndpoint::Start("127.0.0.1", (*endpoint)->port(), {metrics_.registry()});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
}

TEST(StateCollectorTest, SummarisesRanksAndLayouts) {
  std::vector<ModuleInfo> modules(3);
  EXPECT_EQ(RankLabel(modules), "0");
  EXPECT_EQ(LayoutLabel(modules), "dense");
  modules[1].layout = LinearLayout::kPerHead;
  modules[1].rank = 20;
  EXPECT_EQ(RankLabel(modules), "20");
  modules[2].layout = LinearLayout::kFull;
  modules[2].rank = 120;
  EXPECT_EQ(RankLabel(modules), "20-120");
  EXPECT_EQ(LayoutLabel(modules), "full+per_head");
}

}  // namespace
}  // namespace flashsvd
