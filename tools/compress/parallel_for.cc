#include "tools/compress/parallel_for.h"

#include <algorithm>
#include <thread>
#include <vector>

namespace flashsvd {

absl::Status ParallelFor(size_t count, int threads, const std::atomic<bool>* cancelled,
                         const std::function<absl::Status(size_t)>& task) {
  std::vector<absl::Status> results(count);
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  const auto stopped = [&] { return cancelled != nullptr && cancelled->load(); };
  const auto work = [&] {
    while (!failed && !stopped()) {
      const size_t i = next.fetch_add(1);
      if (i >= count) return;
      results[i] = task(i);
      if (!results[i].ok()) failed = true;
    }
  };
  std::vector<std::thread> workers;
  const size_t extra = std::min(static_cast<size_t>(threads), count);
  for (size_t i = 1; i < extra; ++i) workers.emplace_back(work);
  work();
  for (std::thread& worker : workers) worker.join();
  for (absl::Status& result : results) {
    if (!result.ok()) return std::move(result);
  }
  return stopped() ? absl::CancelledError("interrupted") : absl::OkStatus();
}

}  // namespace flashsvd
