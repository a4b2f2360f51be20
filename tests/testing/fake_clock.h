#ifndef FLASHSVD_TESTS_TESTING_FAKE_CLOCK_H_
#define FLASHSVD_TESTS_TESTING_FAKE_CLOCK_H_

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"
#include "runtime/clock.h"

namespace flashsvd {

// A clock that stands still until a test moves it. Thread-safe.
class FakeClock : public Clock {
 public:
  absl::Time Now() const override { return absl::FromUnixNanos(nanos_.load()); }
  // Negative: the wall clock is set back.
  void Advance(absl::Duration by) { nanos_.fetch_add(absl::ToInt64Nanoseconds(by)); }

 private:
  std::atomic<int64_t> nanos_{1'700'000'000'000'000'000};
};

}  // namespace flashsvd

#endif  // FLASHSVD_TESTS_TESTING_FAKE_CLOCK_H_
