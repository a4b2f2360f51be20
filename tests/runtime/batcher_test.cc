#include "runtime/batcher.h"

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/batcher_fixture.h"

namespace flashsvd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class BatcherTest : public BatcherFixture {};

TEST_F(BatcherTest, FormsBatchesInOrderOfArrival) {
  Submit("a", {3});
  Submit("b", {4});
  Submit("c", {2});
  EXPECT_EQ(Form(), "a b c");
  EXPECT_EQ(last().close, BatchClose::kEmpty);
  EXPECT_EQ(Form(), "none");
}

TEST_F(BatcherTest, DecidesNothingBeforeASlotAsks) {
  Submit("a", {3});
  EXPECT_EQ(Form(), "a");
  Submit("b", {3});
  Submit("c", {3});
  EXPECT_EQ(Form(), "b c");
}

TEST_F(BatcherTest, PacksTheSequencesOfAllPieces) {
  TestRequest& a = Submit("a", {2, 1});
  TestRequest& b = Submit("b", {3});
  b->input.type_ids = {0, 1, 1};
  ASSERT_EQ(Form(), "a b");
  const PackedBatch& tokens = last().tokens;
  EXPECT_THAT(tokens.ids, ElementsAre(0, 1, 2, 1000, 1001, 1002));
  EXPECT_THAT(tokens.type_ids, ElementsAre(0, 0, 0, 0, 1, 1));
  EXPECT_THAT(tokens.cu_seqlens, ElementsAre(0, 2, 3, 6));
  EXPECT_EQ(tokens.max_seqlen, 3);
  EXPECT_EQ(last().pieces[0].request, a.request().get());
  EXPECT_EQ(last().pieces[0].first_row, 0);
  EXPECT_EQ(last().pieces[1].first_row, 2);
}

TEST_F(BatcherTest, ClosesBatchAtTokenBudget) {
  Submit("a", {5});
  Submit("b", {5});
  Submit("c", {1});
  EXPECT_EQ(Form(), "a b");
  EXPECT_EQ(last().close, BatchClose::kTokens);
  EXPECT_EQ(Form(), "c");
}

TEST_F(BatcherTest, ClosesBatchAtTokenBudgetThatCannotBeFilledExactly) {
  Submit("a", {7});
  Submit("b", {7});
  EXPECT_EQ(Form(), "a");
  EXPECT_EQ(last().close, BatchClose::kTokens);
}

TEST_F(BatcherTest, ClosesBatchAtSequenceLimit) {
  for (const char* name : {"a", "b", "c", "d", "e"}) Submit(name, {1});
  EXPECT_EQ(Form(), "a b c d");
  EXPECT_EQ(last().close, BatchClose::kSequences);
  EXPECT_EQ(Form(), "e");
}

TEST_F(BatcherTest, ClosesBatchAtMemoryLimit) {
  options_.max_batch_tokens = 100;
  options_.activation_bytes = [](int, int sequences, int max_seqlen) {
    return static_cast<size_t>(sequences) * max_seqlen * 100;
  };
  options_.max_batch_bytes = 1600;
  Submit("a", {2});
  Submit("b", {2});
  Submit("c", {6});  // within the token budget, but three rows as wide as this one are not
  Submit("d", {2});
  EXPECT_EQ(Form(), "a b d");
  EXPECT_EQ(last().close, BatchClose::kMemory);
  EXPECT_EQ(last().planned_bytes, 600u);
  EXPECT_EQ(Form(), "c");
  EXPECT_EQ(last().close, BatchClose::kEmpty);
  EXPECT_EQ(last().planned_bytes, 600u);
}

TEST_F(BatcherTest, FillsBatchFromBehindAnEntryThatDoesNotFit) {
  Submit("a", {6});
  Submit("b", {8});
  Submit("c", {4});
  Submit("d", {1});
  EXPECT_EQ(Form(), "a c");
  EXPECT_EQ(Form(), "b d");
}

TEST_F(BatcherTest, DoesNotOvertakeAnAgedEntry) {
  Submit("a", {6});
  Submit("b", {8});
  clock_.Advance(absl::Milliseconds(5));
  Submit("c", {4});
  EXPECT_EQ(Form(), "a");
  EXPECT_EQ(last().close, BatchClose::kTokens);
  EXPECT_EQ(Form(), "b");
  EXPECT_EQ(Form(), "c");
}

