#include "bench/load_gen.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/server.h"
#include "tests/testing/served_model.h"

namespace flashsvd {
namespace {

using ::testing::HasSubstr;

class LoadGenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::WriteServedModel(dir_, "tiny");
    config_.models = {{"tiny", dir_.File("tiny")}};
    config_.listen = "127.0.0.1";
    config_.port = 0;
    config_.metrics_port = -1;
    config_.device = "cpu";
    config_.threads = 1;
    config_.max_batch_tokens = 256;
    config_.drain_delay = absl::ZeroDuration();
    auto server = Server::Start(config_, clock_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    ASSERT_TRUE(server_->LoadModels().ok());
    options_.address = "127.0.0.1:" + std::to_string(server_->port());
    options_.lengths = {3, 5};
    options_.warm_up_seconds = 0;
    options_.seconds = 0.2;
  }

  testing::TempDir dir_;
  ServerConfig config_;
  SystemClock clock_;
  std::unique_ptr<Server> server_;
  LoadOptions options_;
};

TEST_F(LoadGenTest, CountsWhatTheServerAnswered) {
  for (const int connections : {0, 1, 3}) {
    options_.concurrency = 5;
    options_.connections = connections;
    options_.batch = 2;
    const auto result = RunLoad(options_);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->errors.empty());
    // Each client sends at least once; requests have two inputs of three or five tokens.
    EXPECT_GE(result->requests, 5);
    const double tokens = result->tokens_per_s * options_.seconds;
    EXPECT_GE(tokens, 6.0 * static_cast<double>(result->requests));
    EXPECT_LE(tokens, 10.0 * static_cast<double>(result->requests));
    EXPECT_NEAR(result->requests_per_s * options_.seconds, static_cast<double>(result->requests),
                0.5);
    EXPECT_LE(result->latency_p50, result->latency_p90);
    EXPECT_LE(result->latency_p90, result->latency_p99);
    EXPECT_GT(result->latency_p50, 0);
    EXPECT_GT(result->activation_bytes, 0u);
  }
}

TEST_F(LoadGenTest, CountsRefusedRequestsByTheirError) {
  options_.lengths = {200};  // more than the model's positions
  const auto result = RunLoad(options_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->requests, 0);
  ASSERT_EQ(result->errors.size(), 1u);
  EXPECT_THAT(result->errors.begin()->first, HasSubstr("200"));
  EXPECT_GE(result->errors.begin()->second, 1);
}

TEST_F(LoadGenTest, SaysWhatItCannotReachOrFind) {
  options_.model = "other";
  EXPECT_THAT(std::string(RunLoad(options_).status().message()), HasSubstr("other"));
  server_.reset();
  EXPECT_THAT(std::string(RunLoad(options_).status().message()), HasSubstr(options_.address));
}

}  // namespace
}  // namespace flashsvd
