#ifndef FLASHSVD_SERVER_EMBED_CALL_H_
#define FLASHSVD_SERVER_EMBED_CALL_H_

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "flashsvd/v1/encoder.pb.h"
#include "runtime/request.h"
#include "server/request_checks.h"
#include "server/service_context.h"

namespace flashsvd {

// One request for embeddings on its way from message to message: checked, tokenised, queued,
// computed, formatted. Shared by Embed and EmbedStream.
//
// The engine writes its rows straight into the bytes of the response message; they are formatted
// there in place.
class EmbedCall final : public Request, public std::enable_shared_from_this<EmbedCall> {
 public:
  // The outcome, exactly once: on OK the response is complete, else it is to be ignored. Runs on
  // any thread, also inside Run. It serialises the answer, then calls Conclude, then sends.
  using Done = std::function<void(const absl::Status&)>;

  // `context` and `response` must live until `on_done` has run.
  EmbedCall(const ServiceContext& context, RpcTask task, absl::Time deadline,
            v1::EmbedResponse* response, Done on_done);

  // Checks, tokenises and queues.
  void Run(v1::EmbedRequest request);
  // Ends a call that could not be run: its message was malformed, or the workers have too much to
  // do.
  void Fail(const absl::Status& status) { Finish(status); }
  void Refuse(Rejection limit);

  // The client has left. Thread-safe, at any time.
  void Cancel() { cancelled.store(true, std::memory_order_relaxed); }

  // Counts the outcome.
  void Conclude(const absl::Status& status);

 private:
  absl::Status Prepare(const v1::EmbedRequest& request);
  absl::Status CheckAlive();
  absl::Status AppendTexts(const v1::TextInputs& text);
  absl::Status AppendTokens(const v1::TokenInputs& tokens);
  void AllocateResponse();
  absl::Status Submit();
  void OnComputed(const RequestResult& result);
  absl::Status CompleteResponse();
  void Finish(absl::Status status);
  RequestMetrics& request_metrics();

  const ServiceContext& context_;
  const RpcTask task_;
  const absl::Time start_;
  v1::EmbedResponse* const response_;
  const Done on_done_;

  ServedModel served_;               // null until the model has been found
  ModelMetrics* metrics_ = nullptr;  // of that model
  EmbedShape shape_;
  bool normalize_ = false;
  absl::Duration tokenize_time_;
  RequestResult result_;
  absl::Time serialize_start_;
};

// RESOURCE_EXHAUSTED with reason QUEUE_FULL and a delay after which to try again.
absl::Status QueueFull(const std::string& message, absl::Duration retry_delay);

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_EMBED_CALL_H_
