#include "tools/client/embed_pipeline.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "fmt/format.h"
#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

// A request is closed early at this size: with one longest line on top it stays far below the
// 16 MiB that a server takes by default.
constexpr size_t kRequestBytes = size_t{2} << 20;

}  // namespace

EmbedPipeline::EmbedPipeline(Connection& connection, EmbedPipelineOptions options, Source source,
                             Sink sink)
    : connection_(connection),
      options_(std::move(options)),
      source_(std::move(source)),
      sink_(std::move(sink)) {}

absl::StatusOr<EmbedTotals> EmbedPipeline::Run() {
  for (int attempt = 0;;) {
    const uint64_t replies_before = replies_;
    StreamCall call(connection_.stub());
    const absl::Status error = RunStream(call);
    if (!error.ok()) return error;
    const grpc::Status status = call.Finish();
    if (Finished()) break;
    if (status.ok()) {
      return absl::InternalError(fmt::format("{}: the server ended the stream before {}",
                                             connection_.options().address,
                                             Describe(pending_.front())));
    }
    if (replies_ > replies_before) attempt = 0;
    const std::optional<absl::Duration> delay =
        connection_.DelayBeforeRetry(static_cast<absl::StatusCode>(status.error_code()),
                                     RetryAdviceOf(call.context(), status), attempt++);
    if (!delay) return connection_.Error(status);
    absl::SleepFor(*delay);
    ++totals_.retries;
    for (Pending& pending : pending_) pending.sent = pending.response.has_value();
  }
  if (totals_.texts > 0) totals_.elapsed = last_progress_ - first_sent_;
  return totals_;
}

