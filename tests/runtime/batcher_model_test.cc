// Random traffic against the promises of batcher.h: what must hold whatever happens, checked after
// every step.

#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/batcher.h"
#include "tests/testing/fake_clock.h"

namespace flashsvd {
namespace {

// A request as seen from outside the batcher.
struct Tracked {
  std::shared_ptr<Request> request = std::make_shared<Request>();
  absl::Time submitted;
  int taken = 0;      // sequences that batches have taken, in order
  int in_flight = 0;  // batches of it that have not been completed
  absl::Status failed;
  int runs = 0;
  RequestResult result;

  int size() const { return request->input.num_sequences(); }
  bool dead(absl::Time now) const { return request->cancelled || now >= request->deadline; }
  bool waits() const { return runs == 0 && failed.ok() && taken < size(); }
};

class Simulation {
 public:
  explicit Simulation(int seed) : random_(seed) {
    options_.max_seqlen = Draw(1, 12);
    options_.max_batch_tokens = options_.max_seqlen + Draw(0, 40);
    options_.max_batch_sequences = Draw(1, 10);
    options_.max_queue_requests = Draw(1, 30);
    options_.max_queue_tokens = Draw(10, 300);
    options_.max_queue_bytes = Draw(200, 4000);
    options_.max_overtake_age = absl::Milliseconds(Draw(0, 8));
    if (Draw(0, 1) == 0) options_.max_delay = absl::Microseconds(Draw(0, 2000));
    options_.activation_bytes = [](int tokens, int sequences, int max_seqlen) {
      return static_cast<size_t>(3 * tokens + 2 * sequences * max_seqlen);
    };
    if (Draw(0, 1) == 0) {
      options_.max_batch_bytes =
          options_.activation_bytes(options_.max_seqlen, 1, options_.max_seqlen) + Draw(0, 60);
    }
    auto batcher = Batcher::Create(options_, clock_, observer_);
    EXPECT_TRUE(batcher.ok()) << batcher.status();
    batcher_ = *std::move(batcher);
  }

  void Run(int steps) {
    for (int i = 0; i < steps && !testing::Test::HasFailure(); ++i) Step();
    batcher_->Close();
    while (Form() || !outstanding_.empty()) {
      if (!outstanding_.empty()) CompleteOne();
      if (testing::Test::HasFailure()) return;
    }
    for (const auto& tracked : requests_) {
      EXPECT_EQ(tracked->runs, 1) << "an accepted request was lost or answered twice";
    }
    const QueueReport report = batcher_->queue();
    EXPECT_EQ(report.items, 0);
    EXPECT_EQ(report.tokens, 0);
    EXPECT_EQ(report.bytes, 0);
    Batch batch;
    EXPECT_FALSE(batcher_->Next(&batch));
  }

  size_t accepted() const { return requests_.size(); }
  int succeeded() const { return succeeded_; }
  int refused() const { return refused_; }

 private:
  struct Outstanding {
    Batch batch;
    std::vector<Tracked*> parts;
  };

  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  void Step() {
    const int dice = Draw(0, 99);
    if (dice < 45) {
      Submit();
    } else if (dice < 65) {
      if (outstanding_.size() < 4) Form();
    } else if (dice < 82) {
      if (!outstanding_.empty()) CompleteOne();
    } else if (dice < 94) {
      clock_.Advance(absl::Microseconds(Draw(0, 3000)));
    } else if (!requests_.empty()) {
      // Mostly a recent one, which may still wait.
      const int last = static_cast<int>(requests_.size()) - 1;
      requests_[Draw(std::max(0, last - 10), last)]->request->cancelled = true;
    }
  }

