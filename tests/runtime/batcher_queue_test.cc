// Admission, shutting down, holding back and blocking: the batcher as a queue.

#include <atomic>
#include <latch>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/batcher.h"
#include "tests/testing/batcher_fixture.h"

namespace flashsvd {
namespace {

using testing::HasSubstr;

class BatcherQueueTest : public BatcherFixture {
 protected:
  void ExpectRefused(const std::vector<int>& lengths, const std::string& message) {
    TestRequest& request = Make("refused", lengths);
    const absl::Status status = batcher().Submit(request.request());
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_EQ(request.runs(), 0);
  }
};

TEST_F(BatcherQueueTest, RefusesAtOnceOverTheRequestLimit) {
  options_.max_queue_requests = 2;
  Submit("a", {1});
  Submit("b", {1});
  ExpectRefused({1}, "2 requests wait, which is max_queue_requests 2");
  EXPECT_EQ(observer_.rejected(Rejection::kItems), 1);
}

TEST_F(BatcherQueueTest, RefusesAtOnceOverTheTokenLimit) {
  options_.max_queue_tokens = 12;
  Submit("a", {8});
  ExpectRefused({5}, "8 tokens wait, 5 more exceed max_queue_tokens 12");
  EXPECT_EQ(observer_.rejected(Rejection::kTokens), 1);
  Submit("b", {4});
}

TEST_F(BatcherQueueTest, RefusesAtOnceOverTheByteLimit) {
  options_.max_queue_bytes = 100;  // a sequence of n tokens takes 8 n + 12
  Submit("a", {4});
  ExpectRefused({6}, "44 bytes wait, 60 more exceed max_queue_bytes 100");
  EXPECT_EQ(observer_.rejected(Rejection::kBytes), 1);
  Submit("b", {5});
}

TEST_F(BatcherQueueTest, AcceptsARequestLargerThanTheQueueWhenNothingWaits) {
  options_.max_queue_tokens = 12;
  options_.max_queue_bytes = 100;
  TestRequest& a = Submit("a", {8, 8, 8});
  ExpectRefused({1}, "max_queue_tokens 12");
  EXPECT_EQ(Form(), "a[0,1)");
  EXPECT_EQ(Form(), "a[1,2)");
  EXPECT_EQ(Form(), "a[2,3)");
  for (Batch& batch : batches_) Finish(batch);
  EXPECT_TRUE(a.result().status.ok());
}

TEST_F(BatcherQueueTest, LimitsCountWhatWaitsNotWhatRuns) {
  options_.max_queue_requests = 1;
  options_.max_queue_tokens = 8;
  for (const char* name : {"a", "b", "c"}) {
    Submit(name, {8});
    EXPECT_EQ(Form(), name);
  }
}

TEST_F(BatcherQueueTest, FullQueueMakesRoomByDroppingDeadEntries) {
  options_.max_queue_requests = 3;
  TestRequest& a = Submit("a", {1}, clock_.Now() + absl::Milliseconds(1));
  Submit("b", {1});
  TestRequest& c = Submit("c", {1});
  clock_.Advance(absl::Milliseconds(1));
  c->cancelled = true;
  Submit("d", {1});
  EXPECT_EQ(a.runs() + c.runs(), 0) << "done never runs inside Submit";
  EXPECT_EQ(Form(), "b d");
  EXPECT_EQ(a.result().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(c.result().status.code(), absl::StatusCode::kCancelled);
}

TEST_F(BatcherQueueTest, BlockedSlotFinishesWhatSubmitDropped) {
  options_.max_queue_requests = 1;
  options_.max_delay = absl::Milliseconds(2);  // keeps the slot waiting while "a" waits
  TestRequest& a = Submit("a", {1}, clock_.Now() + absl::Milliseconds(10));
  std::thread slot([&] {
    Batch batch;
    while (batcher().Next(&batch)) Finish(batch);
  });
  a->cancelled = true;
  TestRequest& b = Submit("b", {1});
  EXPECT_EQ(a.Wait().status.code(), absl::StatusCode::kCancelled);
  batcher().Close();
  slot.join();
  EXPECT_TRUE(b.result().status.ok());
}

TEST_F(BatcherQueueTest, CloseRefusesNewAndDrainsEverythingAccepted) {
  TestRequest& a = Submit("a", {8, 8});
  TestRequest& b = Submit("b", {8});
  batcher().Close();
  TestRequest& late = Make("late", {1});
  EXPECT_EQ(batcher().Submit(late.request()).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(observer_.rejected(Rejection::kDraining), 1);
  Batch batch;
  int batches = 0;
  while (batcher().Next(&batch)) {
    ++batches;
    Finish(batch);
  }
  EXPECT_EQ(batches, 3);
  EXPECT_TRUE(a.result().status.ok());
  EXPECT_TRUE(b.result().status.ok());
  EXPECT_EQ(late.runs(), 0);
}

TEST_F(BatcherQueueTest, CloseStillDropsTheDead) {
  TestRequest& a = Submit("a", {1});
  a->cancelled = true;
  batcher().Close();
  Batch batch;
  EXPECT_FALSE(batcher().Next(&batch));
  EXPECT_EQ(a.runs(), 1);
}

TEST_F(BatcherQueueTest, AbortFailsWhatWaitsAndLetsFinishWhatRuns) {
  TestRequest& a = Submit("a", {8});
  TestRequest& b = Submit("b", {8, 8});
  TestRequest& c = Submit("c", {8});
  ASSERT_EQ(Form(), "a");
  ASSERT_EQ(Form(), "c");
  ASSERT_EQ(Form(), "b[0,1)");
  TestRequest& d = Submit("d", {8});
  batcher().Abort(absl::UnavailableError("device lost"));
  EXPECT_EQ(d.result().status, absl::UnavailableError("device lost"));
  EXPECT_EQ(a.runs() + b.runs() + c.runs(), 0);
  EXPECT_EQ(batcher().Submit(Make("e", {1}).request()), absl::UnavailableError("device lost"));
  for (Batch& batch : batches_) Finish(batch);
  EXPECT_TRUE(a.result().status.ok());
  EXPECT_EQ(b.result().status, absl::UnavailableError("device lost"));
  EXPECT_TRUE(c.result().status.ok());
  Batch batch;
  EXPECT_FALSE(batcher().Next(&batch));
}

TEST_F(BatcherQueueTest, DestructionFailsWhatWaits) {
  TestRequest& a = Submit("a", {1});
  batcher_.reset();
  ASSERT_EQ(a.runs(), 1);
  EXPECT_EQ(a.result().status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(BatcherQueueTest, DelayHoldsBackABatchThatIsNotFull) {
  options_.max_delay = absl::Milliseconds(2);
  Submit("a", {3});
  clock_.Advance(absl::Milliseconds(2) - absl::Nanoseconds(1));
  Submit("b", {3});
  EXPECT_EQ(Form(), "none");
  clock_.Advance(absl::Nanoseconds(1));
  EXPECT_EQ(Form(), "a b");
  EXPECT_EQ(last().close, BatchClose::kDelay);
}

TEST_F(BatcherQueueTest, DelayEndsWhenABatchIsFull) {
  options_.max_delay = absl::Milliseconds(2);
  Submit("a", {5});
  EXPECT_EQ(Form(), "none");
  Submit("b", {5});
  EXPECT_EQ(Form(), "a b");
  EXPECT_EQ(last().close, BatchClose::kTokens);
  for (const char* name : {"c", "d", "e", "f"}) Submit(name, {1});
  EXPECT_EQ(Form(), "c d e f");
  EXPECT_EQ(last().close, BatchClose::kSequences);
}

TEST_F(BatcherQueueTest, DelayNeverCostsARequestItsDeadline) {
  options_.max_delay = absl::Milliseconds(2);
  Submit("a", {1}, clock_.Now() + absl::Milliseconds(3));
  EXPECT_EQ(Form(), "none");
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_EQ(Form(), "a");
  Submit("b", {1});
  Submit("c", {1}, clock_.Now() + absl::Milliseconds(1));
  EXPECT_EQ(Form(), "b c");
}

TEST_F(BatcherQueueTest, CloseEndsTheDelay) {
  options_.max_delay = absl::Milliseconds(2);
  Submit("a", {1});
  batcher().Close();
  EXPECT_EQ(Form(), "a");
  EXPECT_EQ(last().close, BatchClose::kEmpty);
}

TEST_F(BatcherQueueTest, ClockSetBackNeitherHoldsBackNorReportsNegativeAges) {
  options_.max_delay = absl::Milliseconds(2);
  Submit("a", {1});
  clock_.Advance(-absl::Hours(1));
  EXPECT_EQ(batcher().queue().oldest_age, absl::ZeroDuration());
  ASSERT_EQ(Form(), "a");
  Finish(last());
  EXPECT_EQ(requests_[0]->result().queue, absl::ZeroDuration());
}

TEST_F(BatcherQueueTest, BlockedNextWakesForASubmission) {
  std::latch asking(1);
  batcher();
  std::thread slot([&] {
    Batch batch;
    asking.count_down();
    EXPECT_TRUE(batcher().Next(&batch));
    EXPECT_EQ(batch.tokens.num_tokens(), 3);
    Finish(batch);
  });
  asking.wait();
  TestRequest& a = Submit("a", {3});
  EXPECT_TRUE(a.Wait().status.ok());
  slot.join();
}

TEST_F(BatcherQueueTest, BlockedNextReturnsFalseOnClose) {
  std::vector<std::thread> slots;
  std::atomic<int> over{0};
  batcher();
  for (int i = 0; i < 2; ++i) {
    slots.emplace_back([&] {
      Batch batch;
      if (!batcher().Next(&batch)) ++over;
    });
  }
  batcher().Close();
  for (std::thread& slot : slots) slot.join();
  EXPECT_EQ(over, 2);
}

TEST_F(BatcherQueueTest, BlockedNextFormsABatchWhenItsDelayIsOver) {
  SystemClock clock;
  options_.max_delay = absl::Milliseconds(1);
  auto batcher = Batcher::Create(options_, clock, observer_);
  ASSERT_TRUE(batcher.ok());
  TestRequest& a = Make("a", {3});
  ASSERT_TRUE((*batcher)->Submit(a.request()).ok());
  Batch batch;
  ASSERT_TRUE((*batcher)->Next(&batch));
  EXPECT_EQ(batch.close, BatchClose::kDelay);
  (*batcher)->Complete(batch, absl::OkStatus(), absl::ZeroDuration(), 0);
  EXPECT_GE(a.result().queue, absl::Milliseconds(1));
}

TEST_F(BatcherQueueTest, TwoBlockedSlotsShareARequestThatFillsSeveralBatches) {
  // Each slot holds its batch until both have one: one wake-up must reach the second slot too.
  std::latch both(2);
  batcher();
  std::vector<std::thread> slots;
  for (int i = 0; i < 2; ++i) {
    slots.emplace_back([&] {
      Batch batch;
      EXPECT_TRUE(batcher().Next(&batch));
      both.arrive_and_wait();
      Finish(batch);
    });
  }
  TestRequest& a = Submit("a", {8, 8});
  EXPECT_EQ(a.Wait().batches, 2);
  for (std::thread& slot : slots) slot.join();
  EXPECT_EQ(a.runs(), 1);
}

}  // namespace
}  // namespace flashsvd
