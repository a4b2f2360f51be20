#ifndef FLASHSVD_TOOLS_CLIENT_STREAM_CALL_H_
#define FLASHSVD_TOOLS_CLIENT_STREAM_CALL_H_

#include <deque>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "flashsvd/v1/encoder.grpc.pb.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "runtime/mutex.h"

namespace flashsvd {

// One EmbedStream call, driven by one thread that never blocks inside gRPC: it sends when CanSend()
// and waits for whatever comes first.
class StreamCall
    : private grpc::ClientBidiReactor<v1::EmbedStreamRequest, v1::EmbedStreamResponse> {
 public:
  // Starts the call. `stub` must outlive it.
  explicit StreamCall(v1::EncoderService::Stub& stub);
  // Cancels it unless Finish() has returned.
  ~StreamCall() override;

  // False while a request is being written, and for good once the stream is broken().
  bool CanSend() const;
  // `request` must stay as it is until CanSend() or the end of the call. REQUIRES: CanSend().
  void Send(const v1::EmbedStreamRequest& request);

  // The stream has ended or failed: replies that came before can still be taken.
  bool broken() const;
  std::optional<v1::EmbedStreamResponse> TakeReply();

  // Returns when there is a reply to take, when CanSend() (if `want_send`), when the stream broke,
  // or at `deadline`, whichever is first.
  void Wait(bool want_send, absl::Time deadline) const;

  void Cancel() { context_.TryCancel(); }
  // Ends the sending side and waits for the server's status. Replies not taken are lost.
  grpc::Status Finish();
  const grpc::ClientContext& context() const { return context_; }

 private:
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  grpc::ClientContext context_;
  v1::EmbedStreamResponse incoming_;  // gRPC's between StartRead and OnReadDone

  mutable Mutex mutex_;
  mutable CondVar changed_;
  std::deque<v1::EmbedStreamResponse> replies_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
  bool held_ = true;  // a hold keeps OnDone away while this thread may still send
  std::optional<grpc::Status> status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_CLIENT_STREAM_CALL_H_