  void Submit() {
    auto tracked = std::make_unique<Tracked>();
    Request& request = *tracked->request;
    const int sequences = Draw(0, 9) == 0 ? Draw(1, 40) : Draw(1, 3);
    for (int s = 0; s < sequences; ++s) {
      const std::vector<int> ids(Draw(1, options_.max_seqlen), s);
      request.input.Append(ids, ids);
    }
    if (Draw(0, 3) == 0) request.deadline = clock_.Now() + absl::Microseconds(Draw(0, 10000));
    request.done = [this, t = tracked.get()](const RequestResult& result) {
      EXPECT_FALSE(submitting_) << "done ran inside Submit";
      EXPECT_EQ(t->in_flight, 0) << "done ran while rows were still being written";
      t->result = result;
      ++t->runs;
      CheckResult(*t);
    };
    tracked->submitted = clock_.Now();
    const QueueReport before = batcher_->queue();
    submitting_ = true;
    const absl::Status status = batcher_->Submit(tracked->request);
    submitting_ = false;
    const QueueReport after = batcher_->queue();
    const int64_t tokens = request.input.num_tokens();
    const int64_t bytes = 8 * tokens + 4 * (sequences + 1);
    if (status.ok()) {
      if (after.items > sequences) {
        EXPECT_LE(after.tokens, options_.max_queue_tokens);
        EXPECT_LE(after.bytes, options_.max_queue_bytes);
      }
      requests_.push_back(std::move(tracked));
      return;
    }
    ++refused_;
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_GT(after.items, 0) << "an empty queue accepts anything";
    const auto waiting =
        std::count_if(requests_.begin(), requests_.end(), [](const auto& t) { return t->waits(); });
    EXPECT_TRUE(waiting >= options_.max_queue_requests ||
                before.tokens + tokens > options_.max_queue_tokens ||
                before.bytes + bytes > options_.max_queue_bytes)
        << "refused without need: " << status;
  }

  bool Form() {
    auto next = std::make_unique<Outstanding>();
    const absl::Time now = clock_.Now();
    std::vector<bool> was_dead;
    for (const auto& tracked : requests_) was_dead.push_back(tracked->dead(now));
    if (!batcher_->TryNext(&next->batch)) return false;
    CheckLimits(next->batch);
    int row = 0;
    std::vector<bool> in_batch(requests_.size(), false);
    for (const BatchPiece& piece : next->batch.pieces) {
      const size_t i =
          std::find_if(requests_.begin(), requests_.end(),
                       [&](const auto& t) { return t->request.get() == piece.request; }) -
          requests_.begin();
      if (i == requests_.size()) {
        ADD_FAILURE() << "a piece of no request";
        return false;
      }
      Tracked& t = *requests_[i];
      EXPECT_FALSE(was_dead[i]) << "a dead entry cost compute";
      EXPECT_FALSE(in_batch[i]);
      in_batch[i] = true;
      EXPECT_EQ(t.runs, 0);
      EXPECT_TRUE(t.failed.ok()) << "the rest of a failed request was computed";
      EXPECT_EQ(piece.first_row, row) << "rows of a batch are distinct and without gaps";
      EXPECT_EQ(piece.first_sequence, t.taken) << "each sequence once, in order";
      EXPECT_GT(piece.num_sequences, 0);
      CheckRows(next->batch.tokens, piece);
      row += piece.num_sequences;
      t.taken += piece.num_sequences;
      ++t.in_flight;
      next->parts.push_back(&t);
    }
    EXPECT_EQ(row, next->batch.tokens.num_sequences());
    CheckOrder(next->batch, in_batch, was_dead, now);
    outstanding_.push_back(std::move(next));
    return true;
  }

  void CheckLimits(const Batch& batch) {
    const PackedBatch& tokens = batch.tokens;
    EXPECT_GT(tokens.num_sequences(), 0);
    EXPECT_LE(tokens.num_tokens(), options_.max_batch_tokens);
    EXPECT_LE(tokens.num_sequences(), options_.max_batch_sequences);
    EXPECT_EQ(
        batch.planned_bytes,
        options_.activation_bytes(tokens.num_tokens(), tokens.num_sequences(), tokens.max_seqlen));
    if (options_.max_batch_bytes > 0) {
      EXPECT_LE(batch.planned_bytes, options_.max_batch_bytes);
    }
  }

  void CheckRows(const PackedBatch& tokens, const BatchPiece& piece) {
    const PackedBatch& input = piece.request->input;
    for (int i = 0; i < piece.num_sequences; ++i) {
      const int s = piece.first_sequence + i;
      const int row = piece.first_row + i;
      EXPECT_EQ(tokens.cu_seqlens[row + 1] - tokens.cu_seqlens[row],
                input.cu_seqlens[s + 1] - input.cu_seqlens[s]);
      EXPECT_EQ(tokens.ids[tokens.cu_seqlens[row]], s);
    }
  }

