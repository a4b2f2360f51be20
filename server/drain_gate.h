#ifndef FLASHSVD_SERVER_DRAIN_GATE_H_
#define FLASHSVD_SERVER_DRAIN_GATE_H_

#include <atomic>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/mutex.h"

namespace flashsvd {

// Counts the calls inside and, once closed, lets no more in. gRPC's own Shutdown cancels calls that
// have arrived but not been handed to the service; a gate in front of it answers them properly, and
// leaves Shutdown nothing to cancel. Thread-safe; entering and leaving take no lock while it is
// open.
class DrainGate {
 public:
  // False: closed, the call is not inside.
  bool Enter() {
    if ((state_.fetch_add(kCall, std::memory_order_acq_rel) & kClosed) == 0) return true;
    Leave();
    return false;
  }

  void Leave() {
    // The last one out after closing; others may still knock, which does no harm.
    if (state_.fetch_sub(kCall, std::memory_order_acq_rel) == (kClosed | kCall)) {
      MutexLock lock(&mu_);
      emptied_ = true;
      emptied_changed_.SignalAll();
    }
  }

  // Closes the gate for good and waits until nobody is inside, at most `timeout`. Whether it is so.
  bool CloseAndWait(absl::Duration timeout) {
    if ((state_.fetch_or(kClosed, std::memory_order_acq_rel) & ~kClosed) == 0) return true;
    MutexLock lock(&mu_);
    const absl::Time until = absl::Now() + timeout;
    for (absl::Duration left = timeout; !emptied_ && left > absl::ZeroDuration();
         left = until - absl::Now()) {
      emptied_changed_.WaitWithTimeout(&mu_, left);
    }
    return emptied_;
  }

 private:
  static constexpr int64_t kClosed = 1;
  static constexpr int64_t kCall = 2;

  std::atomic<int64_t> state_{0};
  Mutex mu_;
  CondVar emptied_changed_;
  bool emptied_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_DRAIN_GATE_H_
