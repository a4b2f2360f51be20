#ifndef FLASHSVD_SERVER_HEALTH_SERVICE_H_
#define FLASHSVD_SERVER_HEALTH_SERVICE_H_

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "runtime/mutex.h"

namespace flashsvd {

// grpc.health.v1.Health. Not gRPC's own: that one cannot end the Watch calls that are open, and
// each of them would hold up a drain until its deadline. Thread-safe.
class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  // Knows these names, all NOT_SERVING.
  explicit HealthService(const std::vector<std::string>& names);
  ~HealthService() override;

  // Tells all who watch. Ignored after Shutdown and for names that are not known.
  void SetServing(const std::string& name, bool serving);

  // Reports NOT_SERVING for all names, for good, and ends all watches.
  void Shutdown();

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* call,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* call,
      const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  class Watcher;
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;

  void Remove(const std::shared_ptr<Watcher>& watcher);

  Mutex mu_;
  bool shut_down_ ABSL_GUARDED_BY(mu_) = false;
  std::map<std::string, Status> statuses_ ABSL_GUARDED_BY(mu_);
  std::set<std::shared_ptr<Watcher>> watchers_ ABSL_GUARDED_BY(mu_);
};

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_HEALTH_SERVICE_H_