  void CheckOrder(const Batch& batch, const std::vector<bool>& in_batch,
                  const std::vector<bool>& was_dead, absl::Time now) {
    bool barrier = false;
    bool oldest = true;
    for (size_t i = 0; i < requests_.size(); ++i) {
      const Tracked& t = *requests_[i];
      if (barrier) {
        EXPECT_FALSE(in_batch[i]) << "an aged entry was passed over";
      }
      if (was_dead[i]) continue;
      const bool aged = now - t.submitted >= options_.max_overtake_age;
      if (oldest && aged && (t.waits() || in_batch[i])) {
        EXPECT_TRUE(in_batch[i]) << "the oldest entry starves";
      }
      if (t.waits() || in_batch[i]) oldest = false;
      if (!t.waits()) continue;
      if (!barrier) {
        EXPECT_FALSE(Fits(batch.tokens, t)) << "room was left that could have been used";
      }
      if (aged) barrier = true;
    }
    if (oldest) ADD_FAILURE() << "a batch of nothing that waited";
  }

  // Whether the next sequence of `t` fits too.
  bool Fits(const PackedBatch& tokens, const Tracked& t) const {
    const std::vector<int32_t>& offsets = t.request->input.cu_seqlens;
    const int length = offsets[t.taken + 1] - offsets[t.taken];
    if (tokens.num_sequences() + 1 > options_.max_batch_sequences) return false;
    if (tokens.num_tokens() + length > options_.max_batch_tokens) return false;
    return options_.max_batch_bytes == 0 ||
           options_.activation_bytes(tokens.num_tokens() + length, tokens.num_sequences() + 1,
                                     std::max(tokens.max_seqlen, length)) <=
               options_.max_batch_bytes;
  }

  void CompleteOne() {
    const size_t i = Draw(0, static_cast<int>(outstanding_.size()) - 1);
    const std::unique_ptr<Outstanding> batch = std::move(outstanding_[i]);
    outstanding_.erase(outstanding_.begin() + static_cast<std::ptrdiff_t>(i));
    const absl::Status status =
        Draw(0, 19) == 0 ? absl::ResourceExhaustedError("batch failed") : absl::OkStatus();
    std::vector<Tracked*> over;
    for (Tracked* t : batch->parts) {
      --t->in_flight;
      if (!status.ok() && t->failed.ok()) t->failed = status;
      if (t->in_flight == 0 && (t->taken == t->size() || !t->failed.ok())) over.push_back(t);
    }
    batcher_->Complete(batch->batch, status, absl::Milliseconds(1), 1);
    for (const Tracked* t : over) EXPECT_EQ(t->runs, 1) << "its last rows are back";
  }

  void CheckResult(const Tracked& t) {
    EXPECT_EQ(t.runs, 1);
    EXPECT_GE(t.result.queue, absl::ZeroDuration());
    switch (t.result.status.code()) {
      case absl::StatusCode::kOk:
        ++succeeded_;
        EXPECT_EQ(t.taken, t.size());
        EXPECT_TRUE(t.failed.ok());
        EXPECT_EQ(t.result.compute, absl::Milliseconds(t.result.batches));
        break;
      case absl::StatusCode::kCancelled:
        EXPECT_TRUE(t.request->cancelled);
        EXPECT_LT(t.taken, t.size());
        break;
      case absl::StatusCode::kDeadlineExceeded:
        EXPECT_GE(clock_.Now(), t.request->deadline);
        EXPECT_LT(t.taken, t.size());
        break;
      default:
        EXPECT_EQ(t.result.status, t.failed);
        EXPECT_FALSE(t.failed.ok());
    }
  }

