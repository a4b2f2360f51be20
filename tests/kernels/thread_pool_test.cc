#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace flashsvd {
namespace {

TEST(ThreadPoolTest, RunsEveryTaskOnce) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (int tasks : {0, 1, 2, 7, 500}) {
      std::vector<std::atomic<int>> runs(tasks);
      pool.Run(tasks, [&](int index, int) { ++runs[index]; });
      for (int i = 0; i < tasks; ++i) ASSERT_EQ(runs[i], 1) << i << " of " << tasks;
    }
  }
}

TEST(ThreadPoolTest, PoolOfOneRunsOnTheCaller) {
  ThreadPool pool(1);
  const std::thread::id caller = std::this_thread::get_id();
  pool.Run(5, [&](int, int thread) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    EXPECT_EQ(thread, 0);
  });
}

// The number is a place in a scratch buffer: two threads with the same one would share it.
TEST(ThreadPoolTest, ThreadNumbersAreExclusiveAndBelowThreadsAndTasks) {
  ThreadPool pool(4);
  for (int round = 0; round < 2000; ++round) {
    for (int tasks : {2, 3, 9}) {
      std::atomic<int> users[4] = {};
      std::atomic<bool> clash{false};
      pool.Run(tasks, [&](int, int thread) {
        if (thread < 0 || thread >= std::min(4, tasks) || ++users[thread] != 1) {
          clash = true;
        } else {
          --users[thread];
        }
      });
      ASSERT_FALSE(clash) << "round " << round << ", " << tasks << " tasks";
    }
  }
}

TEST(ThreadPoolTest, WritesOfTasksAreVisibleToTheCaller) {
  ThreadPool pool(3);
  std::vector<int> values(64);
  for (int round = 1; round <= 500; ++round) {
    pool.Run(64, [&](int index, int) { values[index] += index; });
    for (int i = 0; i < 64; ++i) ASSERT_EQ(values[i], round * i);
  }
}

TEST(ThreadPoolTest, ConcurrentCallersTakeTurns) {
  ThreadPool pool(3);
  std::vector<int64_t> sums(4);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 300; ++round) {
        std::vector<int> results(10);
        pool.Run(10, [&](int index, int) { results[index] = index + caller; });
        for (int result : results) sums[caller] += result;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int caller = 0; caller < 4; ++caller) EXPECT_EQ(sums[caller], 300 * (45 + 10 * caller));
}

TEST(ThreadPoolTest, StopsWhetherItsThreadsSpinOrSleep) {
  for (int round = 0; round < 50; ++round) {
    ThreadPool pool(4);
    if (round % 2 == 0) pool.Run(4, [](int, int) {});
  }
}

}  // namespace
}  // namespace flashsvd
