#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "tools/client/embed_pipeline.h"

namespace flashsvd {
namespace {

using ::testing::HasSubstr;

// Answers a text of n bytes with the row [n, index of the text in its request].
v1::EmbedResponse Answer(const v1::EmbedRequest& request) {
  v1::EmbedResponse response;
  std::vector<float> rows;
  for (const std::string& text : request.text().texts()) {
    rows.insert(rows.end(), {static_cast<float>(text.size()), static_cast<float>(rows.size() / 2)});
    v1::InputInfo* const info = response.add_inputs();
    info->set_tokens(3);
    info->set_truncated(text.size() > 4);
  }
  v1::Tensor* const tensor = response.mutable_embeddings();
  tensor->set_dtype(v1::DATA_TYPE_FLOAT32);
  tensor->add_shape(request.text().texts_size());
  tensor->add_shape(2);
  tensor->set_data(rows.data(), rows.size() * sizeof(float));
  response.mutable_usage()->set_tokens(3 * request.text().texts_size());
  response.mutable_usage()->set_activation_bytes(100 * request.text().texts_size());
  return response;
}

using Stream = grpc::ServerReaderWriter<v1::EmbedStreamResponse, v1::EmbedStreamRequest>;

// A server whose EmbedStream runs `script`, with the number of the call, from 0.
class FakeServer : public v1::EncoderService::Service {
 public:
  using Script = std::function<grpc::Status(int call, grpc::ServerContext*, Stream*)>;

