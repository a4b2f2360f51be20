#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <chrono>

#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

// state_ in one word, so that joining and closing a region exclude each other:
//   bits 0-11 workers inside   12-23 workers that ever joined   24-35 how many may join
//   bit 36 open                37-63 epoch
// Thread numbers come from the joined count, hence are unique within a region.
constexpr uint64_t kInside = 1;
constexpr uint64_t kJoined = uint64_t{1} << 12;
constexpr uint64_t kLimit = uint64_t{1} << 24;
constexpr uint64_t kOpen = uint64_t{1} << 36;
constexpr uint64_t kEpoch = uint64_t{1} << 37;
constexpr uint64_t kField = 0xfff;

uint64_t InsideOf(uint64_t state) { return state & kField; }
uint64_t JoinedOf(uint64_t state) { return state / kJoined & kField; }
uint64_t LimitOf(uint64_t state) { return state / kLimit & kField; }
uint64_t EpochOf(uint64_t state) { return state / kEpoch; }

bool Joinable(uint64_t state, uint64_t last_epoch) {
  return (state & kOpen) != 0 && EpochOf(state) != last_epoch && JoinedOf(state) < LimitOf(state);
}

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  FSVD_CHECK(num_threads >= 1 && num_threads <= kMaxThreads, "a pool of %d threads", num_threads);
  workers_.reserve(num_threads - 1);
  for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { WorkerLoop(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(sleep_mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunErased(int num_tasks, TaskFn fn, const void* context) {
  const int helpers = std::min<int>(workers_.size(), num_tasks - 1);
  if (helpers <= 0) {
    for (int i = 0; i < num_tasks; ++i) fn(context, i, 0);
    return;
  }
  std::lock_guard<std::mutex> run_lock(run_mutex_);
  fn_ = fn;
  context_ = context;
  num_tasks_ = num_tasks;
  next_task_.store(0, std::memory_order_relaxed);
  const uint64_t epoch = EpochOf(state_.load(std::memory_order_relaxed)) + 1;
  // Sequentially consistent with the sleeper's own pair of accesses: either it sees the region
  // open, or it is seen here as asleep.
  state_.store(epoch * kEpoch + kOpen + helpers * kLimit);
  if (sleepers_.load() > 0) {
    { std::lock_guard<std::mutex> lock(sleep_mutex_); }
    if (helpers == static_cast<int>(workers_.size())) {
      wake_.notify_all();
    } else {
      for (int i = 0; i < helpers; ++i) wake_.notify_one();
    }
  }
  TakeTasks(0);
  state_.fetch_and(~kOpen, std::memory_order_relaxed);
  // Every task is taken; those inside are finishing theirs. A worker that lost its CPU would keep
  // this thread spinning, so give way after a while.
  for (int spins = 0; InsideOf(state_.load(std::memory_order_acquire)) != 0; ++spins) {
    if (spins < 1000) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::TakeTasks(int thread) {
  const int num_tasks = num_tasks_;
  for (;;) {
    const int index = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (index >= num_tasks) return;
    fn_(context_, index, thread);
  }
}

int ThreadPool::TryJoin(uint64_t* last_epoch) {
  uint64_t state = state_.load(std::memory_order_acquire);
  while (Joinable(state, *last_epoch)) {
    if (state_.compare_exchange_weak(state, state + kInside + kJoined, std::memory_order_acquire)) {
      *last_epoch = EpochOf(state);
      return static_cast<int>(JoinedOf(state)) + 1;
    }
  }
  return 0;
}

bool ThreadPool::SpinUntilOpen(uint64_t last_epoch) const {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(kSpinMicros);
  do {
    for (int i = 0; i < 16; ++i) {
      if (Joinable(state_.load(std::memory_order_relaxed), last_epoch)) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

void ThreadPool::WorkerLoop() {
  uint64_t last_epoch = 0;
  while (!stop_.load()) {
    if (const int thread = TryJoin(&last_epoch); thread != 0) {
      TakeTasks(thread);
      state_.fetch_sub(kInside, std::memory_order_release);
      continue;
    }
    if (SpinUntilOpen(last_epoch)) continue;
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [&] { return stop_.load() || Joinable(state_.load(), last_epoch); });
    sleepers_.fetch_sub(1);
  }
}

}  // namespace flashsvd
