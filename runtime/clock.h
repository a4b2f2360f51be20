#ifndef FLASHSVD_RUNTIME_CLOCK_H_
#define FLASHSVD_RUNTIME_CLOCK_H_

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace flashsvd {

// Where the runtime reads time from; tests inject a clock that they move. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

class SystemClock : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_CLOCK_H_