TEST_F(BatcherTest, OvertakesUntilTheEntryIsAged) {
  Submit("a", {6});
  Submit("b", {8});
  clock_.Advance(absl::Milliseconds(5) - absl::Nanoseconds(1));
  Submit("c", {4});
  EXPECT_EQ(Form(), "a c");
}

TEST_F(BatcherTest, OvertakeAgeOfZeroMeansStrictOrder) {
  options_.max_overtake_age = absl::ZeroDuration();
  Submit("a", {6});
  Submit("b", {8});
  Submit("c", {4});
  EXPECT_EQ(Form(), "a");
}

TEST_F(BatcherTest, SplitsAnAgedEntryRatherThanPassingItOver) {
  Submit("a", {5});
  Submit("b", {3, 3, 3});
  clock_.Advance(absl::Milliseconds(5));
  Submit("c", {1});
  EXPECT_EQ(Form(), "a b[0,1)");
  EXPECT_EQ(Form(), "b[1,3) c");
}

TEST_F(BatcherTest, SplitsWhatWasPassedOverIntoTheRoomThatIsLeft) {
  Submit("a", {5});
  Submit("b", {3, 3});
  Submit("c", {2});
  EXPECT_EQ(Form(), "a c b[0,1)");
  EXPECT_EQ(Form(), "b[1,2)");
}

TEST_F(BatcherTest, SplitsARequestLargerThanABatchAndReassemblesIt) {
  TestRequest& a = Submit("a", {3, 3, 3, 3, 3, 3, 3});
  EXPECT_EQ(Form(), "a[0,3)");
  EXPECT_EQ(Form(), "a[3,6)");
  clock_.Advance(absl::Milliseconds(2));
  EXPECT_EQ(Form(), "a[6,7)");
  EXPECT_THAT(last().tokens.ids, ElementsAre(18, 19, 20));
  Finish(batches_[2], absl::OkStatus(), absl::Milliseconds(1), 10);
  Finish(batches_[0], absl::OkStatus(), absl::Milliseconds(3), 30);
  EXPECT_EQ(a.runs(), 0);
  Finish(batches_[1], absl::OkStatus(), absl::Milliseconds(4), 20);
  ASSERT_EQ(a.runs(), 1);
  EXPECT_TRUE(a.result().status.ok());
  EXPECT_EQ(a.result().batches, 3);
  EXPECT_EQ(a.result().compute, absl::Milliseconds(8));
  EXPECT_EQ(a.result().activation_bytes, 30u);
  EXPECT_EQ(a.result().queue, absl::Milliseconds(2));
}

TEST_F(BatcherTest, SplitsByMemory) {
  options_.max_seqlen = 4;
  options_.activation_bytes = [](int tokens, int, int) { return static_cast<size_t>(tokens); };
  options_.max_batch_bytes = 7;
  Submit("a", {4, 2, 4, 1});
  EXPECT_EQ(Form(), "a[0,2)");
  EXPECT_EQ(last().close, BatchClose::kMemory);
  EXPECT_EQ(Form(), "a[2,4)");
  EXPECT_EQ(last().close, BatchClose::kEmpty);
}

TEST_F(BatcherTest, CompletingABatchTwiceDoesNothing) {
  TestRequest& a = Submit("a", {1});
  ASSERT_EQ(Form(), "a");
  Finish(last());
  Finish(last());
  EXPECT_EQ(a.runs(), 1);
}

TEST_F(BatcherTest, DropsExpiredEntriesBeforeTheyCostCompute) {
  TestRequest& a = Submit("a", {2}, clock_.Now() + absl::Milliseconds(3));
  TestRequest& b = Submit("b", {2}, clock_.Now() + absl::Milliseconds(3) + absl::Nanoseconds(1));
  clock_.Advance(absl::Milliseconds(3));
  EXPECT_EQ(Form(), "b");
  ASSERT_EQ(a.runs(), 1);
  EXPECT_EQ(a.result().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(a.result().status.message()), HasSubstr("3ms"));
  EXPECT_EQ(a.result().queue, absl::Milliseconds(3));
  EXPECT_EQ(a.result().batches, 0);
  EXPECT_EQ(observer_.rejected(Rejection::kDeadline), 1);
  Finish(last());
  EXPECT_TRUE(b.result().status.ok());
}

