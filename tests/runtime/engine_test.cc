#include "runtime/engine.h"

#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/counting_observer.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/fake_runner.h"
#include "tests/testing/test_request.h"

namespace flashsvd {
namespace {

using testing::HasSubstr;

class EngineTest : public testing::Test {
 protected:
  EngineTest() {
    options_.batcher.max_batch_tokens = 10;
    options_.batcher.max_batch_sequences = 4;
    options_.batcher.max_seqlen = 8;
  }
  ~EngineTest() override {
    for (FakeRunner* runner : runners_) runner->Release();
  }

  void Start(int num_slots) {
    options_.num_slots = num_slots;
    std::vector<std::unique_ptr<BatchRunner>> runners;
    for (int i = 0; i < num_slots; ++i) {
      auto runner = std::make_unique<FakeRunner>();
      runners_.push_back(runner.get());
      runners.push_back(std::move(runner));
    }
    auto engine = Engine::Create(std::move(runners), {FakeRunner::kHidden, 10000, 2}, options_,
                                 clock_, observer_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  TestRequest& Make(const std::vector<int>& lengths) {
    const int n = static_cast<int>(requests_.size());
    requests_.push_back(std::make_unique<TestRequest>(fmt::format("r{}", n), lengths, 100 * n,
                                                      FakeRunner::kHidden));
    return *requests_.back();
  }
  TestRequest& Submit(const std::vector<int>& lengths) {
    TestRequest& request = Make(lengths);
    const absl::Status status = engine_->Submit(request.request());
    EXPECT_TRUE(status.ok()) << status;
    return request;
  }
  // Every row is the one of its own sequence.
  void ExpectRows(const TestRequest& request) {
    const PackedBatch& input = request.request()->input;
    for (int s = 0; s < input.num_sequences(); ++s) {
      float sum = 0;
      for (int t = input.cu_seqlens[s]; t < input.cu_seqlens[s + 1]; ++t) {
        sum += static_cast<float>(input.ids[t]);
      }
      const float* row = &request.rows()[s * FakeRunner::kHidden];
      EXPECT_EQ(row[0], input.ids[input.cu_seqlens[s]]) << request.name() << " row " << s;
      EXPECT_EQ(row[1], sum) << request.name() << " row " << s;
      EXPECT_EQ(row[2], input.cu_seqlens[s + 1] - input.cu_seqlens[s])
          << request.name() << " row " << s;
    }
  }

  EngineOptions options_;
  FakeClock clock_;
  CountingObserver observer_;
  std::vector<std::unique_ptr<TestRequest>> requests_;
  std::vector<FakeRunner*> runners_;
  std::unique_ptr<Engine> engine_;  // destroyed first
};

TEST_F(EngineTest, WritesEveryRowToItsRequest) {
  Start(1);
  TestRequest& a = Submit({3, 1, 2});
  EXPECT_TRUE(a.Wait().status.ok());
  ExpectRows(a);
}

TEST_F(EngineTest, HonoursTheRowStrideAndAnyAlignment) {
  Start(1);
  TestRequest& a = Make({2, 3});
  std::vector<std::byte> bytes(1 + 2 * 20, std::byte{0xAB});
  a->output = bytes.data() + 1;
  a->row_stride_bytes = 20;
  ASSERT_TRUE(engine_->Submit(a.request()).ok());
  a.Wait();
  float row[FakeRunner::kHidden];
  std::memcpy(row, bytes.data() + 1 + 20, sizeof(row));
  EXPECT_EQ(row[0], 2.0f);
  EXPECT_EQ(row[2], 3.0f);
  for (const size_t gap : {size_t{0}, size_t{13}, size_t{20}, size_t{33}, size_t{40}}) {
    EXPECT_EQ(bytes[gap], std::byte{0xAB}) << "byte " << gap << " lies between the rows";
  }
}

TEST_F(EngineTest, ReassemblesARequestComputedBySeveralSlots) {
  Start(2);
  for (FakeRunner* runner : runners_) runner->Hold();
  TestRequest& a = Submit({5, 5, 5, 5, 5});
  for (FakeRunner* runner : runners_) runner->WaitUntilBegun(1);
  EXPECT_EQ(engine_->queue().items, 1);
  EXPECT_EQ(a.runs(), 0);
  for (FakeRunner* runner : runners_) runner->Release();
  EXPECT_EQ(a.Wait().batches, 3);
  ExpectRows(a);
}

TEST_F(EngineTest, BatchesWhatArrivesWhileTheSlotIsBusy) {
  Start(1);
  runners_[0]->Hold();
  Submit({1});
  runners_[0]->WaitUntilBegun(1);
  Submit({2});
  Submit({3});
  runners_[0]->Release();
  engine_->Drain();
  const std::vector<BatchReport> batches = observer_.batches();
  ASSERT_EQ(batches.size(), 2u);
  EXPECT_EQ(batches[1].num_sequences, 2);
  for (const auto& request : requests_) ExpectRows(*request);
}

TEST_F(EngineTest, ReportsEveryBatch) {
  options_.batcher.activation_bytes = [](int tokens, int sequences, int) {
    return size_t{100} * tokens + sequences;
  };
  Start(1);
  runners_[0]->Hold();
  TestRequest& a = Submit({4, 3});
  runners_[0]->WaitUntilBegun(1);
  clock_.Advance(absl::Milliseconds(7));
  runners_[0]->Release();
  const RequestResult& result = a.Wait();
  EXPECT_EQ(result.compute, absl::Milliseconds(7));
  EXPECT_EQ(result.activation_bytes, 70u);
  const std::vector<BatchReport> batches = observer_.batches();
  ASSERT_EQ(batches.size(), 1u) << "a batch is reported before its requests are answered";
  EXPECT_EQ(batches[0].num_sequences, 2);
  EXPECT_EQ(batches[0].num_tokens, 7);
  EXPECT_EQ(batches[0].close, BatchClose::kEmpty);
  EXPECT_EQ(batches[0].activation_bytes, 70u);
  EXPECT_EQ(batches[0].planned_activation_bytes, 702u);
  EXPECT_EQ(batches[0].compute, absl::Milliseconds(7));
}

TEST_F(EngineTest, HighWaterMarkIsTheSumOfTheSlotsLargestBatches) {
  Start(2);
  for (FakeRunner* runner : runners_) runner->Hold();
  Submit({8});
  Submit({8});
  for (FakeRunner* runner : runners_) runner->WaitUntilBegun(1);
  for (FakeRunner* runner : runners_) runner->Release();
  for (const auto& request : requests_) request->Wait();
  EXPECT_EQ(engine_->activation_high_water_bytes(), 160u);
  Submit({1}).Wait();
  EXPECT_EQ(engine_->activation_high_water_bytes(), 160u);
}

TEST_F(EngineTest, RefusesInvalidRequestsByName) {
  Start(1);
  struct Case {
    std::function<void(Request&)> spoil;
    const char* message;
  };
  const Case cases[] = {
      {[](Request& r) { r.input.Clear(); }, "no sequence"},
      {[](Request& r) {
         r.input.cu_seqlens = {0, 2, 2, 6};
       },
       "sequence 1 has 0 tokens"},
      {[](Request& r) { r.input.Append(std::vector<int>(9), std::vector<int>(9)); },
       "sequence 3 has 9 tokens"},
      {[](Request& r) { r.input.ids[3] = 10000; },
       "sequence 1, position 1: id 10000 is not within [0, 10000)"},
      {[](Request& r) { r.input.ids[5] = -1; }, "sequence 2, position 1: id -1 "},
      {[](Request& r) { r.input.type_ids[0] = 2; },
       "sequence 0, position 0: type id 2 is not within [0, 2)"},
      {[](Request& r) { r.output = nullptr; }, "output null"},
      {[](Request& r) { r.row_stride_bytes = 11; }, "rows 11 bytes apart"},
      {[](Request& r) { r.done = nullptr; }, "no done"},
  };
  for (const Case& c : cases) {
    TestRequest& request = Make({2, 2, 2});
    c.spoil(*request.request());
    const absl::Status status = engine_->Submit(request.request());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
  EXPECT_EQ(observer_.rejected(Rejection::kInvalid), static_cast<int>(std::size(cases)));
  engine_->Drain();
  EXPECT_EQ(runners_[0]->begun(), 0);
}

TEST_F(EngineTest, QueueFullIsRefusedAtOnceWhileTheSlotIsBusy) {
  options_.batcher.max_queue_requests = 1;
  Start(1);
  runners_[0]->Hold();
  Submit({1});
  runners_[0]->WaitUntilBegun(1);
  Submit({1});
  EXPECT_EQ(engine_->Submit(Make({1}).request()).code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(EngineTest, DrainFinishesEveryAcceptedRequestAndRefusesNewOnes) {
  Start(2);
  for (int i = 0; i < 20; ++i) Submit({4, 4, 4});
  engine_->Drain();
  for (const auto& request : requests_) {
    ASSERT_EQ(request->runs(), 1);
    EXPECT_TRUE(request->result().status.ok());
    ExpectRows(*request);
  }
  EXPECT_EQ(engine_->Submit(Make({1}).request()).code(), absl::StatusCode::kUnavailable);
  engine_->Drain();
}

TEST_F(EngineTest, ConcurrentDrainsBothReturnDrained) {
  Start(1);
  runners_[0]->Hold();
  TestRequest& a = Submit({1});
  runners_[0]->WaitUntilBegun(1);
  std::thread other([&] {
    engine_->Drain();
    EXPECT_EQ(a.runs(), 1);
  });
  runners_[0]->Release();
  engine_->Drain();
  EXPECT_EQ(a.runs(), 1);
  other.join();
}

TEST_F(EngineTest, DestructionDrains) {
  Start(1);
  TestRequest& a = Submit({8, 8, 8});
  engine_.reset();
  runners_.clear();
  EXPECT_EQ(a.runs(), 1);
  EXPECT_TRUE(a.result().status.ok());
}

TEST_F(EngineTest, DeviceErrorIsStickyAndFailsWhatWaits) {
  for (const absl::Status& error :
       {absl::InternalError("launch failed"), absl::UnknownError("launch failed")}) {
    runners_.clear();
    Start(2);
    for (FakeRunner* runner : runners_) runner->Hold();
    TestRequest& a = Submit({8});
    TestRequest& b = Submit({8});
    for (FakeRunner* runner : runners_) runner->WaitUntilBegun(1);
    TestRequest& c = Submit({8});
    EXPECT_TRUE(engine_->health().ok());

    for (FakeRunner* runner : runners_) runner->SetStatus(error);
    for (FakeRunner* runner : runners_) runner->Release();
    EXPECT_EQ(a.Wait().status, error);
    EXPECT_EQ(b.Wait().status, error);
    EXPECT_EQ(c.Wait().status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(c.result().status.message()), HasSubstr("launch failed"));
    EXPECT_EQ(engine_->health(), error);

    for (FakeRunner* runner : runners_) runner->SetStatus(absl::OkStatus());
    EXPECT_EQ(engine_->Submit(Make({1}).request()).code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(engine_->health(), error);
    engine_->Drain();
    EXPECT_TRUE(observer_.batches().empty()) << "a failed batch is not reported as computed";
  }
}

TEST_F(EngineTest, ErrorOfABatchAloneLeavesTheEngineHealthy) {
  Start(1);
  runners_[0]->SetStatus(absl::ResourceExhaustedError("workspace"));
  EXPECT_EQ(Submit({1}).Wait().status, absl::ResourceExhaustedError("workspace"));
  runners_[0]->SetStatus(absl::OkStatus());
  EXPECT_TRUE(engine_->health().ok());
  EXPECT_TRUE(Submit({1}).Wait().status.ok());
}

TEST_F(EngineTest, CancelledMidSplitAnswersOnceItsRowsAreBack) {
  Start(1);
  runners_[0]->Hold();
  TestRequest& a = Submit({8, 8, 8});
  runners_[0]->WaitUntilBegun(1);
  a->cancelled = true;
  EXPECT_EQ(a.runs(), 0);
  runners_[0]->Release();
  EXPECT_EQ(a.Wait().status.code(), absl::StatusCode::kCancelled);
  engine_->Drain();
  EXPECT_EQ(runners_[0]->begun(), 1);
}

TEST_F(EngineTest, CreateRefusesSlotsThatDoNotMatch) {
  options_.num_slots = 1;
  const auto engine = Engine::Create({}, {FakeRunner::kHidden, 10, 2}, options_, clock_, observer_);
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(engine.status().message()), HasSubstr("num_slots: 1, with 0 runners"));
}

TEST_F(EngineTest, CreateRefusesInvalidBatcherOptions) {
  options_.batcher.max_seqlen = 11;
  std::vector<std::unique_ptr<BatchRunner>> runners;
  runners.push_back(std::make_unique<FakeRunner>());
  const auto engine =
      Engine::Create(std::move(runners), {FakeRunner::kHidden, 10, 2}, options_, clock_, observer_);
  EXPECT_THAT(std::string(engine.status().message()), HasSubstr("max_seqlen: 11"));
}

TEST(ObserverTest, NamesAreTheMetricLabels) {
  EXPECT_EQ(BatchCloseName(BatchClose::kTokens), "tokens");
  EXPECT_EQ(BatchCloseName(BatchClose::kSequences), "sequences");
  EXPECT_EQ(BatchCloseName(BatchClose::kMemory), "memory");
  EXPECT_EQ(BatchCloseName(BatchClose::kEmpty), "empty");
  EXPECT_EQ(BatchCloseName(BatchClose::kDelay), "delay");
  EXPECT_EQ(RejectionName(Rejection::kItems), "items");
  EXPECT_EQ(RejectionName(Rejection::kTokens), "tokens");
  EXPECT_EQ(RejectionName(Rejection::kBytes), "bytes");
  EXPECT_EQ(RejectionName(Rejection::kMemory), "memory");
  EXPECT_EQ(RejectionName(Rejection::kDeadline), "deadline");
  EXPECT_EQ(RejectionName(Rejection::kDraining), "draining");
  EXPECT_EQ(RejectionName(Rejection::kInvalid), "invalid");
}

}  // namespace
}  // namespace flashsvd
