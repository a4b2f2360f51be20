// In steady state the batcher allocates nothing between Submit and the end of `done`.

#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/batcher.h"
#include "tests/testing/counting_new.h"
#include "tests/testing/fake_clock.h"

namespace flashsvd {
namespace {

class BatcherAllocTest : public ::testing::Test {
 protected:
  BatcherAllocTest() {
    options_.max_batch_tokens = 64;
    options_.max_batch_sequences = 16;
    options_.max_seqlen = 8;
    options_.max_queue_requests = 32;
    options_.activation_bytes = [](int tokens, int, int) { return size_t{16} * tokens; };
    options_.max_batch_bytes = 16 * 60;
    for (int i = 0; i < 32; ++i) {
      auto request = std::make_shared<Request>();
      for (int s = 0; s <= i % 3; ++s) {
        const std::vector<int> ids(1 + (i + s) % 8, 7);
        request->input.Append(ids, ids);
      }
      request->done = [this](const RequestResult&) { ++done_; };
      requests_.push_back(std::move(request));
    }
  }

  // A queue full of requests, split by memory and computed by two slots.
  void OneRound(Batcher& batcher, Batch (&slots)[2]) {
    for (const std::shared_ptr<Request>& request : requests_) {
      ASSERT_TRUE(batcher.Submit(request).ok());
    }
    while (batcher.TryNext(&slots[0])) {
      const bool both = batcher.TryNext(&slots[1]);
      batcher.Complete(slots[0], absl::OkStatus(), absl::Milliseconds(1), 1);
      if (both) batcher.Complete(slots[1], absl::OkStatus(), absl::Milliseconds(1), 1);
    }
  }

  BatcherOptions options_;
  FakeClock clock_;
  Observer observer_;
  std::vector<std::shared_ptr<Request>> requests_;
  int done_ = 0;
};

TEST_F(BatcherAllocTest, AllocatesNothingBetweenAdmissionAndCompletionOnceWarm) {
  auto batcher = Batcher::Create(options_, clock_, observer_);
  ASSERT_TRUE(batcher.ok());
  Batch slots[2];
  OneRound(**batcher, slots);
  done_ = 0;
  const int64_t before = testing::NumAllocations();
  for (int i = 0; i < 10; ++i) OneRound(**batcher, slots);
  EXPECT_EQ(testing::NumAllocations() - before, 0);
  EXPECT_EQ(done_, 320);
}

TEST_F(BatcherAllocTest, CounterSeesTheFirstRoundAllocate) {
  auto batcher = Batcher::Create(options_, clock_, observer_);
  ASSERT_TRUE(batcher.ok());
  Batch slots[2];
  const int64_t before = testing::NumAllocations();
  OneRound(**batcher, slots);
  EXPECT_GT(testing::NumAllocations() - before, 0);
}

}  // namespace
}  // namespace flashsvd
