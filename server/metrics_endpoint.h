#ifndef FLASHSVD_SERVER_METRICS_ENDPOINT_H_
#define FLASHSVD_SERVER_METRICS_ENDPOINT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "prometheus/collectable.h"

namespace flashsvd {

// The content type that a scraper must see; Prometheus 3 refuses an answer without a version.
inline constexpr char kMetricsContentType[] = "text/plain; version=0.0.4; charset=utf-8";

// All families of the collectables in Prometheus' text format.
std::string RenderMetrics(
    const std::vector<std::shared_ptr<prometheus::Collectable>>& collectables);

// Answers GET /metrics over HTTP. prometheus-cpp's own Exposer leaves the version out of the
// content type and cannot report a port that is taken.
class MetricsEndpoint {
 public:
  // Listens on host:port; port 0 is any free one. Unavailable: the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsEndpoint>> Start(
      const std::string& host, int port,
      std::vector<std::shared_ptr<prometheus::Collectable>> collectables);
  // Stops listening and waits for scrapes in progress.
  ~MetricsEndpoint();

  int port() const;

 private:
  struct Impl;
  explicit MetricsEndpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_METRICS_ENDPOINT_H_
