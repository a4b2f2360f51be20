#include "tools/client/stream_call.h"

#include <utility>

#include "absl/time/clock.h"

namespace flashsvd {

StreamCall::StreamCall(v1::EncoderService::Stub& stub) {
  stub.async()->EmbedStream(&context_, this);
  AddHold();
  StartRead(&incoming_);
  StartCall();
}

StreamCall::~StreamCall() {
  if (!held_) return;
  Cancel();
  Finish();
}

bool StreamCall::CanSend() const {
  MutexLock lock(&mutex_);
  return !writing_ && !broken_;
}

void StreamCall::Send(const v1::EmbedStreamRequest& request) {
  {
    MutexLock lock(&mutex_);
    writing_ = true;
  }
  StartWrite(&request);
}

bool StreamCall::broken() const {
  MutexLock lock(&mutex_);
  return broken_;
}

std::optional<v1::EmbedStreamResponse> StreamCall::TakeReply() {
  MutexLock lock(&mutex_);
  if (replies_.empty()) return std::nullopt;
  std::optional<v1::EmbedStreamResponse> reply = std::move(replies_.front());
  replies_.pop_front();
  return reply;
}

void StreamCall::Wait(bool want_send, absl::Time deadline) const {
  MutexLock lock(&mutex_);
  while (replies_.empty() && !broken_ && !(want_send && !writing_)) {
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return;
    changed_.WaitWithTimeout(&mutex_, left);
  }
}

grpc::Status StreamCall::Finish() {
  {
    // One write at a time; a cancelled or broken call ends the one under way.
    MutexLock lock(&mutex_);
    while (writing_) changed_.Wait(&mutex_);
  }
  StartWritesDone();
  RemoveHold();
  held_ = false;
  MutexLock lock(&mutex_);
  while (!status_) changed_.Wait(&mutex_);
  return *status_;
}

void StreamCall::OnReadDone(bool ok) {
  {
    MutexLock lock(&mutex_);
    if (ok) {
      replies_.push_back(std::move(incoming_));
      incoming_.Clear();
    } else {
      broken_ = true;
    }
    changed_.SignalAll();
  }
  if (ok) StartRead(&incoming_);
}

void StreamCall::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  if (!ok) broken_ = true;
  changed_.SignalAll();
}

void StreamCall::OnDone(const grpc::Status& status) {
  MutexLock lock(&mutex_);
  status_ = status;
  changed_.SignalAll();
}

}  // namespace flashsvd
