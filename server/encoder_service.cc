#include "server/encoder_service.h"

#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "server/embed_call.h"
#include "server/grpc_status.h"
#include "server/model_message.h"
#include "server/raw_message.h"
#include "server/request_checks.h"

namespace flashsvd {
namespace {

// gRPC owns the message and frees it with the call; this frees it once it has been parsed.
grpc::ByteBuffer* Consume(const grpc::ByteBuffer* message) {
  return const_cast<grpc::ByteBuffer*>(message);
}

absl::Status Draining() {
  return WithReason(absl::UnavailableError("the server is shutting down"), "DRAINING");
}

// Both reactors below delete themselves in OnDone, which gRPC calls once, after Finish.
class EmbedReactor final : public grpc::ServerUnaryReactor {
 public:
  EmbedReactor(const ServiceContext& context, grpc::CallbackServerContext* call,
               const grpc::ByteBuffer* request, grpc::ByteBuffer* reply)
      : context_(context), call_(call), request_(Consume(request)), reply_(reply) {
    embed_ = std::make_shared<EmbedCall>(context, RpcTask::kEmbed, DeadlineOf(*call, context),
                                         &response_,
                                         [this](const absl::Status& status) { Send(status); });
  }

  void Start() {
    const auto bytes = static_cast<int64_t>(request_->Length());
    entered_ = context_.gate.Enter();
    if (!entered_) {
      context_.metrics.unknown_model().OnRejected(Rejection::kDraining);
      embed_->Fail(Draining());
    } else if (bytes <= kInlineRequestBytes) {
      Parse();
    } else if (const auto refused = context_.workers.Submit(bytes, [this] { Parse(); })) {
      embed_->Refuse(*refused);
    }
  }

  void OnCancel() override { embed_->Cancel(); }
  void OnDone() override {
    if (entered_) context_.gate.Leave();
    delete this;
  }

 private:
  void Parse() {
    const std::shared_ptr<EmbedCall> embed = embed_;  // outlives this reactor
    v1::EmbedRequest request;
    absl::Status status;
    try {
      status = ParseMessage(request_, &request);
    } catch (const std::exception& error) {
      status = absl::InternalError(error.what());
    }
    if (status.ok()) {
      embed->Run(std::move(request));
    } else {
      embed->Fail(status);
    }
  }

  void Send(absl::Status status) {
    if (status.ok()) status = SerializeMessage(response_, reply_);
    embed_->Conclude(status);
    AddRetryPushback(status, call_);
    Finish(ToGrpcStatus(status));
  }

  const ServiceContext& context_;
  grpc::CallbackServerContext* const call_;
  grpc::ByteBuffer* const request_;
  grpc::ByteBuffer* const reply_;
  v1::EmbedResponse response_;
  std::shared_ptr<EmbedCall> embed_;
  bool entered_ = false;
};

// An RPC that is answered by a function. The function also says which model it was about, null if
// none.
template <typename Request, typename Response>
class FunctionReactor final : public grpc::ServerUnaryReactor {
 public:
  using Function = absl::Status (*)(const ServiceContext& context, const Request& request,
                                    Response* response, ModelMetrics** metrics);

  FunctionReactor(const ServiceContext& context, RpcTask task, Function function,
                  grpc::CallbackServerContext* call, const grpc::ByteBuffer* request,
                  grpc::ByteBuffer* reply)
      : context_(context),
        task_(task),
        function_(function),
        call_(call),
        request_(Consume(request)),
        reply_(reply),
        start_(context.clock.Now()) {}

  void Start() {
    const auto bytes = static_cast<int64_t>(request_->Length());
    entered_ = context_.gate.Enter();
    if (!entered_) {
      context_.metrics.unknown_model().OnRejected(Rejection::kDraining);
      Send(Draining(), nullptr);
    } else if (bytes <= kInlineRequestBytes) {
      Run();
    } else if (const auto refused = context_.workers.Submit(bytes, [this] { Run(); })) {
      context_.metrics.unknown_model().OnRejected(*refused);
      Send(QueueFull("too many requests wait for a worker", absl::Milliseconds(50)), nullptr);
    }
  }

  void OnDone() override {
    if (entered_) context_.gate.Leave();
    delete this;
  }

 private:
  void Run() {
    ModelMetrics* metrics = nullptr;
    absl::Status status;
    try {
      status = Answer(&metrics);
    } catch (const std::exception& error) {
      status = absl::InternalError(error.what());
    }
    Send(status, metrics);
  }

  absl::Status Answer(ModelMetrics** metrics) {
    Request request;
    Response response;
    FSVD_RETURN_IF_ERROR(ParseMessage(request_, &request));
    FSVD_RETURN_IF_ERROR(function_(context_, request, &response, metrics));
    if (static_cast<int64_t>(response.ByteSizeLong()) > context_.limits.max_response_bytes) {
      return absl::InvalidArgumentError(
          fmt::format("the answer would have {} bytes; at most {} are sent",
                      response.ByteSizeLong(), context_.limits.max_response_bytes));
    }
    return SerializeMessage(response, reply_);
  }

