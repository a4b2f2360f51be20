#include <signal.h>
#include <unistd.h>

#include <latch>
#include <string>
#include <thread>
#include <vector>

#include "flashsvd/v1/encoder.grpc.pb.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"
#include "server/lifecycle.h"
#include "server/server.h"
#include "tests/testing/served_model.h"

namespace flashsvd {
namespace {

using ::testing::AnyOf;

constexpr int kClients = 6;
constexpr int kRequestsBeforeSignal = 20;

// What one client saw.
struct Tally {
  int answered = 0;
  grpc::Status last;  // that ended it
};

v1::EmbedRequest SomeTexts() {
  v1::EmbedRequest request;
  for (int i = 0; i < 16; ++i) request.mutable_text()->add_texts("the cat sat on the mat");
  return request;
}

bool IsComplete(const v1::EmbedResponse& response) {
  return response.embeddings().data().size() == 16 * testing::kServedHidden * sizeof(float);
}

// Calls until the server answers no more.
Tally CallUntilRefused(v1::EncoderService::Stub& stub, std::latch* warm) {
  Tally tally;
  const v1::EmbedRequest request = SomeTexts();
  for (;;) {
    grpc::ClientContext context;
    v1::EmbedResponse response;
    tally.last = stub.Embed(&context, request, &response);
    if (!tally.last.ok()) {
      if (tally.answered < kRequestsBeforeSignal) warm->count_down();
      return tally;
    }
    EXPECT_TRUE(IsComplete(response));
    if (++tally.answered == kRequestsBeforeSignal) warm->count_down();
  }
}

// Writes as fast as the window allows.
Tally StreamUntilRefused(v1::EncoderService::Stub& stub, std::latch* warm) {
  Tally tally;
  grpc::ClientContext context;
  const auto stream = stub.EmbedStream(&context);
  std::thread writer([&] {
    v1::EmbedStreamRequest message;
    *message.mutable_request() = SomeTexts();
    for (int i = 0;; ++i) {
      message.set_id(std::to_string(i));
      if (!stream->Write(message)) return;
    }
  });
  v1::EmbedStreamResponse reply;
  while (stream->Read(&reply)) {
    EXPECT_EQ(reply.id(), std::to_string(tally.answered));
    EXPECT_EQ(reply.code(), 0) << reply.error_message();
    EXPECT_TRUE(IsComplete(reply.response()));
    if (++tally.answered == kRequestsBeforeSignal) warm->count_down();
  }
  if (tally.answered < kRequestsBeforeSignal) warm->count_down();
  // The call is over, so that a write in progress fails.
  writer.join();
  tally.last = stream->Finish();
  return tally;
}

double MetricValue(const std::string& text, const std::string& series) {
  const size_t at = text.find("\n" + series + " ");
  return at == std::string::npos ? -1 : std::stod(text.substr(at + series.size() + 2));
}

TEST(DrainTest, EveryAcceptedRequestIsAnsweredAfterSigterm) {
  ShutdownSignals signals;
  const testing::TempDir dir;
  testing::WriteServedModel(dir, "tiny");
  ServerConfig config;
  config.models = {{"tiny", dir.File("tiny")}};
  config.listen = "127.0.0.1";
  config.port = 0;
  config.metrics_port = 0;
  config.device = "cpu";
  config.threads = 1;
  config.max_batch_tokens = 256;
  // Far longer than it can take: a drain must not get there.
  config.drain_timeout = absl::Seconds(300);
  const SystemClock clock;
  auto server = Server::Start(config, clock);
  ASSERT_TRUE(server.ok()) << server.status();
  ASSERT_TRUE((*server)->LoadModels().ok());
  signals.Arm();

  const std::string address = "127.0.0.1:" + std::to_string((*server)->port());
  std::latch warm(kClients);
  std::vector<Tally> tallies(kClients);
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&, i] {
      // A connection each, and no retries behind our back.
      grpc::ChannelArguments arguments;
      arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
      arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
      const auto stub = v1::EncoderService::NewStub(
          grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
      tallies[i] = i % 2 == 0 ? CallUntilRefused(*stub, &warm) : StreamUntilRefused(*stub, &warm);
    });
  }
  std::thread killer([&] {
    warm.wait();
    kill(getpid(), SIGTERM);
  });
  EXPECT_EQ(ServeUntilShutdown(**server, signals, absl::ZeroDuration()), 0);
  killer.join();
  for (std::thread& client : clients) client.join();

  double unary = 0, streamed = 0;
  for (int i = 0; i < kClients; ++i) {
    // CANCELLED is what gRPC says of a call that arrives in the moment of its Shutdown.
    EXPECT_THAT(tallies[i].last.error_code(),
                AnyOf(grpc::StatusCode::UNAVAILABLE, grpc::StatusCode::CANCELLED))
        << "client " << i << ": " << tallies[i].last.error_message();
    (i % 2 == 0 ? unary : streamed) += tallies[i].answered;
  }
  // Whatever the service took on, a client got the answer to, and nothing failed.
  const std::string metrics = (*server)->RenderMetrics();
  const auto count = [&](const std::string& code, const std::string& task) {
    return MetricValue(metrics, "flashsvd_requests_total{code=\"" + code +
                                    "\",model=\"tiny\",task=\"" + task + "\"}");
  };
  EXPECT_EQ(count("OK", "embed"), unary);
  EXPECT_EQ(count("OK", "embed_stream"), streamed);
  for (const std::string code :
       {"CANCELLED", "UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}) {
    EXPECT_EQ(count(code, "embed"), 0) << code;
    EXPECT_EQ(count(code, "embed_stream"), 0) << code;
  }
}

}  // namespace
}  // namespace flashsvd
