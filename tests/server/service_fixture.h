#ifndef FLASHSVD_TESTS_SERVER_SERVICE_FIXTURE_H_
#define FLASHSVD_TESTS_SERVER_SERVICE_FIXTURE_H_

#include <atomic>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "flashsvd/v1/encoder.grpc.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "server/encoder_service.h"
#include "server/metrics_endpoint.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/served_model.h"

namespace flashsvd {

// Keeps the reactor of the newest call. Whether gRPC has noticed that a client left does not show,
// so a test tells the service itself, at the moment that it wants to look at.
class WatchedService final : public EncoderService {
 public:
  using EncoderService::EncoderService;

  grpc::ServerUnaryReactor* Embed(grpc::CallbackServerContext* call,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override {
    return Watch(EncoderService::Embed(call, request, response));
  }
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* EmbedStream(
      grpc::CallbackServerContext* call) override {
    return Watch(EncoderService::EmbedStream(call));
  }

  // Until a call has come and the service has done what it does at once.
  void AwaitCall() const { newest_.wait(nullptr); }
  // REQUIRES: a call has come and cannot end yet, since its work is held up.
  void CancelNewest() const { newest_.load()->OnCancel(); }

 private:
  template <typename Reactor>
  Reactor* Watch(Reactor* reactor) {
    newest_ = reactor;
    newest_.notify_all();
    return reactor;
  }

  std::atomic<grpc::internal::ServerReactor*> newest_{nullptr};
};

// The service over loopback, with two small models "one" and "two", a clock that the test moves and
// a single worker that the test can hold up.
class ServiceFixture : public ::testing::Test {
 protected:
  explicit ServiceFixture(int max_waiting_jobs = 64)
      : workers_({.num_threads = 1, .max_jobs = max_waiting_jobs, .max_bytes = 1 << 20}),
        service_(ServiceContext{MakeLimits(), clock_, models_, metrics_, workers_, gate_}) {
    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(1 << 20);
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(port_),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::EncoderService::NewStub(channel_);
  }

  ~ServiceFixture() override {
    Release();
    server_->Shutdown();
    for (const ServedModel& served : models_.All()) served.model->engine().Drain();
  }

  static RequestLimits MakeLimits() {
    RequestLimits limits;
    limits.max_inputs_per_request = 8;
    limits.max_text_bytes = 4096;
    limits.stream_window = kStreamWindow;
    return limits;
  }

  void LoadModel(const std::string& name) {
    testing::WriteServedModel(dir_, name);
    ModelOptions options;
    options.name = name;
    options.dir = dir_.File(name);
    options.backend.device = "cpu";
    options.backend.num_threads = 1;
    options.engine.batcher.max_batch_tokens = 256;
    const auto metrics = metrics_.AddModel(name, "cpu");
    auto model = Model::Load(options, clock_, *metrics);
    ASSERT_TRUE(model.ok()) << model.status();
    ASSERT_TRUE(models_.Add({metrics, *std::move(model)}).ok());
  }

  // Holds up the worker until Release.
  void Hold() {
    const auto held = std::make_shared<std::latch>(1);
    const auto started = std::make_shared<std::latch>(1);
    ASSERT_FALSE(workers_.Submit(0, [held, started] {
      started->count_down();
      held->wait();
    }));
    started->wait();
    held_ = held;
  }
  void Release() {
    if (held_ != nullptr) held_->count_down();
    held_ = nullptr;
  }

  // Until so many jobs wait for the worker, which is held up.
  void AwaitJobs(int count) {
    while (workers_.num_waiting() < count) std::this_thread::yield();
  }

  grpc::Status Embed(const v1::EmbedRequest& request, v1::EmbedResponse* response) {
    grpc::ClientContext context;
    return stub_->Embed(&context, request, response);
  }

  static v1::EmbedRequest TextRequest(const std::vector<std::string>& texts) {
    v1::EmbedRequest request;
    request.set_model("one");
    request.mutable_text();
    for (const std::string& text : texts) request.mutable_text()->add_texts(text);
    return request;
  }
  // Too large to be handled on gRPC's thread.
  static v1::EmbedRequest LargeRequest() { return TextRequest({std::string(3000, 'a')}); }

  std::string Exposition() const { return RenderMetrics({metrics_.registry()}); }
  // The value of a series as it is exposed; -1: no such series.
  double MetricValue(const std::string& series) const {
    const std::string text = "\n" + Exposition();
    const size_t at = text.find("\n" + series + " ");
    return at == std::string::npos ? -1 : std::stod(text.substr(at + series.size() + 2));
  }

  static constexpr int kStreamWindow = 4;

  testing::TempDir dir_;
  FakeClock clock_;
  Metrics metrics_;
  ModelRegistry models_;
  WorkerPool workers_;
  DrainGate gate_;
  std::shared_ptr<std::latch> held_;
  WatchedService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::EncoderService::Stub> stub_;
};

// The details of an error as a client unpacks them.
template <typename Message>
Message DetailOf(const grpc::Status& status) {
  google::rpc::Status details;
  details.ParseFromString(status.error_details());
  Message message;
  for (const google::protobuf::Any& any : details.details()) {
    if (any.Is<Message>()) any.UnpackTo(&message);
  }
  return message;
}

}  // namespace flashsvd

#endif  // FLASHSVD_TESTS_SERVER_SERVICE_FIXTURE_H_