  void Send(const absl::Status& status, ModelMetrics* metrics) {
    RequestMetrics& counted =
        metrics != nullptr ? metrics->requests() : context_.metrics.unknown_model();
    if (status.code() == absl::StatusCode::kInvalidArgument ||
        status.code() == absl::StatusCode::kNotFound) {
      counted.OnRejected(Rejection::kInvalid);
    }
    counted.OnDone(task_, status.code(), context_.clock.Now() - start_);
    AddRetryPushback(status, call_);
    Finish(ToGrpcStatus(status));
  }

  const ServiceContext& context_;
  const RpcTask task_;
  const Function function_;
  grpc::CallbackServerContext* const call_;
  grpc::ByteBuffer* const request_;
  grpc::ByteBuffer* const reply_;
  const absl::Time start_;
  bool entered_ = false;
};

void FillTokens(const Tokenizer& tokenizer, const Encoding& encoding, v1::TokenizedText* out) {
  out->mutable_ids()->Add(encoding.ids.begin(), encoding.ids.end());
  for (size_t i = 0; i < encoding.ids.size(); ++i) {
    out->add_tokens(std::string(tokenizer.IdToToken(encoding.ids[i])));
    out->add_begin(encoding.offsets[i].begin);
    out->add_end(encoding.offsets[i].end);
  }
  out->set_truncated(encoding.truncated);
}

absl::Status AnswerTokenize(const ServiceContext& context, const v1::TokenizeRequest& request,
                            v1::TokenizeResponse* response, ModelMetrics** metrics) {
  FSVD_ASSIGN_OR_RETURN(const ServedModel served, context.models.Find(request.model()));
  *metrics = &MetricsOf(served);
  FSVD_ASSIGN_OR_RETURN(const Truncation truncation, CheckTruncation(request.truncation()));
  FSVD_RETURN_IF_ERROR(CheckTexts(request.texts(), "texts", true, context.limits));
  const Tokenizer& tokenizer = served.model->tokenizer();
  EncodeOptions options{.max_tokens = served.model->config().max_seq_length,
                        .truncation = truncation,
                        .add_special_tokens = !request.omit_special_tokens(),
                        .with_offsets = true};
  // The same part of the text as with them.
  if (request.omit_special_tokens()) options.max_tokens -= tokenizer.num_special_tokens();
  response->set_model(served.model->name());
  Encoding encoding;
  for (int i = 0; i < request.texts_size(); ++i) {
    const absl::Status status = tokenizer.Encode(request.texts(i), options, &encoding);
    if (!status.ok()) {
      return InvalidField(fmt::format("texts[{}]", i), std::string(status.message()));
    }
    FillTokens(tokenizer, encoding, response->add_texts());
  }
  return absl::OkStatus();
}

absl::Status AnswerListModels(const ServiceContext& context, const v1::ListModelsRequest&,
                              v1::ListModelsResponse* response, ModelMetrics**) {
  for (const ServedModel& served : context.models.All()) {
    FillModelMessage(*served.model, context.limits, false, response->add_models());
  }
  return absl::OkStatus();
}

absl::Status AnswerGetModel(const ServiceContext& context, const v1::GetModelRequest& request,
                            v1::Model* response, ModelMetrics** metrics) {
  FSVD_ASSIGN_OR_RETURN(const ServedModel served, context.models.Find(request.model()));
  *metrics = &MetricsOf(served);
  FillModelMessage(*served.model, context.limits, true, response);
  return absl::OkStatus();
}

template <typename Reactor, typename... Args>
Reactor* StartReactor(Args&&... args) {
  auto* reactor = new Reactor(std::forward<Args>(args)...);
  // It lives at least until gRPC has bound it, which is after this returns.
  reactor->Start();
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* EncoderService::Embed(grpc::CallbackServerContext* call,
                                                const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  return StartReactor<EmbedReactor>(context_, call, request, response);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* EncoderService::EmbedStream(
    grpc::CallbackServerContext* call) {
  return flashsvd::EmbedStream::Start(context_, call, &streams_);
}

grpc::ServerUnaryReactor* EncoderService::Tokenize(grpc::CallbackServerContext* call,
                                                   const grpc::ByteBuffer* request,
                                                   grpc::ByteBuffer* response) {
  return StartReactor<FunctionReactor<v1::TokenizeRequest, v1::TokenizeResponse>>(
      context_, RpcTask::kTokenize, AnswerTokenize, call, request, response);
}

grpc::ServerUnaryReactor* EncoderService::ListModels(grpc::CallbackServerContext* call,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return StartReactor<FunctionReactor<v1::ListModelsRequest, v1::ListModelsResponse>>(
      context_, RpcTask::kListModels, AnswerListModels, call, request, response);
}

grpc::ServerUnaryReactor* EncoderService::GetModel(grpc::CallbackServerContext* call,
                                                   const grpc::ByteBuffer* request,
                                                   grpc::ByteBuffer* response) {
  return StartReactor<FunctionReactor<v1::GetModelRequest, v1::Model>>(
      context_, RpcTask::kGetModel, AnswerGetModel, call, request, response);
}

}  // namespace flashsvd
