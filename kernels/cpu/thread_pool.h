#ifndef FLASHSVD_KERNELS_CPU_THREAD_POOL_H_
#define FLASHSVD_KERNELS_CPU_THREAD_POOL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace flashsvd {

// Threads that share the tasks of one parallel region at a time. The caller takes part, so a pool
// of one has no thread of its own and runs regions inline.
//
// Run may be called from several threads: their regions take turns. A worker that runs out of work
// spins for kSpinMicros, in case the next fused operation follows at once, then sleeps. A region
// never waits for a worker that has not woken up: whoever is there takes the tasks.
// Run allocates nothing. Destruction waits for the workers; no Run may be in progress.
class ThreadPool {
 public:
  // Waking a sleeper costs 35-70 us (facts/cpu.md), so spinning longer than that cannot pay.
  static constexpr int kSpinMicros = 50;

  // REQUIRES: 1 <= num_threads <= kMaxThreads.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  static constexpr int kMaxThreads = 1024;
  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(index, thread) for each index in [0, num_tasks), each once, in no fixed order, and
  // returns when all are done; their writes are then visible. `thread` is below
  // min(num_threads(), num_tasks) and belongs to one thread for the time of the region.
  template <class Task>
  void Run(int num_tasks, const Task& task) {
    RunErased(
        num_tasks,
        [](const void* erased, int index, int thread) {
          (*static_cast<const Task*>(erased))(index, thread);
        },
        &task);
  }

 private:
  using TaskFn = void (*)(const void* context, int index, int thread);

  void RunErased(int num_tasks, TaskFn fn, const void* context);
  void TakeTasks(int thread);
  void WorkerLoop();
  // Enters the open region unless it is `*last_epoch` or full; returns the thread number, or 0.
  int TryJoin(uint64_t* last_epoch);
  bool SpinUntilOpen(uint64_t last_epoch) const;

  std::mutex run_mutex_;  // held for the length of a region

  // The region: written while it is closed and no worker is inside, read by those that joined.
  TaskFn fn_ = nullptr;
  const void* context_ = nullptr;
  int num_tasks_ = 0;
  std::atomic<int> next_task_{0};

  // Fields of state_, see thread_pool.cc.
  std::atomic<uint64_t> state_{0};

  std::mutex sleep_mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CPU_THREAD_POOL_H_
