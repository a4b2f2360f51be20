// What queueing and batching cost beside the model: requests per second through Submit, Next and
// Complete, and batches formed per second.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "runtime/batcher.h"

namespace flashsvd {
namespace {

std::vector<std::shared_ptr<Request>> MakeRequests(int count, int min_length, int max_length) {
  std::mt19937 random(1);
  std::uniform_int_distribution<int> lengths(min_length, max_length);
  std::vector<std::shared_ptr<Request>> requests;
  for (int i = 0; i < count; ++i) {
    auto request = std::make_shared<Request>();
    const std::vector<int> ids(lengths(random), 7);
    request->input.Append(ids, std::vector<int>(ids.size(), 0));
    request->row_stride_bytes = 384 * sizeof(float);
    request->done = [](const RequestResult&) {};
    requests.push_back(std::move(request));
  }
  return requests;
}

std::unique_ptr<Batcher> MakeBatcher(const Clock& clock, Observer& observer) {
  auto batcher = Batcher::Create(BatcherOptions(), clock, observer);
  if (!batcher.ok()) std::abort();
  return *std::move(batcher);
}

// One thread: a queue of `depth` single-sequence requests of 2 to 128 tokens is filled and drained.
void BM_FillAndDrain(benchmark::State& state) {
  const int depth = static_cast<int>(state.range(0));
  SystemClock clock;
  Observer observer;
  const std::unique_ptr<Batcher> batcher = MakeBatcher(clock, observer);
  const auto requests = MakeRequests(depth, 2, 128);
  Batch batch;
  int64_t batches = 0;
  for (auto _ : state) {
    for (const auto& request : requests) {
      if (!batcher->Submit(request).ok()) state.SkipWithError("queue full");
    }
    while (batcher->TryNext(&batch)) {
      ++batches;
      batcher->Complete(batch, absl::OkStatus(), absl::ZeroDuration(), 0);
    }
  }
  state.counters["submissions"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * depth, benchmark::Counter::kIsRate);
  state.counters["formations"] =
      benchmark::Counter(static_cast<double>(batches), benchmark::Counter::kIsRate);
}
BENCHMARK(BM_FillAndDrain)->Arg(1)->Arg(32)->Arg(1024);

// One batch formed from behind a full queue whose head does not fit: the longest look-ahead.
void BM_LookAhead(benchmark::State& state) {
  SystemClock clock;
  Observer observer;
  BatcherOptions options;
  options.max_batch_tokens = 512;
  options.max_overtake_age = absl::Hours(1);
  auto batcher = Batcher::Create(options, clock, observer);
  if (!batcher.ok()) std::abort();
  auto requests = MakeRequests(options.max_queue_requests - 2, 200, 200);
  const auto first = MakeRequests(1, 500, 500);
  for (const auto& request : first) {
    if (!(*batcher)->Submit(request).ok()) state.SkipWithError("queue full");
  }
  for (const auto& request : requests) {
    if (!(*batcher)->Submit(request).ok()) state.SkipWithError("queue full");
  }
  Batch batch;
  for (auto _ : state) {
    if (!(*batcher)->TryNext(&batch)) state.SkipWithError("queue empty");
    state.PauseTiming();
    std::vector<Request*> taken;
    for (const BatchPiece& piece : batch.pieces) taken.push_back(piece.request);
    (*batcher)->Complete(batch, absl::OkStatus(), absl::ZeroDuration(), 0);
    for (Request* request : taken) {
      const auto same = [request](const auto& r) { return r.get() == request; };
      const auto it = std::find_if(requests.begin(), requests.end(), same);
      if (!(*batcher)->Submit(it == requests.end() ? first[0] : *it).ok()) {
        state.SkipWithError("queue full");
      }
    }
    state.ResumeTiming();
  }
}
BENCHMARK(BM_LookAhead)->Iterations(2000);

// Submitters on several threads, one slot that drains: contention on the queue's lock.
void BM_Contended(benchmark::State& state) {
  static SystemClock clock;
  static Observer observer;
  static std::unique_ptr<Batcher> batcher;
  static std::thread slot;
  if (state.thread_index() == 0) {
    batcher = MakeBatcher(clock, observer);
    slot = std::thread([] {
      Batch batch;
      while (batcher->Next(&batch)) {
        batcher->Complete(batch, absl::OkStatus(), absl::ZeroDuration(), 0);
      }
    });
  }
  const auto requests = MakeRequests(1, 32, 32);
  int64_t refused = 0;
  for (auto _ : state) {
    if (!batcher->Submit(requests[0]).ok()) ++refused;
  }
  state.counters["accepted"] = benchmark::Counter(static_cast<double>(state.iterations() - refused),
                                                  benchmark::Counter::kIsRate);
  state.counters["refused"] =
      benchmark::Counter(static_cast<double>(refused), benchmark::Counter::kIsRate);
  if (state.thread_index() == 0) {
    batcher->Close();
    slot.join();
  }
}
BENCHMARK(BM_Contended)->Threads(1)->Threads(2)->UseRealTime();

}  // namespace
}  // namespace flashsvd

BENCHMARK_MAIN();
