#include "server/embed_stream.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "server/grpc_status.h"
#include "server/raw_message.h"

namespace flashsvd {
namespace {

// Of text, roughly: a message's tokens must be known before it is tokenised.
constexpr int64_t kBytesPerToken = 4;

}  // namespace

bool OpenStreams::Add(const std::shared_ptr<EmbedStream>& stream) {
  MutexLock lock(&mu_);
  streams_.insert(stream);
  return draining_;
}

void OpenStreams::Remove(const std::shared_ptr<EmbedStream>& stream) {
  MutexLock lock(&mu_);
  streams_.erase(stream);
}

void OpenStreams::Drain() {
  std::set<std::shared_ptr<EmbedStream>> streams;
  {
    MutexLock lock(&mu_);
    draining_ = true;
    streams = streams_;
  }
  for (const std::shared_ptr<EmbedStream>& stream : streams) stream->Drain();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* EmbedStream::Start(
    const ServiceContext& context, grpc::CallbackServerContext* call, OpenStreams* streams) {
  std::shared_ptr<EmbedStream> stream(new EmbedStream(context, call, streams));
  // From here on OpenStreams owns it, until OnDone.
  const bool draining = streams->Add(stream);
  stream->entered_ = context.gate.Enter();
  MutexLock lock(&stream->mu_);
  stream->draining_ = draining || !stream->entered_;
  stream->Advance();
  return stream.get();
}

EmbedStream::EmbedStream(const ServiceContext& context, grpc::CallbackServerContext* call,
                         OpenStreams* streams)
    : context_(context), call_(call), streams_(streams) {}

void EmbedStream::Drain() {
  MutexLock lock(&mu_);
  draining_ = true;
  Advance();
}

void EmbedStream::OnReadDone(bool ok) {
  std::shared_ptr<Item> item;
  std::shared_ptr<EmbedCall> call;
  {
    MutexLock lock(&mu_);
    reading_ = false;
    if (ended_) return;  // a drain has overtaken the read
    if (!ok) {
      half_closed_ = true;
      Advance();
      return;
    }
    item = std::make_shared<Item>();
    item->message.Swap(&incoming_);
    item->bytes = static_cast<int64_t>(item->message.Length());
    item->call = std::make_shared<EmbedCall>(
        context_, RpcTask::kEmbedStream, ItemDeadline(), item->response.mutable_response(),
        [self = shared_from_this(), item](const absl::Status& status) {
          self->OnItemDone(item, status);
        });
    call = item->call;
    if (cancelled_) call->Cancel();
    items_.push_back(item);
    bytes_ += item->bytes;
    computing_bytes_ += item->bytes;
    ++computing_;
    Advance();
  }
  Begin(item, call);
}

absl::Time EmbedStream::ItemDeadline() const {
  const absl::Time limit = context_.clock.Now() + context_.limits.default_deadline;
  const auto deadline = call_->deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return limit;
  return std::min(limit, absl::FromChrono(deadline));
}

void EmbedStream::Begin(const std::shared_ptr<Item>& item, const std::shared_ptr<EmbedCall>& call) {
  if (item->bytes <= kInlineRequestBytes) {
    Parse(item, call);
    return;
  }
  const auto refused = context_.workers.Submit(
      item->bytes, [self = shared_from_this(), item, call] { self->Parse(item, call); });
  if (refused) call->Refuse(*refused);
}

void EmbedStream::Parse(const std::shared_ptr<Item>& item, const std::shared_ptr<EmbedCall>& call) {
  v1::EmbedStreamRequest request;
  absl::Status status;
  try {
    status = ParseMessage(&item->message, &request);
  } catch (const std::exception& error) {
    status = absl::InternalError(error.what());
  }
  item->response.set_id(request.id());
  if (!status.ok()) {
    call->Fail(status);
    return;
  }
  call->Run(std::move(*request.mutable_request()));
}

void EmbedStream::OnItemDone(const std::shared_ptr<Item>& item, const absl::Status& status) {
  v1::EmbedStreamResponse& response = item->response;
  absl::Status outcome = status;
  if (outcome.ok()) outcome = SerializeMessage(response, &item->message);
  if (!outcome.ok()) {
    response.clear_response();
    response.set_code(static_cast<int>(outcome.code()));
    response.set_error_message(std::string(outcome.message()));
    if (const auto delay = RetryDelay(outcome)) {
      response.set_retry_after_ms(absl::ToInt64Milliseconds(*delay));
    }
    // A message as small as this serialises.
    SerializeMessage(response, &item->message).IgnoreError();
  }
  item->call->Conclude(outcome);
  response.Clear();

  MutexLock lock(&mu_);
  item->call.reset();  // it holds the item, too
  item->is_done = true;
  computing_bytes_ -= item->bytes;
  bytes_ += static_cast<int64_t>(item->message.Length()) - item->bytes;
  item->bytes = static_cast<int64_t>(item->message.Length());
  --computing_;
  Advance();
}

void EmbedStream::OnWriteDone(bool ok) {
  MutexLock lock(&mu_);
  writing_ = false;
  if (ok) {
    bytes_ -= items_.front()->bytes;
    items_.pop_front();
  } else {
    CancelItems();
  }
  Advance();
}

void EmbedStream::OnCancel() {
  MutexLock lock(&mu_);
  CancelItems();
  Advance();
}

void EmbedStream::CancelItems() {
  cancelled_ = true;
  for (const std::shared_ptr<Item>& item : items_) {
    if (item->call != nullptr) item->call->Cancel();
  }
}

void EmbedStream::OnDone() {
  if (entered_) context_.gate.Leave();
  streams_->Remove(shared_from_this());
}

// Always for one item: any may be larger than a limit.
bool EmbedStream::HasRoom() const {
  const RequestLimits& limits = context_.limits;
  return items_.empty() || (static_cast<int>(items_.size()) < limits.stream_window &&
                            bytes_ < limits.stream_window_bytes &&
                            computing_bytes_ / kBytesPerToken < limits.stream_window_tokens);
}

void EmbedStream::Advance() {
  if (ended_) return;
  if (cancelled_) {
    // Reads and writes in progress fail soon, and so do the items.
    if (!reading_ && !writing_ && computing_ == 0) {
      End(absl::CancelledError("the client has left"));
    }
    return;
  }
  if (!writing_ && !items_.empty() && items_.front()->is_done) {
    writing_ = true;
    StartWrite(&items_.front()->message);
  }
  if (!reading_ && !half_closed_ && !draining_ && HasRoom()) {
    reading_ = true;
    StartRead(&incoming_);
  }
  if (!items_.empty()) return;
  if (half_closed_) {
    End(absl::OkStatus());
  } else if (draining_) {
    End(WithReason(absl::UnavailableError("the server is shutting down; every request that was "
                                          "read has been answered"),
                   "DRAINING"));
  }
}

void EmbedStream::End(const absl::Status& status) {
  ended_ = true;
  Finish(ToGrpcStatus(status));
}

}  // namespace flashsvd
