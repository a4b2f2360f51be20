#include "server/embed_call.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <new>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "runtime/embedding_output.h"
#include "server/grpc_status.h"

namespace flashsvd {
namespace {

v1::DataType ToProto(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return v1::DATA_TYPE_FLOAT32;
    case DType::kF16:
      return v1::DATA_TYPE_FLOAT16;
    case DType::kBF16:
      return v1::DATA_TYPE_BFLOAT16;
  }
  return v1::DATA_TYPE_UNSPECIFIED;
}

uint64_t Nanoseconds(absl::Duration duration) {
  return static_cast<uint64_t>(std::max<int64_t>(absl::ToInt64Nanoseconds(duration), 0));
}

// Workers get through what waits for them in milliseconds.
constexpr absl::Duration kWorkersRetryDelay = absl::Milliseconds(50);
// In a full queue that is served in order, the age of its oldest entry is how long the next one
// would wait.
constexpr absl::Duration kShortestRetryDelay = absl::Milliseconds(10);
constexpr absl::Duration kLongestRetryDelay = absl::Seconds(5);

}  // namespace

absl::Time DeadlineOf(const grpc::ServerContextBase& call, const ServiceContext& context) {
  const auto deadline = call.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) {
    return context.clock.Now() + context.limits.default_deadline;
  }
  return absl::FromChrono(deadline);
}

absl::Status QueueFull(const std::string& message, absl::Duration retry_delay) {
  return WithRetryDelay(WithReason(absl::ResourceExhaustedError(message), "QUEUE_FULL"),
                        retry_delay);
}

EmbedCall::EmbedCall(const ServiceContext& context, RpcTask task, absl::Time deadline,
                     v1::EmbedResponse* response, Done on_done)
    : context_(context),
      task_(task),
      start_(context.clock.Now()),
      response_(response),
      on_done_(std::move(on_done)) {
  this->deadline = deadline;
}

void EmbedCall::Run(v1::EmbedRequest request) {
  const std::shared_ptr<EmbedCall> self = shared_from_this();
  absl::Status status;
  try {
    status = Prepare(request);
    if (status.code() == absl::StatusCode::kInvalidArgument ||
        status.code() == absl::StatusCode::kNotFound) {
      request_metrics().OnRejected(Rejection::kInvalid);
    }
    if (status.ok()) status = Submit();
  } catch (const std::bad_alloc&) {
    status = WithReason(absl::ResourceExhaustedError("out of memory"), "HOST_MEMORY");
  } catch (const std::exception& error) {
    status = absl::InternalError(error.what());
  }
  if (!status.ok()) Finish(status);
}

void EmbedCall::Refuse(Rejection limit) {
  request_metrics().OnRejected(limit);
  Finish(QueueFull(limit == Rejection::kBytes
                       ? "requests that wait to be tokenised hold too much memory"
                       : "too many requests wait to be tokenised",
                   kWorkersRetryDelay));
}

absl::Status EmbedCall::Prepare(const v1::EmbedRequest& request) {
  FSVD_ASSIGN_OR_RETURN(served_, context_.models.Find(request.model()));
  metrics_ = &MetricsOf(served_);
  metrics_->Enter();
  const ModelConfig& config = served_.model->config();
  FSVD_ASSIGN_OR_RETURN(shape_, CheckEmbedRequest(request, config, context_.limits));
  normalize_ = request.has_normalize() ? request.normalize() : config.normalize;

  const absl::Time start = context_.clock.Now();
  if (request.has_text()) {
    FSVD_RETURN_IF_ERROR(AppendTexts(request.text()));
  } else {
    FSVD_RETURN_IF_ERROR(AppendTokens(request.tokens()));
  }
  tokenize_time_ = context_.clock.Now() - start;
  metrics_->OnStage(Stage::kTokenize, tokenize_time_);
  AllocateResponse();
  return absl::OkStatus();
}

absl::Status EmbedCall::CheckAlive() {
  if (cancelled.load(std::memory_order_relaxed)) {
    metrics_->OnAbandonedBeforeQueue();
    return absl::CancelledError("the client has left");
  }
  if (context_.clock.Now() >= deadline) {
    metrics_->OnRejected(Rejection::kDeadline);
    return absl::DeadlineExceededError("the deadline passed before the request was queued");
  }
  return absl::OkStatus();
}

