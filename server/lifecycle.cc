#include "server/lifecycle.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <string>

#include "absl/time/clock.h"
#include "spdlog/spdlog.h"

namespace flashsvd {
namespace {

// How soon a failed device is noticed.
constexpr absl::Duration kHealthPeriod = absl::Milliseconds(500);

sigset_t ShutdownSet() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

ShutdownSignals::ShutdownSignals() {
  signal(SIGPIPE, SIG_IGN);
  const sigset_t set = ShutdownSet();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  thread_ = std::thread([this] { Run(); });
}

ShutdownSignals::~ShutdownSignals() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  pthread_kill(thread_.native_handle(), SIGTERM);  // out of sigwait
  thread_.join();
}

void ShutdownSignals::Arm() {
  MutexLock lock(&mu_);
  armed_ = true;
}

bool ShutdownSignals::Wait(absl::Duration timeout) {
  MutexLock lock(&mu_);
  // Ending early does no harm: the caller asks again.
  if (!received_) changed_.WaitWithTimeout(&mu_, timeout);
  return received_;
}

void ShutdownSignals::Run() {
  const sigset_t set = ShutdownSet();
  for (;;) {
    int signal_number = 0;
    if (sigwait(&set, &signal_number) != 0) continue;
    MutexLock lock(&mu_);
    if (stopping_) return;
    // As a shell reports a process that a signal has ended.
    if (!armed_ || received_) _exit(128 + signal_number);
    received_ = true;
    changed_.SignalAll();
  }
}

int ServeUntilShutdown(Server& server, ShutdownSignals& signals, absl::Duration drain_delay) {
  while (!signals.Wait(kHealthPeriod)) {
    const absl::Status health = server.DeviceHealth();
    if (health.ok()) continue;
    spdlog::error("the device has failed: {}; shutting down", std::string(health.message()));
    server.ReportFailure();
    server.Drain();
    return 1;
  }
  spdlog::info("draining: NOT_SERVING now, no new requests after {}",
               absl::FormatDuration(drain_delay));
  server.ReportDraining();
  absl::SleepFor(drain_delay);
  server.Drain();
  spdlog::info("drained");
  return 0;
}

}  // namespace flashsvd
