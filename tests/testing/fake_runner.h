#ifndef FLASHSVD_TESTS_TESTING_FAKE_RUNNER_H_
#define FLASHSVD_TESTS_TESTING_FAKE_RUNNER_H_

#include <span>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "runtime/batch_runner.h"
#include "runtime/mutex.h"

namespace flashsvd {

// Stands in for the device. Row s of its output is [first id, sum of ids, length] of sequence s.
// A test can hold it, so that its batch stays in flight, and make it fail. Thread-safe.
class FakeRunner : public BatchRunner {
 public:
  static constexpr int kHidden = 3;
  static constexpr size_t kBytesPerToken = 10;

  // Batches that begin after this wait until Release.
  void Hold() {
    MutexLock lock(&mu_);
    held_ = true;
  }
  void Release() {
    MutexLock lock(&mu_);
    held_ = false;
    changed_.SignalAll();
  }
  // What Run returns from now on.
  void SetStatus(absl::Status status) {
    MutexLock lock(&mu_);
    status_ = std::move(status);
  }
  // Blocks until this many batches have begun.
  void WaitUntilBegun(int batches) const {
    MutexLock lock(&mu_);
    while (begun_ < batches) changed_.Wait(&mu_);
  }
  int begun() const {
    MutexLock lock(&mu_);
    return begun_;
  }

  absl::StatusOr<size_t> Run(const PackedBatch& batch) override {
    MutexLock lock(&mu_);
    ++begun_;
    changed_.SignalAll();
    while (held_) changed_.Wait(&mu_);
    if (!status_.ok()) return status_;
    output_.clear();
    for (int s = 0; s < batch.num_sequences(); ++s) {
      const int begin = batch.cu_seqlens[s];
      const int end = batch.cu_seqlens[s + 1];
      float sum = 0;
      for (int t = begin; t < end; ++t) sum += static_cast<float>(batch.ids[t]);
      output_.insert(output_.end(),
                     {static_cast<float>(batch.ids[begin]), sum, static_cast<float>(end - begin)});
    }
    return kBytesPerToken * batch.num_tokens();
  }
  std::span<const float> output() const override { return output_; }

 private:
  mutable Mutex mu_;
  mutable CondVar changed_;
  bool held_ ABSL_GUARDED_BY(mu_) = false;
  int begun_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  std::vector<float> output_;  // the slot's thread alone
};

}  // namespace flashsvd

#endif  // FLASHSVD_TESTS_TESTING_FAKE_RUNNER_H_