  explicit FakeServer(Script script) : script_(std::move(script)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeServer() override { server_->Shutdown(std::chrono::system_clock::now()); }

  std::string address() const { return fmt::format("127.0.0.1:{}", port_); }

 private:
  grpc::Status EmbedStream(grpc::ServerContext* context, Stream* stream) override {
    return script_(calls_++, context, stream);
  }

  const Script script_;
  int calls_ = 0;  // the client opens one stream at a time
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

void Reply(Stream* stream, const v1::EmbedStreamRequest& request) {
  v1::EmbedStreamResponse response;
  response.set_id(request.id());
  *response.mutable_response() = Answer(request.request());
  stream->Write(response);
}

void ReplyError(Stream* stream, const std::string& id, grpc::StatusCode code) {
  v1::EmbedStreamResponse response;
  response.set_id(id);
  response.set_code(code);
  response.set_error_message("scripted");
  stream->Write(response);
}

grpc::Status AnswerAll(Stream* stream) {
  v1::EmbedStreamRequest request;
  while (stream->Read(&request)) Reply(stream, request);
  return grpc::Status::OK;
}

struct Outcome {
  absl::StatusOr<EmbedTotals> totals;
  std::vector<float> lengths;  // of the texts, as the rows tell them
};

// Sends `count` texts of 1, 2, 3, ... bytes.
Outcome Embed(const FakeServer& server, int count, int batch, int window,
              ConnectionOptions connection_options = {}) {
  connection_options.address = server.address();
  Connection connection(connection_options);
  EmbedPipelineOptions options;
  options.batch = batch;
  options.window = window;
  int next = 0;
  std::vector<float> lengths;
  EmbedPipeline pipeline(
      connection, options,
      [&](std::string* text) -> absl::StatusOr<bool> {
        if (next == count) return false;
        text->assign(static_cast<size_t>(++next), 'x');
        return true;
      },
      [&](const v1::EmbedResponse& response) {
        for (int i = 0; i < response.inputs_size(); ++i) {
          float row[2];
          std::memcpy(row, response.embeddings().data().data() + 8 * i, 8);
          EXPECT_EQ(row[1], static_cast<float>(i));
          lengths.push_back(row[0]);
        }
        return absl::OkStatus();
      });
  absl::StatusOr<EmbedTotals> totals = pipeline.Run();
  return {std::move(totals), std::move(lengths)};
}

std::vector<float> UpTo(int count) {
  std::vector<float> values;
  for (int i = 1; i <= count; ++i) values.push_back(static_cast<float>(i));
  return values;
}

TEST(ClientEmbedPipelineTest, DeliversEveryTextInOrder) {
  const FakeServer server(
      [](int, grpc::ServerContext*, Stream* stream) { return AnswerAll(stream); });
  for (const int count : {0, 1, 3, 10, 101}) {
    const Outcome outcome = Embed(server, count, 3, 4);
    ASSERT_TRUE(outcome.totals.ok()) << outcome.totals.status();
    EXPECT_EQ(outcome.lengths, UpTo(count));
    EXPECT_EQ(outcome.totals->texts, static_cast<uint64_t>(count));
    EXPECT_EQ(outcome.totals->tokens, static_cast<uint64_t>(3 * count));
    EXPECT_EQ(outcome.totals->truncated, static_cast<uint64_t>(std::max(count - 4, 0)));
    EXPECT_EQ(outcome.totals->activation_bytes, static_cast<uint64_t>(100 * std::min(count, 3)));
    EXPECT_EQ(outcome.totals->retries, 0u);
  }
}

TEST(ClientEmbedPipelineTest, KeepsTheWindowFullAndNeverOver) {
  constexpr int kWindow = 5;
  const FakeServer server([&](int, grpc::ServerContext*, Stream* stream) {
    // Answers the oldest only once it holds a whole window: a client that keeps fewer in flight
    // would wait for ever, and of one that keeps more some id is too far ahead.
    std::vector<v1::EmbedStreamRequest> held;
    v1::EmbedStreamRequest request;
    while (stream->Read(&request)) {
      held.push_back(request);
      EXPECT_LT(std::stoi(request.id()) - std::stoi(held.front().id()), kWindow);
      const size_t keep = request.id() == "19" ? 0 : kWindow - 1;
      while (held.size() > keep) {
        Reply(stream, held.front());
        held.erase(held.begin());
      }
    }
    return grpc::Status::OK;
  });
  const Outcome outcome = Embed(server, 20, 1, kWindow);
  ASSERT_TRUE(outcome.totals.ok()) << outcome.totals.status();
  EXPECT_EQ(outcome.lengths, UpTo(20));
}

TEST(ClientEmbedPipelineTest, SendsABusyReplyAgainAndKeepsOrder) {
  const FakeServer server([](int, grpc::ServerContext*, Stream* stream) {
    v1::EmbedStreamRequest request;
    bool refused = false;
    while (stream->Read(&request)) {
      if (request.id() == "1" && !refused) {
        refused = true;
        ReplyError(stream, request.id(), grpc::StatusCode::RESOURCE_EXHAUSTED);
      } else {
        Reply(stream, request);
      }
    }
    EXPECT_TRUE(refused);
    return grpc::Status::OK;
  });
  const Outcome outcome = Embed(server, 9, 2, 3);
  ASSERT_TRUE(outcome.totals.ok()) << outcome.totals.status();
  EXPECT_EQ(outcome.lengths, UpTo(9));
  EXPECT_EQ(outcome.totals->retries, 1u);
}

TEST(ClientEmbedPipelineTest, ResendsWhatABrokenStreamLeftUnanswered) {
  const FakeServer server([](int call, grpc::ServerContext* context, Stream* stream) {
    if (call > 0) return AnswerAll(stream);
    v1::EmbedStreamRequest request;
    for (int i = 0; i < 2 && stream->Read(&request); ++i) Reply(stream, request);
    context->AddTrailingMetadata("grpc-retry-pushback-ms", "1");
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  });
  const Outcome outcome = Embed(server, 12, 2, 4);
  ASSERT_TRUE(outcome.totals.ok()) << outcome.totals.status();
  EXPECT_EQ(outcome.lengths, UpTo(12));
  EXPECT_EQ(outcome.totals->retries, 1u);
}

TEST(ClientEmbedPipelineTest, GivesUpAfterTheLastRetryWithTheServersWords) {
  const FakeServer server([](int, grpc::ServerContext* context, Stream*) {
    context->AddTrailingMetadata("grpc-retry-pushback-ms", "1");
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  });
  ConnectionOptions connection;
  connection.retries = 3;
  const absl::Status status = Embed(server, 5, 2, 4, connection).totals.status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(std::string(status.message()), server.address() + ": draining");
}

TEST(ClientEmbedPipelineTest, ARefusedRequestNamesItsTexts) {
  const FakeServer server([](int, grpc::ServerContext*, Stream* stream) {
    v1::EmbedStreamRequest request;
    while (stream->Read(&request)) {
      if (request.id() == "1") {
        ReplyError(stream, request.id(), grpc::StatusCode::INVALID_ARGUMENT);
      } else {
        Reply(stream, request);
      }
    }
    return grpc::Status::OK;
  });
  const absl::Status status = Embed(server, 9, 3, 8).totals.status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("texts 4 to 6: scripted"));
}

TEST(ClientEmbedPipelineTest, ASilentServerIsADeadline) {
  const FakeServer server([](int, grpc::ServerContext*, Stream* stream) {
    v1::EmbedStreamRequest request;
    while (stream->Read(&request)) continue;  // until the client cancels
    return grpc::Status::OK;
  });
  ConnectionOptions connection;
  connection.timeout = absl::Milliseconds(100);
  const absl::Status status = Embed(server, 3, 3, 8, connection).totals.status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("waiting for texts 1 to 3"));
}

TEST(ClientEmbedPipelineTest, MalformedAnswersAreRefused) {
  const std::vector<std::function<void(v1::EmbedStreamResponse*)>> spoilers = {
      [](v1::EmbedStreamResponse* r) { r->set_id("7"); },
      [](v1::EmbedStreamResponse* r) { r->set_id("x"); },
      [](v1::EmbedStreamResponse* r) { r->mutable_response()->clear_embeddings(); },
      [](v1::EmbedStreamResponse* r) { r->mutable_response()->mutable_inputs()->RemoveLast(); },
      [](v1::EmbedStreamResponse* r) {
        r->mutable_response()->mutable_embeddings()->mutable_data()->pop_back();
      },
      [](v1::EmbedStreamResponse* r) {
        r->mutable_response()->mutable_embeddings()->set_shape(1, -2);
      },
      [](v1::EmbedStreamResponse* r) {
        r->mutable_response()->mutable_embeddings()->set_dtype(v1::DATA_TYPE_FLOAT16);
      },
  };
  for (size_t i = 0; i < spoilers.size(); ++i) {
    const FakeServer server([&](int, grpc::ServerContext*, Stream* stream) {
      v1::EmbedStreamRequest request;
      while (stream->Read(&request)) {
        v1::EmbedStreamResponse response;
        response.set_id(request.id());
        *response.mutable_response() = Answer(request.request());
        spoilers[i](&response);
        stream->Write(response);
      }
      return grpc::Status::OK;
    });
    EXPECT_EQ(Embed(server, 3, 3, 8).totals.status().code(), absl::StatusCode::kInternal) << i;
  }
}

TEST(ClientEmbedPipelineTest, AStreamEndedEarlyWithOkIsAnError) {
  const FakeServer server([](int, grpc::ServerContext*, Stream*) { return grpc::Status::OK; });
  const absl::Status status = Embed(server, 3, 3, 8).totals.status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("ended the stream before texts 1 to 3"));
}

}  // namespace
}  // namespace flashsvd
