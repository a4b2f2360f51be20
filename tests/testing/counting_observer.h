#ifndef FLASHSVD_TESTS_TESTING_COUNTING_OBSERVER_H_
#define FLASHSVD_TESTS_TESTING_COUNTING_OBSERVER_H_

#include <map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "runtime/mutex.h"
#include "runtime/observer.h"

namespace flashsvd {

// Keeps what the runtime reports. Thread-safe.
class CountingObserver : public Observer {
 public:
  void OnBatch(const BatchReport& report) override {
    MutexLock lock(&mu_);
    batches_.push_back(report);
  }
  void OnQueue(const QueueReport& report) override {
    MutexLock lock(&mu_);
    queue_ = report;
  }
  void OnQueued(absl::Duration time) override {
    MutexLock lock(&mu_);
    queued_.push_back(time);
  }
  void OnRejected(Rejection reason) override {
    MutexLock lock(&mu_);
    ++rejected_[reason];
  }
  void OnAbandoned() override {
    MutexLock lock(&mu_);
    ++abandoned_;
  }

  std::vector<BatchReport> batches() const {
    MutexLock lock(&mu_);
    return batches_;
  }
  QueueReport queue() const {
    MutexLock lock(&mu_);
    return queue_;
  }
  std::vector<absl::Duration> queued() const {
    MutexLock lock(&mu_);
    return queued_;
  }
  int rejected(Rejection reason) const {
    MutexLock lock(&mu_);
    const auto it = rejected_.find(reason);
    return it == rejected_.end() ? 0 : it->second;
  }
  int abandoned() const {
    MutexLock lock(&mu_);
    return abandoned_;
  }

 private:
  mutable Mutex mu_;
  std::vector<BatchReport> batches_ ABSL_GUARDED_BY(mu_);
  QueueReport queue_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Duration> queued_ ABSL_GUARDED_BY(mu_);
  std::map<Rejection, int> rejected_ ABSL_GUARDED_BY(mu_);
  int abandoned_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace flashsvd

#endif  // FLASHSVD_TESTS_TESTING_COUNTING_OBSERVER_H_
