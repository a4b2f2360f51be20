// The server on a CUDA device: replicas on one queue, no allocation while serving, and an end, not
// a hang, when the device fails. Skips without a device.

#include <cmath>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "flashsvd/v1/encoder.grpc.pb.h"
#include "gmock/gmock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"
#include "kernels/backend_factory.h"
#include "kernels/cuda/cuda_device.h"
#include "server/lifecycle.h"
#include "server/server.h"
#include "tests/testing/device_fault.h"
#include "tests/testing/served_model.h"

namespace flashsvd {
namespace {

using ::testing::HasSubstr;

class CudaServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasCuda()) GTEST_SKIP() << "no CUDA device";
    testing::WriteServedModel(dir_, "tiny");
    config_.models = {{"tiny", dir_.File("tiny")}};
    config_.listen = "127.0.0.1";
    config_.port = 0;
    config_.metrics_port = -1;
    config_.max_batch_tokens = 512;
    config_.drain_delay = absl::ZeroDuration();
    config_.device = "cuda";
  }

  void Start() {
    auto server = Server::Start(config_, clock_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    const absl::Status loaded = server_->LoadModels();
    ASSERT_TRUE(loaded.ok()) << loaded;
    channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(server_->port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::EncoderService::NewStub(channel_);
  }

  grpc::Status Embed(const std::vector<std::string>& texts, v1::EmbedResponse* response) {
    grpc::ClientContext context;
    v1::EmbedRequest request;
    for (const std::string& text : texts) request.mutable_text()->add_texts(text);
    return stub_->Embed(&context, request, response);
  }

  // Many clients at once on two replicas: every answer is the first's, but for rounding.
  void ExpectReplicasAnswerAlike() {
    Start();
    const Model& model = *server_->models().Find("tiny")->model;
    EXPECT_EQ(model.num_replicas(), 2);
    EXPECT_EQ(model.options().engine.num_slots, 2);
    EXPECT_THAT(std::string(model.backend().name()), HasSubstr("cuda:0/"));
    const std::vector<std::string> texts = {"the cat sat", "hello world"};
    v1::EmbedResponse first;
    ASSERT_TRUE(Embed(texts, &first).ok());
    const std::vector<float> expected = Values(first);
    ASSERT_EQ(expected.size(), texts.size() * testing::kServedHidden);
    std::vector<std::future<void>> clients;
    for (int c = 0; c < 8; ++c) {
      clients.push_back(std::async(std::launch::async, [&] {
        for (int i = 0; i < 50; ++i) {
          v1::EmbedResponse response;
          const grpc::Status status = Embed(texts, &response);
          ASSERT_TRUE(status.ok()) << status.error_message();
          ExpectNear(Values(response), expected);
        }
      }));
    }
    for (std::future<void>& client : clients) client.get();
    EXPECT_EQ(model.serve_allocations(), 0);
    EXPECT_GT(model.load_allocations(), 0);
  }

  static std::vector<float> Values(const v1::EmbedResponse& response) {
    const std::string& bytes = response.embeddings().data();
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
    return values;
  }

  // Vectors of length 1, of the same input in bf16 within any batch: each of the two layers may
  // round a few values the other way.
  static void ExpectNear(const std::vector<float>& got, const std::vector<float>& expected) {
    ASSERT_EQ(got.size(), expected.size());
    for (size_t row = 0; row < got.size(); row += testing::kServedHidden) {
      double squares = 0;
      for (size_t i = row; i < row + testing::kServedHidden; ++i) {
        squares += (got[i] - expected[i]) * (got[i] - expected[i]);
      }
      ASSERT_LE(std::sqrt(squares), 4 * 0x1p-8) << "row " << row / testing::kServedHidden;
    }
  }

  testing::TempDir dir_;
  ServerConfig config_;
  SystemClock clock_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::EncoderService::Stub> stub_;
};

TEST_F(CudaServerTest, ReplicasShareOneQueueAndAllocateNothing) {
  config_.devices = {0, 0};
  ExpectReplicasAnswerAlike();
}

TEST_F(CudaServerTest, DevicesShareOneQueueAndAllocateNothing) {
  if (NumCudaDevices() < 2) GTEST_SKIP() << "one CUDA device";
  config_.devices = {0, 1};
  ExpectReplicasAnswerAlike();
}

// The last test: no CUDA call of this process works after it.
TEST_F(CudaServerTest, FailedDeviceEndsTheServerWithAnError) {
  Start();
  ShutdownSignals signals;
  std::future<int> served = std::async(std::launch::async, [&] {
    return ServeUntilShutdown(*server_, signals, absl::ZeroDuration());
  });
  v1::EmbedResponse response;
  ASSERT_TRUE(Embed({"hello"}, &response).ok());
  testing::BreakCudaDevice();
  const grpc::Status status = Embed({"hello"}, &response);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.error_message(), HasSubstr("cuda:0"));
  EXPECT_EQ(served.get(), 1);
  EXPECT_FALSE(server_->DeviceHealth().ok());
}

}  // namespace
}  // namespace flashsvd
