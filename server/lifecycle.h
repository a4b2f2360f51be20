#ifndef FLASHSVD_SERVER_LIFECYCLE_H_
#define FLASHSVD_SERVER_LIFECYCLE_H_

#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "runtime/mutex.h"
#include "server/server.h"

namespace flashsvd {

// SIGTERM and SIGINT as events. Before Arm() one of them ends the process, since there is nothing
// to lose; after it the first is only recorded, and the second ends the process. Thread-safe.
class ShutdownSignals {
 public:
  // Blocks both signals in this thread and in those it starts, so: construct it before any thread
  // is started, once. SIGPIPE is ignored from here on.
  ShutdownSignals();
  ~ShutdownSignals();

  void Arm();
  // Whether a signal has come; waits up to about `timeout` for it.
  bool Wait(absl::Duration timeout);

 private:
  void Run();

  Mutex mu_;
  CondVar changed_;
  bool armed_ ABSL_GUARDED_BY(mu_) = false;
  bool received_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// Serves until a signal comes or a device fails, then drains: NOT_SERVING, `drain_delay` of further
// service, every accepted request answered, engines, metrics. Returns the exit status: 0, or 1 if a
// device failed.
int ServeUntilShutdown(Server& server, ShutdownSignals& signals, absl::Duration drain_delay);

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_LIFECYCLE_H_
