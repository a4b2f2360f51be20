#include "server/server.h"

#include <set>
#include <string>

#include "gmock/gmock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "gtest/gtest.h"
#include "server/check.h"
#include "tests/testing/served_model.h"

namespace flashsvd {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using ::testing::HasSubstr;

class ServerTest : public ::testing::Test {
 protected:
  ServerTest() {
    testing::WriteServedModel(dir_, "tiny");
    config_.models = {{"tiny", dir_.File("tiny")}};
    config_.listen = "127.0.0.1";
    config_.port = 0;
    config_.metrics_port = 0;
    config_.device = "cpu";
    config_.threads = 1;
    config_.max_batch_tokens = 256;
    config_.drain_delay = absl::ZeroDuration();
  }

  void Start() {
    auto server = Server::Start(config_, clock_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(server_->port()),
                                   grpc::InsecureChannelCredentials());
    health_ = Health::NewStub(channel_);
  }

  // "SERVING", "NOT_SERVING", or the name of the error.
  std::string HealthOf(const std::string& service) {
    grpc::ClientContext context;
    HealthCheckRequest request;
    request.set_service(service);
    HealthCheckResponse response;
    const grpc::Status status = health_->Check(&context, request, &response);
    return status.ok() ? HealthCheckResponse::ServingStatus_Name(response.status())
                       : status.error_message();
  }