absl::Status EmbedPipeline::RunStream(StreamCall& call) {
  last_progress_ = absl::Now();
  while (!Finished() && !call.broken()) {
    absl::Time wake_up = absl::InfiniteFuture();
    bool want_send = false;
    if (call.CanSend()) {
      FSVD_ASSIGN_OR_RETURN(Pending* const next, NextToSend(&wake_up));
      if (next != nullptr) {
        last_progress_ = absl::Now();
        first_sent_ = std::min(first_sent_, last_progress_);
        next->sent = true;
        call.Send(next->request);
        continue;
      }
    } else {
      want_send = true;
    }
    if (Finished()) break;
    const absl::Time give_up = last_progress_ + connection_.options().timeout;
    call.Wait(want_send, std::min(wake_up, give_up));
    while (std::optional<v1::EmbedStreamResponse> reply = call.TakeReply()) {
      last_progress_ = absl::Now();
      FSVD_RETURN_IF_ERROR(HandleReply(*std::move(reply)));
    }
    if (absl::Now() >= last_progress_ + connection_.options().timeout) {
      return absl::DeadlineExceededError(fmt::format(
          "{}: no answer for {:.0f} s, waiting for {}", connection_.options().address,
          absl::ToDoubleSeconds(connection_.options().timeout), Describe(pending_.front())));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<EmbedPipeline::Pending*> EmbedPipeline::NextToSend(absl::Time* wake_up) {
  const absl::Time now = absl::Now();
  for (Pending& pending : pending_) {
    if (pending.sent) continue;
    if (pending.not_before <= now) return &pending;
    *wake_up = std::min(*wake_up, pending.not_before);
  }
  if (source_dry_ || pending_.size() >= static_cast<size_t>(options_.window)) return nullptr;
  const size_t before = pending_.size();
  FSVD_RETURN_IF_ERROR(ReadBatch());
  return pending_.size() > before ? &pending_.back() : nullptr;
}

absl::Status EmbedPipeline::ReadBatch() {
  Pending pending;
  pending.first_text = texts_read_ + 1;
  v1::EmbedRequest* const request = pending.request.mutable_request();
  *request = options_.request;
  google::protobuf::RepeatedPtrField<std::string>* const texts =
      request->mutable_text()->mutable_texts();
  size_t bytes = 0;
  std::string text;
  while (texts->size() < options_.batch && bytes < kRequestBytes) {
    FSVD_ASSIGN_OR_RETURN(const bool any, source_(&text));
    if (!any) {
      source_dry_ = true;
      break;
    }
    bytes += text.size();
    *texts->Add() = std::move(text);
  }
  // The source may have blocked for long, as a pipe does: no fault of the server's.
  last_progress_ = absl::Now();
  if (texts->empty()) return absl::OkStatus();
  texts_read_ += texts->size();
  pending.request.set_id(fmt::format("{}", first_id_ + pending_.size()));
  pending_.push_back(std::move(pending));
  return absl::OkStatus();
}

absl::Status EmbedPipeline::HandleReply(v1::EmbedStreamResponse reply) {
  ++replies_;
  uint64_t id = 0;
  if (!absl::SimpleAtoi(reply.id(), &id) || id < first_id_ || id - first_id_ >= pending_.size() ||
      !pending_[id - first_id_].sent || pending_[id - first_id_].response) {
    return absl::InternalError(fmt::format("{}: a reply with id '{}', which nothing waits for",
                                           connection_.options().address, reply.id()));
  }
  Pending& pending = pending_[id - first_id_];
  if (reply.code() == 0) {
    FSVD_RETURN_IF_ERROR(CheckResponse(pending, reply.response()));
    pending.response = std::move(*reply.mutable_response());
    return Deliver();
  }
  const auto code = static_cast<absl::StatusCode>(reply.code());
  // A reply inside a stream carries no RetryInfo; the delay is the one for a server that is away.
  RetryAdvice advice;
  const bool busy = code == absl::StatusCode::kResourceExhausted;
  const std::optional<absl::Duration> delay = connection_.DelayBeforeRetry(
      busy ? absl::StatusCode::kUnavailable : code, advice, pending.attempts);
  if (!delay) {
    return absl::Status(code, fmt::format("{}: {}: {}", connection_.options().address,
                                          Describe(pending), reply.error_message()));
  }
  ++pending.attempts;
  ++totals_.retries;
  pending.sent = false;
  pending.not_before = absl::Now() + *delay;
  return absl::OkStatus();
}

absl::Status EmbedPipeline::Deliver() {
  while (!pending_.empty() && pending_.front().response) {
    const v1::EmbedResponse& response = *pending_.front().response;
    totals_.texts += response.inputs_size();
    totals_.tokens += response.usage().tokens();
    for (const v1::InputInfo& input : response.inputs()) totals_.truncated += input.truncated();
    totals_.activation_bytes =
        std::max<uint64_t>(totals_.activation_bytes, response.usage().activation_bytes());
    FSVD_RETURN_IF_ERROR(sink_(response));
    pending_.pop_front();
    ++first_id_;
  }
  return absl::OkStatus();
}

absl::Status EmbedPipeline::CheckResponse(const Pending& pending,
                                          const v1::EmbedResponse& response) {
  const v1::Tensor& tensor = response.embeddings();
  const int64_t rows = pending.request.request().text().texts_size();
  const int64_t columns = tensor.shape_size() == 2 ? tensor.shape(1) : 0;
  if (columns_ == 0) columns_ = columns;
  if (tensor.dtype() != v1::DATA_TYPE_FLOAT32 || columns <= 0 || columns != columns_ ||
      tensor.shape(0) != rows || response.inputs_size() != rows ||
      static_cast<int64_t>(tensor.data().size()) / 4 / columns != rows ||
      static_cast<int64_t>(tensor.data().size()) % (4 * columns) != 0) {
    return absl::InternalError(fmt::format(
        "{}: {}: the answer is {} of shape [{}], {} bytes, {} infos; expected FLOAT32 [{},{}]",
        connection_.options().address, Describe(pending), v1::DataType_Name(tensor.dtype()),
        fmt::join(tensor.shape(), ","), tensor.data().size(), response.inputs_size(), rows,
        columns_));
  }
  return absl::OkStatus();
}

std::string EmbedPipeline::Describe(const Pending& pending) const {
  return fmt::format("texts {} to {}", pending.first_text,
                     pending.first_text + pending.request.request().text().texts_size() - 1);
}

}  // namespace flashsvd