absl::Status EmbedCall::AppendTexts(const v1::TextInputs& text) {
  // Keeps its capacity from request to request.
  thread_local Encoding encoding;
  const Tokenizer& tokenizer = served_.model->tokenizer();
  const EncodeOptions options{.max_tokens = served_.model->config().max_seq_length,
                              .truncation = shape_.truncation};
  for (int i = 0; i < text.texts_size(); ++i) {
    FSVD_RETURN_IF_ERROR(CheckAlive());
    const absl::Status status = tokenizer.Encode(text.texts(i), options, &encoding);
    if (!status.ok()) {
      if (status.code() != absl::StatusCode::kInvalidArgument) return status;
      return InvalidField(fmt::format("text.texts[{}]", i), std::string(status.message()));
    }
    input.Append(encoding.ids, encoding.type_ids);
    v1::InputInfo* info = response_->add_inputs();
    info->set_tokens(static_cast<uint32_t>(encoding.ids.size()));
    info->set_truncated(encoding.truncated);
    metrics_->OnInput(static_cast<int>(encoding.ids.size()), encoding.truncated);
  }
  return absl::OkStatus();
}

absl::Status EmbedCall::AppendTokens(const v1::TokenInputs& tokens) {
  FSVD_RETURN_IF_ERROR(CheckAlive());
  const std::vector<int32_t> types(served_.model->config().max_seq_length, 0);
  for (const v1::TokenIds& sequence : tokens.sequences()) {
    const size_t count = sequence.ids_size();
    input.Append({sequence.ids().data(), count}, {types.data(), count});
    response_->add_inputs()->set_tokens(static_cast<uint32_t>(count));
    metrics_->OnInput(static_cast<int>(count), false);
  }
  return absl::OkStatus();
}

void EmbedCall::AllocateResponse() {
  const int hidden = served_.model->config().hidden;
  response_->set_model(served_.model->name());
  v1::Tensor* embeddings = response_->mutable_embeddings();
  embeddings->set_dtype(ToProto(shape_.dtype));
  embeddings->add_shape(shape_.num_inputs);
  embeddings->add_shape(shape_.dimensions);
  std::string* data = embeddings->mutable_data();
  row_stride_bytes = sizeof(float) * hidden;
  data->resize(row_stride_bytes * shape_.num_inputs);
  output = reinterpret_cast<std::byte*>(data->data());
}

// Once the engine has accepted the request, its outcome may come before Submit returns.
absl::Status EmbedCall::Submit() {
  done = [this](const RequestResult& result) { OnComputed(result); };
  Engine& engine = served_.model->engine();
  const absl::Status status = engine.Submit(shared_from_this());
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return QueueFull(
          std::string(status.message()),
          std::clamp(engine.queue().oldest_age, kShortestRetryDelay, kLongestRetryDelay));
    case absl::StatusCode::kUnavailable:
      return WithReason(status, "DRAINING");
    default:
      return status;
  }
}

void EmbedCall::OnComputed(const RequestResult& result) {
  result_ = result;
  // Writing the answer takes time that the slot could compute in. Nobody waits for the slot if this
  // is the only request there is, and then handing over would only add latency.
  if (metrics_->in_flight() <= 1) {
    Finish(result.status);
  } else {
    context_.workers.Continue([self = shared_from_this()] { self->Finish(self->result_.status); });
  }
}

absl::Status EmbedCall::CompleteResponse() {
  std::string* data = response_->mutable_embeddings()->mutable_data();
  FSVD_ASSIGN_OR_RETURN(
      const size_t bytes,
      FormatEmbeddings(
          output, shape_.num_inputs, served_.model->config().hidden,
          {.dimensions = shape_.dimensions, .normalize = normalize_, .dtype = shape_.dtype}));
  data->resize(bytes);
  v1::Usage* usage = response_->mutable_usage();
  usage->set_tokens(input.num_tokens());
  usage->set_tokenize_ns(Nanoseconds(tokenize_time_));
  usage->set_queue_ns(Nanoseconds(result_.queue));
  usage->set_compute_ns(Nanoseconds(result_.compute));
  usage->set_batches(result_.batches);
  usage->set_activation_bytes(result_.activation_bytes);
  return absl::OkStatus();
}

void EmbedCall::Finish(absl::Status status) {
  const std::shared_ptr<EmbedCall> self = shared_from_this();
  serialize_start_ = context_.clock.Now();
  if (status.ok()) status = CompleteResponse();
  // gRPC cancels a call whose deadline passes, so that either may be noticed first.
  if (absl::IsCancelled(status) && serialize_start_ >= deadline) {
    status = absl::DeadlineExceededError("the deadline passed before the request was computed");
  }
  on_done_(status);
}

void EmbedCall::Conclude(const absl::Status& status) {
  const absl::Time now = context_.clock.Now();
  request_metrics().OnDone(task_, status.code(), now - start_);
  if (metrics_ == nullptr) return;
  if (status.ok()) metrics_->OnStage(Stage::kSerialize, now - serialize_start_);
  metrics_->Leave();
}

RequestMetrics& EmbedCall::request_metrics() {
  return metrics_ != nullptr ? metrics_->requests() : context_.metrics.unknown_model();
}

}  // namespace flashsvd