  testing::TempDir dir_;
  ServerConfig config_;
  SystemClock clock_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<Health::Stub> health_;
};

TEST_F(ServerTest, HealthFollowsLoadingAndDraining) {
  Start();
  EXPECT_EQ(HealthOf(""), "NOT_SERVING");
  EXPECT_EQ(HealthOf(kEncoderServiceName), "NOT_SERVING");
  ASSERT_TRUE(server_->LoadModels().ok());
  EXPECT_EQ(HealthOf(""), "SERVING");
  EXPECT_EQ(HealthOf(kEncoderServiceName), "SERVING");
  EXPECT_EQ(HealthOf("flashsvd.v1.Nothing"), "unknown service");
  EXPECT_THAT(server_->RenderMetrics(), HasSubstr("\nflashsvd_ready 1\n"));
  // A liveness probe asks for "" and must not kill what drains.
  server_->ReportDraining();
  EXPECT_EQ(HealthOf(""), "SERVING");
  EXPECT_EQ(HealthOf(kEncoderServiceName), "NOT_SERVING");
  EXPECT_THAT(server_->RenderMetrics(), HasSubstr("\nflashsvd_ready 0\n"));
  server_->ReportFailure();
  EXPECT_EQ(HealthOf(""), "NOT_SERVING");
}

TEST_F(ServerTest, WatchSeesEveryChangeAndDoesNotHoldUpADrain) {
  config_.drain_timeout = absl::Hours(1);
  Start();
  grpc::ClientContext context, unknown_context;
  HealthCheckRequest request;
  request.set_service("what");
  HealthCheckResponse response;
  const auto unknown = health_->Watch(&unknown_context, request);
  ASSERT_TRUE(unknown->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);

  request.set_service(kEncoderServiceName);
  const auto watch = health_->Watch(&context, request);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  ASSERT_TRUE(server_->LoadModels().ok());
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  server_->Drain();
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(unknown->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

// ServerReflectionRequest { string list_services = 7; } -> ServerReflectionResponse
// { ListServiceResponse list_services_response = 6 { repeated ServiceResponse service = 1
// { string name = 1; } } }
TEST_F(ServerTest, ReflectionListsServices) {
  Start();
  grpc::GenericStub generic(channel_);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto call = generic.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag = nullptr;
  bool ok = false;
  const auto wait = [&] { ASSERT_TRUE(queue.Next(&tag, &ok) && ok); };
  call->StartCall(nullptr);
  wait();
  const grpc::Slice slice(std::string("\x3a\x01*"));
  call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  wait();
  grpc::ByteBuffer reply;
  call->Read(&reply, nullptr);
  wait();
  grpc::Slice bytes;
  ASSERT_TRUE(reply.DumpToSingleSlice(&bytes).ok());
  const std::string text(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
  EXPECT_THAT(text, HasSubstr("flashsvd.v1.EncoderService"));
  EXPECT_THAT(text, HasSubstr("grpc.health.v1.Health"));
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
}

TEST_F(ServerTest, RefusesPortThatIsTaken) {
  Start();
  ServerConfig other = config_;
  other.port = server_->port();
  EXPECT_THAT(std::string(Server::Start(other, clock_).status().message()),
              HasSubstr("port: cannot listen on 127.0.0.1:"));
  other = config_;
  other.metrics_port = server_->metrics_port();
  EXPECT_THAT(std::string(Server::Start(other, clock_).status().message()),
              HasSubstr("metrics_port: cannot listen on 127.0.0.1:"));
}

TEST_F(ServerTest, ModelsShareTheMemoryBudget) {
  testing::WriteServedModel(dir_, "second");
  config_.models.push_back({"second", dir_.File("second")});
  config_.memory_budget = 64 << 20;
  Start();
  ASSERT_TRUE(server_->LoadModels().ok());
  const MemoryInfo& tiny = server_->models().Find("tiny")->model->memory();
  const size_t first = tiny.weights + tiny.arenas + tiny.io;
  size_t used = 0;
  for (const ServedModel& served : server_->models().All()) {
    const MemoryInfo& memory = served.model->memory();
    // "second" is loaded after "tiny", and listed before it.
    EXPECT_EQ(memory.budget, served.model->name() == "tiny" ? 64u << 20 : (64u << 20) - first);
    used += memory.weights + memory.arenas + memory.io;
  }
  EXPECT_LE(used, 64u << 20);

  // What one model takes, two cannot share.
  config_.memory_budget = static_cast<int64_t>(used / 2);
  Start();
  const absl::Status status = server_->LoadModels();
  EXPECT_THAT(std::string(status.message()), HasSubstr("memory_budget"));
}

TEST_F(ServerTest, CheckPrintsThePlan) {
  const auto table = RunCheck(config_);
  ASSERT_TRUE(table.ok()) << table.status();
  for (const char* row : {"model tiny", "weights", "activations, all slots", "slots", "budget"}) {
    EXPECT_THAT(*table, HasSubstr(row));
  }
}

TEST_F(ServerTest, CheckNamesFileAndField) {
  config_.models[0].dir = dir_.File("nowhere");
  EXPECT_THAT(std::string(RunCheck(config_).status().message()),
              HasSubstr("nowhere: no such directory"));
  dir_.Write("tiny/config.json", R"({"model_type": "bert", "hidden_size": "wide"})");
  config_.models[0].dir = dir_.File("tiny");
  const std::string message(RunCheck(config_).status().message());
  EXPECT_THAT(message, HasSubstr("tiny/config.json"));
  EXPECT_THAT(message, HasSubstr("hidden_size"));
}

TEST_F(ServerTest, HealthcheckFindsServerThroughPortFile) {
  Start();
  const std::string file = dir_.File("ports");
  ASSERT_TRUE(WritePortFile(file, server_->port(), server_->metrics_port()).ok());
  ServerConfig probe;
  probe.listen = "127.0.0.1";
  probe.port = 0;
  probe.port_file = file;
  EXPECT_THAT(std::string(RunHealthcheck(probe).message()), HasSubstr("NOT_SERVING"));
  ASSERT_TRUE(server_->LoadModels().ok());
  EXPECT_TRUE(RunHealthcheck(probe).ok());
  probe.port_file = dir_.File("other");
  EXPECT_THAT(std::string(RunHealthcheck(probe).message()), HasSubstr("names no gRPC port"));
  EXPECT_FALSE(WritePortFile("/nowhere/ports", 1, 2).ok());
}

}  // namespace
}  // namespace flashsvd
