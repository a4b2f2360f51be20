#ifndef FLASHSVD_TOOLS_CLIENT_EMBED_PIPELINE_H_
#define FLASHSVD_TOOLS_CLIENT_EMBED_PIPELINE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "flashsvd/v1/encoder.pb.h"
#include "tools/client/connection.h"
#include "tools/client/stream_call.h"

namespace flashsvd {

struct EmbedPipelineOptions {
  // Everything but the texts.
  v1::EmbedRequest request;
  // Texts per request.
  int batch = 32;
  // Requests sent and not yet answered; what this client holds in memory.
  int window = 8;
};

struct EmbedTotals {
  uint64_t texts = 0;
  uint64_t tokens = 0;
  uint64_t truncated = 0;
  uint64_t retries = 0;
  uint64_t activation_bytes = 0;  // of the largest batch that the server ran for us
  absl::Duration elapsed;         // from the first request to the last answer
};

// Embeds a sequence of texts through EmbedStream with a bounded number of requests in flight,
// delivering in order. Requests that the server was too busy for, and all that a broken stream left
// unanswered, are sent again as Connection's rules allow. Not thread-safe.
class EmbedPipeline {
 public:
  // Puts the next text into its argument; false when there is none.
  using Source = std::function<absl::StatusOr<bool>(std::string*)>;
  // Takes an answer: [n, dimensions] FLOAT32, checked, and its n infos.
  using Sink = std::function<absl::Status(const v1::EmbedResponse&)>;

  // `connection` must outlive the pipeline. REQUIRES: batch >= 1, window >= 1.
  EmbedPipeline(Connection& connection, EmbedPipelineOptions options, Source source, Sink sink);

  // Runs until the source is dry. Errors of the source and the sink as they are; of the server with
  // its address and the texts concerned, counted from 1.
  absl::StatusOr<EmbedTotals> Run();

 private:
  struct Pending {
    v1::EmbedStreamRequest request;
    uint64_t first_text = 0;  // from 1
    bool sent = false;
    absl::Time not_before = absl::InfinitePast();
    int attempts = 0;
    std::optional<v1::EmbedResponse> response;
  };

  bool Finished() const { return source_dry_ && pending_.empty(); }
  // Until Finished, the stream breaks, or an error that ends it all.
  absl::Status RunStream(StreamCall& call);
  absl::Status ReadBatch();
  // The next request to send, reading one more when the window has room; null when there is none
  // now. `wake_up` is when a delayed one becomes due.
  absl::StatusOr<Pending*> NextToSend(absl::Time* wake_up);
  absl::Status HandleReply(v1::EmbedStreamResponse reply);
  absl::Status Deliver();
  absl::Status CheckResponse(const Pending& pending, const v1::EmbedResponse& response);
  std::string Describe(const Pending& pending) const;

  Connection& connection_;
  const EmbedPipelineOptions options_;
  const Source source_;
  const Sink sink_;
  bool source_dry_ = false;
  uint64_t texts_read_ = 0;
  uint64_t first_id_ = 0;        // of pending_.front(); ids count up by one
  std::deque<Pending> pending_;  // in order; never longer than the window
  uint64_t replies_ = 0;
  absl::Time first_sent_ = absl::InfiniteFuture();
  absl::Time last_progress_ = absl::InfinitePast();
  int64_t columns_ = 0;  // 0 until the first answer
  EmbedTotals totals_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_CLIENT_EMBED_PIPELINE_H_
