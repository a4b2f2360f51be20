#include "server/worker_pool.h"

#include <utility>

namespace flashsvd {

WorkerPool::WorkerPool(const Options& options) : options_(options) {
  threads_.reserve(options.num_threads);
  for (int i = 0; i < options.num_threads; ++i) threads_.emplace_back([this] { Run(); });
}

WorkerPool::~WorkerPool() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

std::optional<Rejection> WorkerPool::Submit(int64_t bytes, std::function<void()> job) {
  MutexLock lock(&mu_);
  if (static_cast<int>(fresh_.size()) >= options_.max_jobs) return Rejection::kItems;
  if (!fresh_.empty() && fresh_bytes_ + bytes > options_.max_bytes) return Rejection::kBytes;
  fresh_bytes_ += bytes;
  fresh_.push_back({bytes, std::move(job)});
  changed_.Signal();
  return std::nullopt;
}

void WorkerPool::Continue(std::function<void()> job) {
  MutexLock lock(&mu_);
  started_.push_back(std::move(job));
  changed_.Signal();
}

int WorkerPool::num_waiting() const {
  MutexLock lock(&mu_);
  return static_cast<int>(fresh_.size());
}

void WorkerPool::Run() {
  for (;;) {
    std::function<void()> job;
    {
      MutexLock lock(&mu_);
      while (!HasWork()) changed_.Wait(&mu_);
      if (!started_.empty()) {
        job = std::move(started_.front());
        started_.pop_front();
      } else if (!fresh_.empty()) {
        fresh_bytes_ -= fresh_.front().bytes;
        job = std::move(fresh_.front().run);
        fresh_.pop_front();
      } else {
        return;
      }
    }
    job();
  }
}

}  // namespace flashsvd
