#include "server/embed_stream.h"

#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "tests/server/service_fixture.h"

namespace flashsvd {
namespace {

using ::testing::HasSubstr;
using Stream = grpc::ClientReaderWriter<v1::EmbedStreamRequest, v1::EmbedStreamResponse>;

v1::EmbedStreamRequest Message(const std::string& id, const v1::EmbedRequest& request) {
  v1::EmbedStreamRequest message;
  message.set_id(id);
  *message.mutable_request() = request;
  return message;
}

class EmbedStreamTest : public ServiceFixture {
 protected:
  // Of what waits for the worker, exactly one window's worth is admitted.
  EmbedStreamTest() : ServiceFixture(kStreamWindow) { LoadModel("one"); }
};

TEST_F(EmbedStreamTest, AnswersInOrderAndDrainsAfterHalfClose) {
  constexpr int kMessages = 100;
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->EmbedStream(&context);
  std::thread writer([&] {
    for (int i = 0; i < kMessages; ++i) {
      // Large ones take the way over the worker and are overtaken by small ones.
      const auto request = i % 3 == 0 ? LargeRequest() : TextRequest({"hello", "world"});
      EXPECT_TRUE(stream->Write(Message(std::to_string(i), request)));
    }
    EXPECT_TRUE(stream->WritesDone());
  });
  v1::EmbedStreamResponse reply;
  for (int i = 0; i < kMessages; ++i) {
    ASSERT_TRUE(stream->Read(&reply));
    EXPECT_EQ(reply.id(), std::to_string(i));
    EXPECT_EQ(reply.code(), 0) << reply.error_message();
    EXPECT_EQ(reply.response().inputs_size(), i % 3 == 0 ? 1 : 2);
  }
  EXPECT_FALSE(stream->Read(&reply));
  writer.join();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(MetricValue("flashsvd_requests_total{code=\"OK\",model=\"one\",task=\"embed_stream\"}"),
            kMessages);
}

TEST_F(EmbedStreamTest, FailedRequestIsAnsweredInItsPlace) {
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->EmbedStream(&context);
  ASSERT_TRUE(stream->Write(Message("good", TextRequest({"hello"}))));
  ASSERT_TRUE(stream->Write(Message("bad", TextRequest({"hello", ""}))));
  ASSERT_TRUE(stream->Write(Message("none", v1::EmbedRequest())));
  ASSERT_TRUE(stream->Write(Message("utf", TextRequest({"\xff"}))));
  ASSERT_TRUE(stream->Write(Message("last", TextRequest({"world"}))));
  ASSERT_TRUE(stream->WritesDone());
  v1::EmbedStreamResponse reply;
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_EQ(reply.code(), 0);
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_EQ(reply.id(), "bad");
  EXPECT_EQ(reply.code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(reply.error_message(), "text.texts[1]: is empty");
  EXPECT_FALSE(reply.has_response());
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_THAT(reply.error_message(), HasSubstr("inputs: neither"));
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_EQ(reply.error_message(), "request.text.texts[0]: not UTF-8 at byte 0");
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_EQ(reply.id(), "last");
  EXPECT_EQ(reply.code(), 0);
  EXPECT_TRUE(stream->Finish().ok());
}

// One message more than the window in the hands of the worker would be refused.
TEST_F(EmbedStreamTest, StopsReadingWhileTheWindowIsFull) {
  Hold();
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->EmbedStream(&context);
  constexpr int kMessages = 3 * kStreamWindow;
  for (int i = 0; i < kMessages; ++i) {
    ASSERT_TRUE(stream->Write(Message(std::to_string(i), LargeRequest())));
  }
  ASSERT_TRUE(stream->WritesDone());
  AwaitJobs(kStreamWindow);
  // Frames arrive in order: with this answer all of the stream's have.
  v1::EmbedResponse response;
  EXPECT_TRUE(Embed(TextRequest({"hello"}), &response).ok());
  Release();
  v1::EmbedStreamResponse reply;
  for (int i = 0; i < kMessages; ++i) {
    ASSERT_TRUE(stream->Read(&reply));
    EXPECT_EQ(reply.id(), std::to_string(i));
    EXPECT_EQ(reply.code(), 0) << reply.error_message();
  }
  EXPECT_FALSE(stream->Read(&reply));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(EmbedStreamTest, TellsWhenToRetryWhatWasRefused) {
  Hold();
  for (int i = 0; i < kStreamWindow; ++i) ASSERT_FALSE(workers_.Submit(0, [] {}));
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->EmbedStream(&context);
  ASSERT_TRUE(stream->Write(Message("x", LargeRequest())));
  v1::EmbedStreamResponse reply;
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_EQ(reply.code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(reply.retry_after_ms(), 50u);
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(EmbedStreamTest, DrainAnswersWhatWasReadAndEndsTheStream) {
  Hold();
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->EmbedStream(&context);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(stream->Write(Message(std::to_string(i), LargeRequest())));
  }
  AwaitJobs(2);
  service_.DrainStreams();
  Release();
  v1::EmbedStreamResponse reply;
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(stream->Read(&reply));
    EXPECT_EQ(reply.id(), std::to_string(i));
    EXPECT_EQ(reply.code(), 0) << reply.error_message();
  }
  EXPECT_FALSE(stream->Read(&reply));
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(status).reason(), "DRAINING");

  // And one that is opened during the drain.
  grpc::ClientContext late_context;
  const std::unique_ptr<Stream> late = stub_->EmbedStream(&late_context);
  EXPECT_FALSE(late->Read(&reply));
  EXPECT_EQ(late->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(EmbedStreamTest, CancelDropsWhatWaits) {
  Hold();
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub_->EmbedStream(&context);
  for (int i = 0; i < kStreamWindow; ++i) {
    ASSERT_TRUE(stream->Write(Message(std::to_string(i), LargeRequest())));
  }
  AwaitJobs(kStreamWindow);
  context.TryCancel();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  service_.CancelNewest();
  Release();
  server_->Shutdown();  // waits for the stream
  EXPECT_EQ(MetricValue("flashsvd_abandoned_total{model=\"one\",stage=\"tokenize\"}"),
            kStreamWindow);
  EXPECT_EQ(MetricValue("flashsvd_tokens_total{kind=\"real\",model=\"one\"}"), 0);
}

}  // namespace
}  // namespace flashsvd
