#include "server/health_service.h"

#include <utility>

namespace flashsvd {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// One Watch call. Of several changes while a write is in progress only the last is sent.
class HealthService::Watcher final : public grpc::ServerWriteReactor<HealthCheckResponse>,
                                     public std::enable_shared_from_this<Watcher> {
 public:
  Watcher(HealthService* service, std::string name) : service_(service), name_(std::move(name)) {}

  const std::string& name() const { return name_; }

  void Set(Status status) {
    MutexLock lock(&mu_);
    wanted_ = status;
    Advance();
  }

  // Ends the call once the last status is sent.
  void End() {
    MutexLock lock(&mu_);
    ending_ = true;
    Advance();
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&mu_);
    writing_ = false;
    client_left_ |= !ok;
    Advance();
  }
  void OnCancel() override {
    MutexLock lock(&mu_);
    client_left_ = true;
    Advance();
  }
  void OnDone() override { service_->Remove(shared_from_this()); }

 private:
  // gRPC runs no reaction inside the call that starts an operation, so the lock may be held.
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (writing_ || finished_) return;
    if (wanted_ != sent_ && !client_left_) {
      sent_ = wanted_;
      message_.set_status(sent_);
      writing_ = true;
      StartWrite(&message_);
    } else if (ending_ || client_left_) {
      finished_ = true;
      Finish(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is shutting down"));
    }
  }

  HealthService* const service_;
  const std::string name_;
  Mutex mu_;
  HealthCheckResponse message_ ABSL_GUARDED_BY(mu_);
  Status wanted_ ABSL_GUARDED_BY(mu_) = HealthCheckResponse::UNKNOWN;
  Status sent_ ABSL_GUARDED_BY(mu_) = HealthCheckResponse::UNKNOWN;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  bool client_left_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

HealthService::HealthService(const std::vector<std::string>& names) {
  for (const std::string& name : names) statuses_[name] = HealthCheckResponse::NOT_SERVING;
}

HealthService::~HealthService() = default;

void HealthService::SetServing(const std::string& name, bool serving) {
  const Status status = serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
  MutexLock lock(&mu_);
  const auto it = statuses_.find(name);
  if (shut_down_ || it == statuses_.end()) return;
  it->second = status;
  for (const std::shared_ptr<Watcher>& watcher : watchers_) {
    if (watcher->name() == name) watcher->Set(status);
  }
}

void HealthService::Shutdown() {
  MutexLock lock(&mu_);
  shut_down_ = true;
  for (auto& [name, status] : statuses_) status = HealthCheckResponse::NOT_SERVING;
  for (const std::shared_ptr<Watcher>& watcher : watchers_) {
    if (statuses_.count(watcher->name()) > 0) watcher->Set(HealthCheckResponse::NOT_SERVING);
    watcher->End();
  }
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* call,
                                               const HealthCheckRequest* request,
                                               HealthCheckResponse* response) {
  grpc::ServerUnaryReactor* reactor = call->DefaultReactor();
  MutexLock lock(&mu_);
  const auto it = statuses_.find(request->service());
  if (it == statuses_.end()) {
    reactor->Finish(grpc::Status(grpc::StatusCode::NOT_FOUND, "unknown service"));
  } else {
    response->set_status(it->second);
    reactor->Finish(grpc::Status::OK);
  }
  return reactor;
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(
    grpc::CallbackServerContext*, const HealthCheckRequest* request) {
  const auto watcher = std::make_shared<Watcher>(this, request->service());
  MutexLock lock(&mu_);
  watchers_.insert(watcher);  // until OnDone
  const auto it = statuses_.find(request->service());
  watcher->Set(it == statuses_.end() ? HealthCheckResponse::SERVICE_UNKNOWN : it->second);
  if (shut_down_) watcher->End();
  return watcher.get();
}

void HealthService::Remove(const std::shared_ptr<Watcher>& watcher) {
  MutexLock lock(&mu_);
  watchers_.erase(watcher);
}

}  // namespace flashsvd