TEST_F(BatcherTest, DropsCancelledEntriesBeforeTheyCostCompute) {
  TestRequest& a = Submit("a", {2});
  Submit("b", {2});
  a->cancelled = true;
  EXPECT_EQ(Form(), "b");
  ASSERT_EQ(a.runs(), 1);
  EXPECT_EQ(a.result().status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(observer_.abandoned(), 1);
}

TEST_F(BatcherTest, CancellingAfterTheLastSequenceIsTakenChangesNothing) {
  TestRequest& a = Submit("a", {2});
  ASSERT_EQ(Form(), "a");
  a->cancelled = true;
  Finish(last());
  EXPECT_TRUE(a.result().status.ok());
  EXPECT_EQ(observer_.abandoned(), 0);
}

TEST_F(BatcherTest, CancelledMidSplitEndsWhenItsRowsAreBack) {
  TestRequest& a = Submit("a", {8, 8, 8});
  ASSERT_EQ(Form(), "a[0,1)");
  a->cancelled = true;
  EXPECT_EQ(Form(), "none");
  EXPECT_EQ(batcher().queue().items, 0);
  EXPECT_EQ(a.runs(), 0);
  Finish(last());
  ASSERT_EQ(a.runs(), 1);
  EXPECT_EQ(a.result().status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(a.result().batches, 1);
}

TEST_F(BatcherTest, ExpiredMidSplitEndsWhenItsRowsAreBack) {
  TestRequest& a = Submit("a", {8, 8, 8}, clock_.Now() + absl::Milliseconds(1));
  ASSERT_EQ(Form(), "a[0,1)");
  ASSERT_EQ(Form(), "a[1,2)");
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_EQ(Form(), "none");
  Finish(batches_[1]);
  EXPECT_EQ(a.runs(), 0);
  Finish(batches_[0]);
  ASSERT_EQ(a.runs(), 1);
  EXPECT_EQ(a.result().status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(BatcherTest, FailedBatchFailsItsRequestsOnceAndDropsTheirRest) {
  TestRequest& a = Submit("a", {8, 8, 8});
  ASSERT_EQ(Form(), "a[0,1)");
  ASSERT_EQ(Form(), "a[1,2)");
  Finish(batches_[0], absl::InternalError("kernel broke"));
  EXPECT_EQ(a.runs(), 0) << "a batch of it still runs and writes rows";
  EXPECT_EQ(batcher().queue().items, 0);
  EXPECT_EQ(Form(), "none");
  Finish(batches_[1], absl::InternalError("another error"));
  ASSERT_EQ(a.runs(), 1);
  EXPECT_EQ(a.result().status, absl::InternalError("kernel broke"));
}

TEST_F(BatcherTest, FailedBatchLeavesOtherRequestsAlone) {
  TestRequest& a = Submit("a", {8});
  TestRequest& b = Submit("b", {8});
  ASSERT_EQ(Form(), "a");
  ASSERT_EQ(Form(), "b");
  Finish(batches_[0], absl::InternalError("kernel broke"));
  Finish(batches_[1]);
  EXPECT_FALSE(a.result().status.ok());
  EXPECT_TRUE(b.result().status.ok());
}

TEST_F(BatcherTest, DoneMaySubmitAgain) {
  TestRequest& a = Make("a", {1});
  TestRequest& b = Make("b", {1});
  a->done = [&](const RequestResult&) { EXPECT_TRUE(batcher().Submit(b.request()).ok()); };
  ASSERT_TRUE(batcher().Submit(a.request()).ok());
  ASSERT_EQ(Form(), "a");
  Finish(last());
  EXPECT_EQ(Form(), "b");
}

TEST_F(BatcherTest, ReportsTheQueueAsItChanges) {
  TestRequest& a = Submit("a", {8, 8});
  clock_.Advance(absl::Milliseconds(2));
  Submit("b", {8});
  // ids and types of 24 tokens, 3 + 2 offsets, 3 output rows of 4 bytes.
  EXPECT_EQ(observer_.queue().items, 3);
  EXPECT_EQ(observer_.queue().tokens, 24);
  EXPECT_EQ(observer_.queue().bytes, 24 * 8 + 5 * 4 + 3 * 4);
  EXPECT_EQ(observer_.queue().oldest_age, absl::Milliseconds(2));
  clock_.Advance(absl::Milliseconds(1));
  ASSERT_EQ(Form(), "b");
  EXPECT_EQ(observer_.queue().items, 2);
  ASSERT_EQ(Form(), "a[0,1)");
  EXPECT_EQ(observer_.queue().items, 1);
  EXPECT_EQ(observer_.queue().tokens, 8);
  EXPECT_EQ(observer_.queue().bytes, 16 * 8 + 3 * 4 + 2 * 4) << "held until its end is taken";
  EXPECT_EQ(observer_.queue().oldest_age, absl::Milliseconds(3));
  EXPECT_THAT(observer_.queued(), ElementsAre(absl::Milliseconds(1)));
  Finish(batches_[1], absl::UnavailableError("gone"));
  EXPECT_EQ(observer_.queue().items, 0);
  EXPECT_EQ(observer_.queue().tokens, 0);
  EXPECT_EQ(observer_.queue().bytes, 0);
  EXPECT_EQ(a.runs(), 1);
}

TEST_F(BatcherTest, RefusesMalformedRequests) {
  struct Case {
    std::function<void(Request&)> spoil;
    const char* message;
  };
  const Case cases[] = {
      {[](Request& r) { r.input.Clear(); }, "no sequence"},
      {[](Request& r) { r.input.cu_seqlens.clear(); }, "no sequence"},
      {[](Request& r) {
         r.input.cu_seqlens = {0, 2, 2, 5};
       },
       "sequence 1 has 0 tokens"},
      {[](Request& r) {
         r.input.cu_seqlens = {0, 4, 3, 5};
       },
       "sequence 1 has -1 tokens"},
      {[](Request& r) {
         r.input.cu_seqlens = {1, 2, 3, 5};
       },
       "offsets from 1 to 5"},
      {[](Request& r) {
         r.input.cu_seqlens = {0, 2, 3, 4};
       },
       "offsets from 0 to 4"},
      {[](Request& r) { r.input.type_ids.pop_back(); }, "5 ids and 4 type ids"},
      {[](Request& r) { r.input.Append(std::vector<int>(9), std::vector<int>(9)); },
       "sequence 3 has 9 tokens, not within [1, max_seqlen 8]"},
      {[](Request& r) { r.done = nullptr; }, "no done"},
  };
  for (const Case& c : cases) {
    TestRequest& request = Make("a", {2, 1, 2});
    c.spoil(*request.request());
    const absl::Status status = batcher().Submit(request.request());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
    EXPECT_EQ(request.runs(), 0);
  }
  EXPECT_EQ(observer_.rejected(Rejection::kInvalid), static_cast<int>(std::size(cases)));
  EXPECT_EQ(Form(), "none");
}

TEST_F(BatcherTest, CreateRefusesInvalidOptionsByNameAndValue) {
  struct Case {
    std::function<void(BatcherOptions&)> spoil;
    const char* message;
  };
  const Case cases[] = {
      {[](BatcherOptions& o) { o.max_batch_tokens = 0; }, "max_batch_tokens: 0 "},
      {[](BatcherOptions& o) { o.max_batch_tokens = 1 << 25; }, "max_batch_tokens: 33554432 "},
      {[](BatcherOptions& o) { o.max_batch_sequences = -1; }, "max_batch_sequences: -1 "},
      {[](BatcherOptions& o) { o.max_seqlen = 0; }, "max_seqlen: 0 "},
      {[](BatcherOptions& o) { o.max_seqlen = 11; }, "max_seqlen: 11 is not within [1, 10]"},
      {[](BatcherOptions& o) { o.max_queue_requests = 0; }, "max_queue_requests: 0 "},
      {[](BatcherOptions& o) { o.max_queue_tokens = 0; }, "max_queue_tokens: 0 "},
      {[](BatcherOptions& o) { o.max_queue_bytes = -5; }, "max_queue_bytes: -5 "},
      {[](BatcherOptions& o) { o.max_overtake_age = absl::Milliseconds(-1); },
       "max_overtake_age: -1ms "},
      {[](BatcherOptions& o) { o.max_delay = absl::Milliseconds(-1); }, "max_delay: -1ms "},
      {[](BatcherOptions& o) { o.max_delay = absl::Microseconds(2001); },
       "max_delay: 2.001ms is not within [0, 2ms]"},
      {[](BatcherOptions& o) { o.max_batch_bytes = 7; }, "max_batch_bytes: 7 needs"},
      {[](BatcherOptions& o) {
         o.activation_bytes = [](int tokens, int, int) { return size_t{10} * tokens; };
         o.max_batch_bytes = 79;
       },
       "max_batch_bytes: 79 does not hold one sequence of max_seqlen 8, which takes 80 bytes"},
  };
  for (const Case& c : cases) {
    BatcherOptions options = options_;
    c.spoil(options);
    const auto batcher = Batcher::Create(options, clock_, observer_);
    EXPECT_EQ(batcher.status().code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(std::string(batcher.status().message()), HasSubstr(c.message));
  }
}

}  // namespace
}  // namespace flashsvd