  std::mt19937 random_;
  BatcherOptions options_;
  FakeClock clock_;
  Observer observer_;
  std::vector<std::unique_ptr<Tracked>> requests_;  // accepted, oldest first
  std::vector<std::unique_ptr<Outstanding>> outstanding_;
  bool submitting_ = false;
  int succeeded_ = 0;
  int refused_ = 0;
  std::unique_ptr<Batcher> batcher_;
};

TEST(BatcherModelTest, PromisesHoldUnderRandomTraffic) {
  size_t accepted = 0;
  int succeeded = 0;
  int refused = 0;
  for (int seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Simulation simulation(seed);
    simulation.Run(600);
    if (HasFailure()) return;
    accepted += simulation.accepted();
    succeeded += simulation.succeeded();
    refused += simulation.refused();
  }
  // The traffic reaches every outcome in numbers, or the checks above would prove little.
  EXPECT_GT(accepted, 5000u);
  EXPECT_GT(succeeded, 3000);
  EXPECT_LT(succeeded, static_cast<int>(accepted) - 1000);
  EXPECT_GT(refused, 1000);
}

// Real threads, so that a sanitizer sees every interleaving the machine offers.
TEST(BatcherModelTest, EveryAcceptedRequestEndsOnceUnderConcurrentTraffic) {
  constexpr int kSubmitters = 3;
  constexpr int kSlots = 2;
  constexpr int kRequests = 1000;  // of each submitter
  SystemClock clock;
  Observer observer;
  BatcherOptions options;
  options.max_batch_tokens = 40;
  options.max_batch_sequences = 8;
  options.max_seqlen = 12;
  options.max_queue_requests = 20;
  options.max_delay = absl::Microseconds(50);
  auto batcher = Batcher::Create(options, clock, observer);
  ASSERT_TRUE(batcher.ok());

  struct Shared {
    std::shared_ptr<Request> request = std::make_shared<Request>();
    bool accepted = false;
    std::atomic<int> runs{0};
    std::vector<float> rows;
    bool ok = false;
  };
  std::vector<std::vector<Shared>> all(kSubmitters);
  for (auto& requests : all) requests = std::vector<Shared>(kRequests);

  std::vector<std::thread> slots;
  for (int i = 0; i < kSlots; ++i) {
    slots.emplace_back([&, random = std::mt19937(i)]() mutable {
      Batch batch;
      while ((*batcher)->Next(&batch)) {
        for (const BatchPiece& piece : batch.pieces) {
          float* rows = reinterpret_cast<float*>(piece.request->output) + piece.first_sequence;
          for (int r = 0; r < piece.num_sequences; ++r) rows[r] += 1;
        }
        const bool fail = random() % 50 == 0;
        (*batcher)->Complete(batch, fail ? absl::DataLossError("x") : absl::OkStatus(),
                             absl::ZeroDuration(), 0);
      }
    });
  }
  std::vector<std::thread> submitters;
  for (int i = 0; i < kSubmitters; ++i) {
    submitters.emplace_back([&, i, random = std::mt19937(100 + i)]() mutable {
      for (Shared& shared : all[i]) {
        Request& request = *shared.request;
        const int sequences = random() % 10 == 0 ? 30 : 1 + static_cast<int>(random() % 3);
        for (int s = 0; s < sequences; ++s) {
          const std::vector<int> ids(1 + random() % 12, 1);
          request.input.Append(ids, ids);
        }
        shared.rows.assign(sequences, 0);
        request.output = reinterpret_cast<std::byte*>(shared.rows.data());
        request.row_stride_bytes = sizeof(float);
        if (random() % 4 == 0) {
          request.deadline = clock.Now() + absl::Microseconds(random() % 2000);
        }
        request.done = [&shared](const RequestResult& result) {
          shared.ok = result.status.ok();
          shared.runs.fetch_add(1);
        };
        // Refused ones are tried again, so that the queue stays full.
        do {
          shared.accepted = (*batcher)->Submit(shared.request).ok();
        } while (!shared.accepted && random() % 4 != 0);
        if (random() % 8 == 0) request.cancelled = true;
      }
    });
  }
  for (std::thread& submitter : submitters) submitter.join();
  (*batcher)->Close();
  for (std::thread& slot : slots) slot.join();

  int succeeded = 0;
  for (const auto& requests : all) {
    for (const Shared& shared : requests) {
      ASSERT_EQ(shared.runs.load(), shared.accepted ? 1 : 0);
      for (const float row : shared.rows) {
        ASSERT_LE(row, 1) << "a row was computed twice";
        if (shared.ok) {
          ASSERT_EQ(row, 1);
        }
      }
      succeeded += shared.ok ? 1 : 0;
    }
  }
  EXPECT_GT(succeeded, 0);
}

}  // namespace
}  // namespace flashsvd
