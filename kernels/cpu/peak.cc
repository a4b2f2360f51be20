#include "kernels/cpu/peak.h"

#include <algorithm>
#include <chrono>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"

namespace flashsvd {

double MeasurePeakGflops(DType dtype, int num_threads) {
  using Clock = std::chrono::steady_clock;
  const absl::StatusOr<std::string> isa = SelectIsa("");
  if (dtype == DType::kF16 || !isa.ok()) return 0;
  const KernelTable& kernels = KernelsFor(*isa, dtype);
  ThreadPool pool(std::clamp(num_threads, 1, ThreadPool::kMaxThreads));
  constexpr int64_t kIterations = 160000;  // some milliseconds at most
  constexpr int kRounds = 60;
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    // Several tasks a thread: a thread that comes late costs a part of the round, not all of it.
    constexpr int kTasksPerThread = 4;
    const int tasks = pool.num_threads() * kTasksPerThread;
    const auto start = Clock::now();
    double flops_of_task = 0;
    pool.Run(tasks, [&](int index, int) {
      const double flops = kernels.peak(kIterations / kTasksPerThread);
      if (index == 0) flops_of_task = flops;
    });
    const std::chrono::duration<double> elapsed = Clock::now() - start;
    best = std::max(best, flops_of_task * tasks / elapsed.count() * 1e-9);
  }
  return best;
}

}  // namespace flashsvd
