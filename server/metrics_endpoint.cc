#include "server/metrics_endpoint.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <utility>

#include "CivetServer.h"
#include "fmt/format.h"
#include "prometheus/text_serializer.h"
#include "server/host_port.h"

namespace flashsvd {
namespace {

class ScrapeHandler : public CivetHandler {
 public:
  explicit ScrapeHandler(std::vector<std::shared_ptr<prometheus::Collectable>> collectables)
      : collectables_(std::move(collectables)) {}

  bool handleGet(CivetServer*, mg_connection* connection) override {
    const std::string body = RenderMetrics(collectables_);
    mg_printf(connection,
              "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
              "Cache-Control: no-store\r\nConnection: close\r\n\r\n",
              kMetricsContentType, body.size());
    mg_write(connection, body.data(), body.size());
    return true;
  }

 private:
  const std::vector<std::shared_ptr<prometheus::Collectable>> collectables_;
};

// Opens a connection and closes it again.
void Knock(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return;
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd >= 0) {
    // Whether it succeeds makes no difference: all that counts is that the other side wakes up.
    [[maybe_unused]] const int ignored = connect(fd, found->ai_addr, found->ai_addrlen);
    close(fd);
  }
  freeaddrinfo(found);
}

}  // namespace

std::string RenderMetrics(
    const std::vector<std::shared_ptr<prometheus::Collectable>>& collectables) {
  std::vector<prometheus::MetricFamily> families;
  for (const auto& collectable : collectables) {
    for (prometheus::MetricFamily& family : collectable->Collect()) {
      families.push_back(std::move(family));
    }
  }
  // prometheus-cpp keeps its samples in hash order.
  for (prometheus::MetricFamily& family : families) {
    std::sort(family.metric.begin(), family.metric.end(),
              [](const auto& a, const auto& b) { return a.label < b.label; });
  }
  return prometheus::TextSerializer().Serialize(families);
}

struct MetricsEndpoint::Impl {
  Impl(const std::string& host, const std::vector<std::string>& options,
       std::vector<std::shared_ptr<prometheus::Collectable>> collectables)
      : host(host), handler(std::move(collectables)), server(options) {
    server.addHandler("/metrics$", &handler);
  }

  const std::string host;
  ScrapeHandler handler;
  CivetServer server;  // stopped first
};

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Start(
    const std::string& host, int port,
    std::vector<std::shared_ptr<prometheus::Collectable>> collectables) {
  const std::string address = HostPort(host, port);
  try {
    return std::unique_ptr<MetricsEndpoint>(new MetricsEndpoint(
        std::make_unique<Impl>(host,
                               std::vector<std::string>{"listening_ports", address, "num_threads",
                                                        "2", "request_timeout_ms", "10000"},
                               std::move(collectables))));
  } catch (const CivetException&) {
    return absl::UnavailableError(
        fmt::format("metrics_port: cannot listen on {} (is the port taken?)", address));
  }
}

MetricsEndpoint::MetricsEndpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

// civetweb looks whether it is to stop once in two seconds, or when somebody connects.
MetricsEndpoint::~MetricsEndpoint() {
  const std::string host = impl_->host;
  const int listening = port();
  const std::future<void> stopped = std::async(std::launch::async, [this] { impl_.reset(); });
  do {
    Knock(host, listening);
  } while (stopped.wait_for(std::chrono::milliseconds(10)) != std::future_status::ready);
}

int MetricsEndpoint::port() const { return impl_->server.getListeningPorts().at(0); }

}  // namespace flashsvd
