#ifndef FLASHSVD_SERVER_EMBED_STREAM_H_
#define FLASHSVD_SERVER_EMBED_STREAM_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "flashsvd/v1/encoder.pb.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "runtime/mutex.h"
#include "server/embed_call.h"
#include "server/service_context.h"

namespace flashsvd {

class EmbedStream;

// The streams that are open, so that a drain reaches them. Thread-safe.
class OpenStreams {
 public:
  // Whether the server drains already.
  bool Add(const std::shared_ptr<EmbedStream>& stream);
  void Remove(const std::shared_ptr<EmbedStream>& stream);
  // Drains all streams, and those that are added later.
  void Drain();

 private:
  Mutex mu_;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  std::set<std::shared_ptr<EmbedStream>> streams_ ABSL_GUARDED_BY(mu_);
};

// One EmbedStream RPC. Requests are computed side by side, as many as the window (in messages,
// tokens and bytes) admits; while it is full nothing is read, and gRPC's flow control stops the
// client. Replies go out in request order. A request that fails is answered in its place.
class EmbedStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                          public std::enable_shared_from_this<EmbedStream> {
 public:
  // `context` and `streams` must outlive the RPC.
  static grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Start(
      const ServiceContext& context, grpc::CallbackServerContext* call, OpenStreams* streams);

  // Reads no more, answers what has been read, then ends the stream with UNAVAILABLE.
  void Drain();

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  // A request that has been read and whose reply has not been sent.
  struct Item {
    grpc::ByteBuffer message;  // the request's bytes, later the reply's
    v1::EmbedStreamResponse response;
    std::shared_ptr<EmbedCall> call;  // until it is done
    int64_t bytes = 0;                // of the message, counted in bytes_
    bool is_done = false;
  };

  EmbedStream(const ServiceContext& context, grpc::CallbackServerContext* call,
              OpenStreams* streams);

  absl::Time ItemDeadline() const;
  void Begin(const std::shared_ptr<Item>& item, const std::shared_ptr<EmbedCall>& call);
  void Parse(const std::shared_ptr<Item>& item, const std::shared_ptr<EmbedCall>& call);
  void OnItemDone(const std::shared_ptr<Item>& item, const absl::Status& status);
  bool HasRoom() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CancelItems() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Starts every operation that may start now. gRPC never runs a reaction inside the call that
  // starts an operation, so this is safe under the lock.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void End(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const ServiceContext& context_;
  grpc::CallbackServerContext* const call_;
  OpenStreams* const streams_;
  bool entered_ = false;       // the gate; set before anything is started
  grpc::ByteBuffer incoming_;  // target of the read in progress

  Mutex mu_;
  std::deque<std::shared_ptr<Item>> items_ ABSL_GUARDED_BY(mu_);  // in request order
  int64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int computing_ ABSL_GUARDED_BY(mu_) = 0;  // items that are not done
  int64_t computing_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool half_closed_ ABSL_GUARDED_BY(mu_) = false;  // the client has sent everything
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_EMBED_STREAM_H_
