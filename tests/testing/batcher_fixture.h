#ifndef FLASHSVD_TESTS_TESTING_BATCHER_FIXTURE_H_
#define FLASHSVD_TESTS_TESTING_BATCHER_FIXTURE_H_

#include <memory>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/batcher.h"
#include "tests/testing/counting_observer.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/test_request.h"

namespace flashsvd {

// A batcher of small limits, driven by hand: batches of 10 tokens, 4 sequences of at most 8.
class BatcherFixture : public testing::Test {
 protected:
  BatcherFixture() {
    options_.max_batch_tokens = 10;
    options_.max_batch_sequences = 4;
    options_.max_seqlen = 8;
  }
  ~BatcherFixture() override {
    for (Batch& batch : batches_) Finish(batch);
  }

  // Made by the first call, with options_ as they are then.
  Batcher& batcher() {
    if (batcher_ == nullptr) {
      auto batcher = Batcher::Create(options_, clock_, observer_);
      EXPECT_TRUE(batcher.ok()) << batcher.status();
      batcher_ = *std::move(batcher);
      batches_.reserve(100);  // a batch must not move: tests hold references
    }
    return *batcher_;
  }

  // A request that has not been submitted.
  TestRequest& Make(const std::string& name, const std::vector<int>& lengths) {
    requests_.push_back(
        std::make_unique<TestRequest>(name, lengths, 1000 * static_cast<int>(requests_.size())));
    return *requests_.back();
  }
  TestRequest& Submit(const std::string& name, const std::vector<int>& lengths,
                      absl::Time deadline = absl::InfiniteFuture()) {
    TestRequest& request = Make(name, lengths);
    request->deadline = deadline;
    const absl::Status status = batcher().Submit(request.request());
    EXPECT_TRUE(status.ok()) << name << ": " << status;
    return request;
  }

  // Forms a batch and says what is in it: "a b[1,3)", or "none".
  std::string Form() {
    batches_.emplace_back();
    if (batcher().TryNext(&batches_.back())) return Describe(batches_.back());
    batches_.pop_back();
    return "none";
  }
  std::string Describe(const Batch& batch) const {
    std::string text;
    for (const BatchPiece& piece : batch.pieces) {
      for (const auto& request : requests_) {
        if (request->request().get() != piece.request) continue;
        if (!text.empty()) text += " ";
        text += request->name();
        if (piece.num_sequences == piece.request->input.num_sequences()) continue;
        text += fmt::format("[{},{})", piece.first_sequence,
                            piece.first_sequence + piece.num_sequences);
      }
    }
    return text;
  }
  Batch& last() { return batches_.back(); }
  void Finish(Batch& batch, const absl::Status& status = absl::OkStatus(),
              absl::Duration compute = absl::ZeroDuration(), size_t bytes = 0) {
    batcher().Complete(batch, status, compute, bytes);
  }

  BatcherOptions options_;
  FakeClock clock_;
  CountingObserver observer_;
  std::vector<std::unique_ptr<TestRequest>> requests_;
  std::vector<Batch> batches_;
  std::unique_ptr<Batcher> batcher_;  // destroyed first
};

}  // namespace flashsvd

#endif  // FLASHSVD_TESTS_TESTING_BATCHER_FIXTURE_H_
