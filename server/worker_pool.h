#ifndef FLASHSVD_SERVER_WORKER_POOL_H_
#define FLASHSVD_SERVER_WORKER_POOL_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "runtime/mutex.h"
#include "runtime/observer.h"

namespace flashsvd {

// A few threads for work that would hold up gRPC's event threads or an engine's slot: parsing and
// tokenising large requests, writing out large results. Thread-safe.
class WorkerPool {
 public:
  struct Options {
    int num_threads = 1;
    // Limits of what waits, beyond which Submit refuses.
    int max_jobs = 1024;
    int64_t max_bytes = int64_t{64} << 20;
  };

  explicit WorkerPool(const Options& options);
  // Runs everything that waits, then joins.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Queues new work that holds `bytes` of memory, or says which limit (kItems, kBytes) is reached.
  // A job larger than the limit on bytes is taken when nothing else waits. `job` must not throw.
  std::optional<Rejection> Submit(int64_t bytes, std::function<void()> job);

  // Queues the rest of work that was accepted before: it goes ahead of all that is new and is never
  // refused.
  void Continue(std::function<void()> job);

  // Submitted work that waits.
  int num_waiting() const;

 private:
  struct Job {
    int64_t bytes = 0;
    std::function<void()> run;
  };

  void Run();
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stopping_ || !started_.empty() || !fresh_.empty();
  }

  const Options options_;
  mutable Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void()>> started_ ABSL_GUARDED_BY(mu_);
  std::deque<Job> fresh_ ABSL_GUARDED_BY(mu_);
  int64_t fresh_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_WORKER_POOL_H_
