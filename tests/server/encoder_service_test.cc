#include "server/encoder_service.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <latch>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "grpcpp/generic/generic_stub.h"
#include "kernels/float_convert.h"
#include "tests/server/service_fixture.h"

namespace flashsvd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class EncoderServiceTest : public ServiceFixture {
 protected:
  EncoderServiceTest() {
    LoadModel("one");
    LoadModel("two");
  }

  v1::EmbedResponse MustEmbed(const v1::EmbedRequest& request) {
    v1::EmbedResponse response;
    const grpc::Status status = Embed(request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
};

// A call of Embed under way.
class PendingEmbed {
 public:
  PendingEmbed(v1::EncoderService::Stub& stub, const v1::EmbedRequest& request)
      : request_(request) {
    stub.async()->Embed(&context_, &request_, &response_, [this](const grpc::Status& status) {
      status_ = status;
      done_.count_down();
    });
  }

  void Cancel() { context_.TryCancel(); }
  grpc::Status Await() {
    done_.wait();
    return status_;
  }

 private:
  grpc::ClientContext context_;
  const v1::EmbedRequest request_;
  v1::EmbedResponse response_;
  grpc::Status status_;
  std::latch done_{1};
};

std::vector<float> Floats(const v1::Tensor& tensor) {
  std::vector<float> values(tensor.data().size() / sizeof(float));
  std::memcpy(values.data(), tensor.data().data(), tensor.data().size());
  return values;
}

double Norm(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += double{value} * value;
  return std::sqrt(sum);
}

TEST_F(EncoderServiceTest, AnswersWithVectorsAndAccounts) {
  const auto response = MustEmbed(TextRequest({"hello world", "the cat sat on the mat"}));
  EXPECT_EQ(response.model(), "one");
  EXPECT_EQ(response.embeddings().dtype(), v1::DATA_TYPE_FLOAT32);
  EXPECT_THAT(response.embeddings().shape(), ElementsAre(2, testing::kServedHidden));
  const std::vector<float> values = Floats(response.embeddings());
  ASSERT_EQ(values.size(), 2u * testing::kServedHidden);
  for (int s = 0; s < 2; ++s) {
    const auto row = values.begin() + s * testing::kServedHidden;
    EXPECT_NEAR(Norm({row, row + testing::kServedHidden}), 1, 1e-6);
  }
  ASSERT_EQ(response.inputs_size(), 2);
  EXPECT_EQ(response.inputs(0).tokens(), 4u);
  EXPECT_EQ(response.inputs(1).tokens(), 8u);
  EXPECT_FALSE(response.inputs(0).truncated());
  EXPECT_EQ(response.usage().tokens(), 12u);
  EXPECT_EQ(response.usage().batches(), 1u);
  EXPECT_GT(response.usage().activation_bytes(), 0u);
}

TEST_F(EncoderServiceTest, TextsAndTheirTokenIdsGiveTheSameVectors) {
  v1::EmbedRequest tokens;
  tokens.set_model("one");
  v1::TokenIds* sequence = tokens.mutable_tokens()->add_sequences();
  for (const int id : {2, 5, 6, 3}) sequence->add_ids(id);
  EXPECT_EQ(MustEmbed(tokens).embeddings().data(),
            MustEmbed(TextRequest({"hello world"})).embeddings().data());
}

TEST_F(EncoderServiceTest, NormalisesAsAsked) {
  v1::EmbedRequest request = TextRequest({"hello"});
  const std::vector<float> unit = Floats(MustEmbed(request).embeddings());
  request.set_normalize(false);
  const std::vector<float> raw = Floats(MustEmbed(request).embeddings());
  const double norm = Norm(raw);
  // Post-LayerNorm rows have a norm of about the square root of their width.
  EXPECT_GT(norm, 1.1);
  for (size_t i = 0; i < raw.size(); ++i) EXPECT_NEAR(raw[i] / norm, unit[i], 1e-6);
}

TEST_F(EncoderServiceTest, CutsDimensionsBeforeNormalising) {
  v1::EmbedRequest request = TextRequest({"hello", "world"});
  request.set_normalize(false);
  const std::vector<float> raw = Floats(MustEmbed(request).embeddings());
  request.set_normalize(true);
  request.set_dimensions(5);
  const auto response = MustEmbed(request);
  EXPECT_THAT(response.embeddings().shape(), ElementsAre(2, 5));
  const std::vector<float> cut = Floats(response.embeddings());
  ASSERT_EQ(cut.size(), 10u);
  for (int s = 0; s < 2; ++s) {
    const auto row = raw.begin() + s * testing::kServedHidden;
    const double norm = Norm({row, row + 5});
    for (int i = 0; i < 5; ++i) EXPECT_NEAR(cut[s * 5 + i], row[i] / norm, 1e-6);
  }
}

TEST_F(EncoderServiceTest, ConvertsToSixteenBits) {
  v1::EmbedRequest request = TextRequest({"hello"});
  const std::vector<float> full = Floats(MustEmbed(request).embeddings());
  for (const auto type : {v1::DATA_TYPE_FLOAT16, v1::DATA_TYPE_BFLOAT16}) {
    request.set_output_dtype(type);
    const auto response = MustEmbed(request);
    EXPECT_EQ(response.embeddings().dtype(), type);
    ASSERT_EQ(response.embeddings().data().size(), full.size() * 2);
    for (size_t i = 0; i < full.size(); ++i) {
      uint16_t bits;
      std::memcpy(&bits, response.embeddings().data().data() + 2 * i, 2);
      EXPECT_EQ(bits,
                type == v1::DATA_TYPE_FLOAT16 ? F16FromFloat(full[i]) : Bf16FromFloat(full[i]));
    }
  }
}

TEST_F(EncoderServiceTest, TruncatesAndSaysSo) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "cat ";
  v1::EmbedRequest request = TextRequest({text, "cat"});
  const auto response = MustEmbed(request);
  EXPECT_EQ(response.inputs(0).tokens(), static_cast<uint32_t>(testing::kServedMaxTokens));
  EXPECT_TRUE(response.inputs(0).truncated());
  EXPECT_FALSE(response.inputs(1).truncated());
  EXPECT_EQ(MetricValue("flashsvd_truncated_inputs_total{model=\"one\"}"), 1);
}

struct BadRequest {
  const char* name;
  std::function<void(v1::EmbedRequest*)> spoil;
  grpc::StatusCode code;
  const char* message;
};

std::vector<BadRequest> BadRequests() {
  const auto invalid = grpc::StatusCode::INVALID_ARGUMENT;
  const auto sequence = [](v1::EmbedRequest* r, int index) {
    while (r->tokens().sequences_size() <= index) {
      r->mutable_tokens()->add_sequences()->add_ids(5);
    }
    return r->mutable_tokens()->mutable_sequences(index);
  };
  return {
      {"NoInputs", [](auto* r) { r->clear_inputs(); }, invalid,
       "inputs: neither text nor tokens is set"},
      {"EmptyBatch", [](auto* r) { r->mutable_text()->clear_texts(); }, invalid,
       "text.texts: is empty"},
      {"EmptyText", [](auto* r) { r->mutable_text()->add_texts(""); }, invalid,
       "text.texts[1]: is empty"},
      {"TooManyTexts",
       [](auto* r) {
         while (r->text().texts_size() < 9) r->mutable_text()->add_texts("a");
       },
       invalid, "text.texts: has 9 entries; at most 8"},
      {"LongText", [](auto* r) { r->mutable_text()->add_texts(std::string(4097, 'a')); }, invalid,
       "text.texts[1]: has 4097 bytes; at most 4096"},
      {"TooManyTokensWithoutTruncation",
       [](auto* r) {
         std::string text;
         for (int i = 0; i < 100; ++i) text += "cat ";
         r->mutable_text()->add_texts(text);
         r->set_truncation(v1::TRUNCATION_NONE);
       },
       invalid, "text.texts[1]: "},
      {"NoSequences", [](auto* r) { r->mutable_tokens(); }, invalid, "tokens.sequences: is empty"},
      {"EmptySequence", [=](auto* r) { sequence(r, 2)->clear_ids(); }, invalid,
       "tokens.sequences[2].ids: is empty"},
      {"LongSequence",
       [=](auto* r) {
         while (sequence(r, 1)->ids_size() < 33) sequence(r, 1)->add_ids(5);
       },
       invalid, "tokens.sequences[1].ids: has 33 ids; the model takes at most 32"},
      {"LargeId", [=](auto* r) { sequence(r, 1)->add_ids(16); }, invalid,
       "tokens.sequences[1].ids[1]: 16 is not within the vocabulary, 0 to 15"},
      {"NegativeId", [=](auto* r) { sequence(r, 0)->set_ids(0, -1); }, invalid,
       "tokens.sequences[0].ids[0]: -1 is not within"},
      {"UnknownModel", [](auto* r) { r->set_model("three"); }, grpc::StatusCode::NOT_FOUND,
       "model: no model named \"three\"; this server has \"one\", \"two\""},
      {"NoModelAmongSeveral", [](auto* r) { r->clear_model(); }, invalid, "model: empty"},
      {"TooManyDimensions", [](auto* r) { r->set_dimensions(33); }, invalid,
       "dimensions: 33 exceeds the model's 32"},
      {"WrongTruncation", [](auto* r) { r->set_truncation(static_cast<v1::Truncation>(9)); },
       invalid, "truncation: 9 is not a value"},
      {"WrongType", [](auto* r) { r->set_output_dtype(static_cast<v1::DataType>(-4)); }, invalid,
       "output_dtype: -4 is not a value"},
      {"NotUtf8",
       [](auto* r) {
         r->mutable_text()->add_texts("fine");
         r->mutable_text()->add_texts("bro\xffken");
       },
       invalid, "text.texts[2]: not UTF-8 at byte 3"},
      {"ModelNotUtf8", [](auto* r) { r->set_model("\xc0\xaf"); }, invalid,
       "model: not UTF-8 at byte 0"},
  };
}

TEST_F(EncoderServiceTest, RefusesBadRequestsPreciselyAndGoesOn) {
  double refused = 0;
  for (const BadRequest& bad : BadRequests()) {
    SCOPED_TRACE(bad.name);
    v1::EmbedRequest request = TextRequest({"hello"});
    bad.spoil(&request);
    v1::EmbedResponse response;
    const grpc::Status status = Embed(request, &response);
    EXPECT_EQ(status.error_code(), bad.code);
    EXPECT_THAT(status.error_message(), HasSubstr(bad.message));
    EXPECT_FALSE(DetailOf<google::rpc::ErrorInfo>(status).reason().empty());
    ++refused;
  }
  MustEmbed(TextRequest({"hello"}));
  double counted = 0;
  for (const char* model : {"one", ""}) {
    for (const char* code : {"INVALID_ARGUMENT", "NOT_FOUND"}) {
      counted += MetricValue(fmt::format(
          "flashsvd_requests_total{{code=\"{}\",model=\"{}\",task=\"embed\"}}", code, model));
    }
  }
  EXPECT_EQ(counted, refused);
}

TEST_F(EncoderServiceTest, AnswersGarbageBytes) {
  grpc::GenericStub generic(channel_);
  for (const std::string method : {"Embed", "Tokenize", "GetModel", "ListModels"}) {
    for (const std::string& bytes :
         {std::string("\xff\xff\xff\xff"), std::string(3001, '\x0a'), std::string("\x12\x7fzz")}) {
      const grpc::Slice slice(bytes);
      const grpc::ByteBuffer request(&slice, 1);
      grpc::ByteBuffer response;
      grpc::ClientContext context;
      std::latch done(1);
      grpc::Status status;
      generic.UnaryCall(&context, "/flashsvd.v1.EncoderService/" + method, grpc::StubOptions(),
                        &request, &response, [&](grpc::Status result) {
                          status = result;
                          done.count_down();
                        });
      done.wait();
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
          << method << ": " << status.error_message();
      EXPECT_THAT(status.error_message(), HasSubstr("not a valid flashsvd.v1."));
    }
  }
}

TEST_F(EncoderServiceTest, MessageOverTheLimitIsNotRetryable) {
  const v1::EmbedRequest request = TextRequest({std::string(2 << 20, 'a')});
  v1::EmbedResponse response;
  const grpc::Status status = Embed(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(status.error_details().empty());
  MustEmbed(TextRequest({"hello"}));
}

TEST_F(EncoderServiceTest, DefaultDeadlineDropsWhatWaitsTooLong) {
  Hold();
  PendingEmbed pending(*stub_, LargeRequest());
  service_.AwaitCall();
  clock_.Advance(RequestLimits().default_deadline);
  Release();
  const grpc::Status status = pending.Await();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << status.error_message();
  EXPECT_EQ(MetricValue("flashsvd_rejected_total{model=\"one\",reason=\"deadline\"}"), 1);
}

TEST_F(EncoderServiceTest, CancelledCallCostsNoCompute) {
  Hold();
  PendingEmbed pending(*stub_, LargeRequest());
  service_.AwaitCall();
  pending.Cancel();
  EXPECT_EQ(pending.Await().error_code(), grpc::StatusCode::CANCELLED);
  service_.CancelNewest();
  Release();
  // The worker takes jobs in order.
  MustEmbed(LargeRequest());
  EXPECT_EQ(MetricValue("flashsvd_abandoned_total{model=\"one\",stage=\"tokenize\"}"), 1);
  EXPECT_EQ(MetricValue("flashsvd_tokens_total{kind=\"real\",model=\"one\"}"), 3);
}

TEST_F(EncoderServiceTest, TokenizeGivesIdsTokensAndByteOffsets) {
  v1::TokenizeRequest request;
  request.set_model("two");
  request.add_texts("Hello cats");
  request.add_texts("");
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  const grpc::Status status = stub_->Tokenize(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.model(), "two");
  ASSERT_EQ(response.texts_size(), 2);
  EXPECT_THAT(response.texts(0).ids(), ElementsAre(2, 5, 11, 7, 3));
  EXPECT_THAT(response.texts(0).tokens(), ElementsAre("[CLS]", "hello", "cat", "##s", "[SEP]"));
  EXPECT_THAT(response.texts(0).begin(), ElementsAre(0, 0, 6, 9, 0));
  EXPECT_THAT(response.texts(0).end(), ElementsAre(0, 5, 9, 10, 0));
  EXPECT_THAT(response.texts(1).ids(), ElementsAre(2, 3));
}

TEST_F(EncoderServiceTest, TokenizeWithoutSpecialTokensGivesTheSamePartOfTheText) {
  v1::TokenizeRequest request;
  request.set_model("one");
  request.set_omit_special_tokens(true);
  std::string text;
  for (int i = 0; i < 50; ++i) text += "a ";
  request.add_texts(text);
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  ASSERT_TRUE(stub_->Tokenize(&context, request, &response).ok());
  EXPECT_EQ(response.texts(0).ids_size(), testing::kServedMaxTokens - 2);
  EXPECT_TRUE(response.texts(0).truncated());
}

TEST_F(EncoderServiceTest, DescribesModels) {
  grpc::ClientContext list_context;
  v1::ListModelsResponse list;
  ASSERT_TRUE(stub_->ListModels(&list_context, {}, &list).ok());
  ASSERT_EQ(list.models_size(), 2);
  EXPECT_EQ(list.models(0).name(), "one");
  EXPECT_EQ(list.models(1).name(), "two");
  EXPECT_EQ(list.models(0).modules_size(), 0);

  v1::GetModelRequest request;
  request.set_model("two");
  grpc::ClientContext context;
  v1::Model model;
  ASSERT_TRUE(stub_->GetModel(&context, request, &model).ok());
  EXPECT_EQ(model.architecture(), "bert");
  EXPECT_EQ(model.hidden_size(), 32u);
  EXPECT_EQ(model.layers(), 2u);
  EXPECT_EQ(model.heads(), 2u);
  EXPECT_EQ(model.ffn_size(), 64u);
  EXPECT_EQ(model.vocab_size(), 16u);
  EXPECT_EQ(model.max_input_tokens(), 32u);
  EXPECT_EQ(model.max_batch_tokens(), 256u);
  EXPECT_EQ(model.max_inputs_per_request(), 8u);
  EXPECT_EQ(model.pooling(), "mean");
  EXPECT_TRUE(model.normalize());
  EXPECT_THAT(model.backend(), HasSubstr("cpu/"));
  EXPECT_EQ(model.dtype(), "f32");
  EXPECT_EQ(model.parameters_kept(), 1);
  EXPECT_GT(model.memory().activation_bytes(), 0u);
  EXPECT_GT(model.memory().weight_bytes(), 0u);
  ASSERT_EQ(model.modules_size(), 12);
  EXPECT_EQ(model.modules(0).name(), "encoder.layer.0.attention.self.query");
  EXPECT_EQ(model.modules(0).layout(), "dense");
  EXPECT_EQ(model.modules(0).dense_parameters(), 1024u);
}

class SingleModelTest : public ServiceFixture {};

TEST_F(SingleModelTest, IsUnavailableUntilLoadedAndThenNeedsNoName) {
  v1::EmbedRequest request = TextRequest({"hello"});
  request.clear_model();
  v1::EmbedResponse response;
  EXPECT_EQ(Embed(request, &response).error_code(), grpc::StatusCode::UNAVAILABLE);
  LoadModel("one");
  EXPECT_TRUE(Embed(request, &response).ok());
  EXPECT_EQ(response.model(), "one");
}

class NarrowTest : public ServiceFixture {
 protected:
  NarrowTest() : ServiceFixture(1) { LoadModel("one"); }
};

TEST_F(NarrowTest, RefusesWhatIsOverTheQueueLimitAndSaysWhenToRetry) {
  Hold();
  PendingEmbed pending(*stub_, LargeRequest());
  service_.AwaitCall();
  grpc::ClientContext context;
  v1::EmbedResponse response;
  const grpc::Status status = stub_->Embed(&context, LargeRequest(), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(status).reason(), "QUEUE_FULL");
  EXPECT_EQ(DetailOf<google::rpc::RetryInfo>(status).retry_delay().nanos(), 50'000'000);
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  Release();
  const grpc::Status waited = pending.Await();
  EXPECT_TRUE(waited.ok()) << waited.error_message();
}

}  // namespace
}  // namespace flashsvd
