#include "runtime/batcher.h"

#include <algorithm>
#include <span>
#include <utility>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "runtime/batch_room.h"
#include "runtime/request_check.h"

namespace flashsvd {
namespace {

// A full queue is searched for dead entries this often at most, so that a storm of refused
// requests costs a clock reading each and not a walk of the queue.
constexpr absl::Duration kSweepInterval = absl::Milliseconds(1);

int64_t RequestBytes(const Request& request) {
  const PackedBatch& input = request.input;
  return static_cast<int64_t>((input.ids.size() + input.type_ids.size() + input.cu_seqlens.size()) *
                                  sizeof(int32_t) +
                              input.num_sequences() * request.row_stride_bytes);
}

absl::Duration Since(absl::Time then, absl::Time now) {
  return std::max(now - then, absl::ZeroDuration());  // a wall clock may be set back
}

}  // namespace

absl::StatusOr<std::unique_ptr<Batcher>> Batcher::Create(const BatcherOptions& options,
                                                         const Clock& clock, Observer& observer) {
  FSVD_RETURN_IF_ERROR(ValidateBatcherOptions(options));
  return std::unique_ptr<Batcher>(new Batcher(options, clock, observer));
}

Batcher::Batcher(const BatcherOptions& options, const Clock& clock, Observer& observer)
    : options_(options), clock_(clock), observer_(observer) {}

Batcher::~Batcher() { Abort(absl::UnavailableError("the queue is shutting down")); }

absl::Status Batcher::Submit(std::shared_ptr<Request> request) {
  const absl::StatusOr<int> longest = CheckShape(*request, options_.max_seqlen);
  if (!longest.ok()) {
    observer_.OnRejected(Rejection::kInvalid);
    return longest.status();
  }
  const int64_t tokens = request->input.num_tokens();
  const int64_t bytes = RequestBytes(*request);

  MutexLock lock(&mu_);
  const absl::Time now = clock_.Now();
  if (!refusal_.ok()) {
    observer_.OnRejected(Rejection::kDraining);
    return refusal_;
  }
  std::optional<Rejection> limit = LimitReached(tokens, bytes);
  if (limit.has_value() && SweepDead(now)) limit = LimitReached(tokens, bytes);
  if (limit.has_value()) {
    observer_.OnRejected(*limit);
    return QueueFull(*limit, tokens, bytes);
  }

  QueueEntry* entry = NewEntry();
  entry->submitted = now;
  // A deadline too close for the whole delay shortens it: waiting must not cost the request.
  entry->form_by = std::min(now + options_.max_delay, request->deadline - options_.max_delay);
  entry->bytes = bytes;
  entry->num_sequences = request->input.num_sequences();
  entry->max_seqlen = *longest;
  entry->request = std::move(request);
  queue_.PushBack(entry);
  ++queued_requests_;
  queued_sequences_ += entry->num_sequences;
  queued_tokens_ += tokens;
  queued_bytes_ += bytes;
  observer_.OnQueue(Report(now));
  changed_.Signal();
  return absl::OkStatus();
}

std::optional<Rejection> Batcher::LimitReached(int64_t tokens, int64_t bytes) const {
  if (queue_.head == nullptr) return std::nullopt;
  if (queued_requests_ >= options_.max_queue_requests) return Rejection::kItems;
  if (tokens > options_.max_queue_tokens - queued_tokens_) return Rejection::kTokens;
  if (bytes > options_.max_queue_bytes - queued_bytes_) return Rejection::kBytes;
  return std::nullopt;
}

absl::Status Batcher::QueueFull(Rejection limit, int64_t tokens, int64_t bytes) const {
  switch (limit) {
    case Rejection::kTokens:
      return absl::ResourceExhaustedError(
          fmt::format("queue is full: {} tokens wait, {} more exceed max_queue_tokens {}",
                      queued_tokens_, tokens, options_.max_queue_tokens));
    case Rejection::kBytes:
      return absl::ResourceExhaustedError(
          fmt::format("queue is full: {} bytes wait, {} more exceed max_queue_bytes {}",
                      queued_bytes_, bytes, options_.max_queue_bytes));
    default:
      return absl::ResourceExhaustedError(
          fmt::format("queue is full: {} requests wait, which is max_queue_requests {}",
                      queued_requests_, options_.max_queue_requests));
  }
}

QueueEntry* Batcher::NewEntry() {
  if (free_.head == nullptr) {
    // The first block holds a full queue; more are needed only for what runs beside it.
    const int count = entries_.empty() ? options_.max_queue_requests : 64;
    entries_.push_back(std::make_unique<QueueEntry[]>(count));
    for (int i = 0; i < count; ++i) free_.PushBack(&entries_.back()[i]);
  }
  QueueEntry* entry = free_.head;
  free_.Remove(entry);
  *entry = QueueEntry();
  return entry;
}

absl::Duration Batcher::Holdback(absl::Time now) const {
  if (queue_.head == nullptr) return absl::InfiniteDuration();
  if (options_.max_delay == absl::ZeroDuration() || !refusal_.ok() || IsFullBatchWaiting()) {
    return absl::ZeroDuration();
  }
  absl::Duration holdback = options_.max_delay;
  for (const QueueEntry* entry = queue_.head; entry != nullptr; entry = entry->next) {
    if (now < entry->submitted) return absl::ZeroDuration();  // the clock was set back
    holdback = std::min(holdback, entry->form_by - now);
  }
  return std::max(holdback, absl::ZeroDuration());
}

bool Batcher::IsFullBatchWaiting() const {
  if (queued_tokens_ >= options_.max_batch_tokens) return true;
  if (queued_sequences_ >= options_.max_batch_sequences) return true;
  return options_.max_batch_bytes > 0 &&
         options_.activation_bytes(static_cast<int>(queued_tokens_), queued_sequences_,
                                   options_.max_seqlen) > options_.max_batch_bytes;
}

bool Batcher::Next(Batch* batch) {
  for (;;) {
    bool formed = false;
    bool over = false;
    {
      MutexLock lock(&mu_);
      for (;;) {
        const absl::Time now = clock_.Now();
        const absl::Duration holdback = Holdback(now);
        if (holdback == absl::ZeroDuration()) {
          formed = Form(now, batch);
          break;
        }
        if (finished_.head != nullptr) break;
        over = queue_.head == nullptr && !refusal_.ok();
        if (over) break;
        changed_.WaitWithTimeout(&mu_, holdback);
      }
    }
    RunDone();
    if (formed) {
      Pack(batch);
      return true;
    }
    if (over) return false;
  }
}

bool Batcher::TryNext(Batch* batch) {
  bool formed = false;
  {
    MutexLock lock(&mu_);
    const absl::Time now = clock_.Now();
    if (Holdback(now) == absl::ZeroDuration()) formed = Form(now, batch);
  }
  RunDone();
  if (formed) Pack(batch);
  return formed;
}

bool Batcher::Form(absl::Time now, Batch* batch) {
  batch->pieces.clear();
  batch->pieces.reserve(options_.max_batch_sequences);
  BatchRoom room(options_);
  Fill(now, room, batch);
  FSVD_CHECK(!batch->pieces.empty() || queue_.head == nullptr,
             "no sequence fits an empty batch of %d tokens, %zu bytes: activation_bytes decreases",
             options_.max_batch_tokens, options_.max_batch_bytes);
  const bool held_back = options_.max_delay > absl::ZeroDuration() && refusal_.ok();
  batch->close = room.Close(held_back ? BatchClose::kDelay : BatchClose::kEmpty);
  observer_.OnQueue(Report(now));
  if (queue_.head != nullptr) changed_.Signal();  // another slot may take what is left
  return !batch->pieces.empty();
}

void Batcher::Fill(absl::Time now, BatchRoom& room, Batch* batch) {
  // First whole entries, oldest first. One that does not fit is passed over while it is young: it
  // would need the next batch anyway, and what is behind it may end in this one.
  QueueEntry* passed_over = nullptr;
  for (QueueEntry* entry = queue_.head; entry != nullptr && !room.IsFull();) {
    QueueEntry* const next = entry->next;
    if (!DropIfDead(entry, now)) {
      const bool fits = !room.Refuses(*entry, entry->waiting()).has_value();
      if (fits) {
        Take(entry, entry->waiting(), now, room, batch);
      } else {
        if (passed_over == nullptr) passed_over = entry;
        if (Since(entry->submitted, now) >= options_.max_overtake_age) break;
      }
    }
    entry = next;
  }
  // Then parts of those passed over, so that no room is left that could be used.
  for (QueueEntry* entry = passed_over; entry != nullptr && !room.IsFull();) {
    QueueEntry* const next = entry->next;
    const int count = room.CountThatFit(*entry);
    if (count > 0) Take(entry, count, now, room, batch);
    if (Since(entry->submitted, now) >= options_.max_overtake_age) break;
    entry = next;
  }
}

void Batcher::Take(QueueEntry* entry, int count, absl::Time now, BatchRoom& room, Batch* batch) {
  room.Add(*entry, count);
  BatchPiece piece;
  piece.entry = entry;
  piece.request = entry->request.get();
  piece.first_sequence = entry->next_sequence;
  piece.num_sequences = count;
  if (!batch->pieces.empty()) {
    const BatchPiece& last = batch->pieces.back();
    piece.first_row = last.first_row + last.num_sequences;
  }
  batch->pieces.push_back(piece);

  queued_tokens_ -= entry->TokensOf(entry->next_sequence, count);
  queued_sequences_ -= count;
  entry->next_sequence += count;
  ++entry->pieces_in_flight;
  entry->result.queue = Since(entry->submitted, now);
  if (entry->waiting() == 0) {
    LeaveQueue(entry);
    observer_.OnQueued(entry->result.queue);
  }
}

void Batcher::Pack(Batch* batch) const {
  const absl::Time start = clock_.Now();
  PackedBatch& tokens = batch->tokens;
  tokens.Clear();
  tokens.Reserve(options_.max_batch_tokens, options_.max_batch_sequences);
  for (const BatchPiece& piece : batch->pieces) {
    const PackedBatch& input = piece.request->input;
    for (int s = piece.first_sequence; s < piece.first_sequence + piece.num_sequences; ++s) {
      const size_t begin = input.cu_seqlens[s];
      const size_t length = input.cu_seqlens[s + 1] - input.cu_seqlens[s];
      tokens.Append(std::span(input.ids).subspan(begin, length),
                    std::span(input.type_ids).subspan(begin, length));
    }
  }
  batch->planned_bytes = options_.activation_bytes
                             ? options_.activation_bytes(tokens.num_tokens(),
                                                         tokens.num_sequences(), tokens.max_seqlen)
                             : 0;
  batch->copy_in = Since(start, clock_.Now());
}

void Batcher::Complete(Batch& batch, const absl::Status& status, absl::Duration compute,
                       size_t activation_bytes) {
  {
    MutexLock lock(&mu_);
    const int queued_before = queued_requests_;
    for (const BatchPiece& piece : batch.pieces) {
      QueueEntry* entry = piece.entry;
      RequestResult& result = entry->result;
      --entry->pieces_in_flight;
      ++result.batches;
      result.compute += compute;
      result.activation_bytes = std::max(result.activation_bytes, activation_bytes);
      if (!status.ok()) {
        if (result.status.ok()) result.status = status;
        if (entry->waiting() > 0) {
          Drop(entry, status);
          continue;
        }
      }
      FinishIfOver(entry);
    }
    if (queued_requests_ != queued_before) observer_.OnQueue(Report(clock_.Now()));
  }
  batch.pieces.clear();
  batch.tokens.Clear();
  RunDone();
}

void Batcher::Close() {
  MutexLock lock(&mu_);
  if (refusal_.ok()) refusal_ = absl::UnavailableError("draining: no new requests are accepted");
  changed_.SignalAll();
}

void Batcher::Abort(const absl::Status& status) {
  {
    MutexLock lock(&mu_);
    refusal_ = status;
    const absl::Time now = clock_.Now();
    while (queue_.head != nullptr) {
      queue_.head->result.queue = Since(queue_.head->submitted, now);
      observer_.OnRejected(Rejection::kDraining);
      Drop(queue_.head, status);
    }
    observer_.OnQueue(Report(now));
    changed_.SignalAll();
  }
  RunDone();
}

bool Batcher::DropIfDead(QueueEntry* entry, absl::Time now) {
  const Request& request = *entry->request;
  const bool cancelled = request.cancelled.load(std::memory_order_relaxed);
  if (!cancelled && now < request.deadline) return false;
  entry->result.queue = Since(entry->submitted, now);
  if (cancelled) {
    observer_.OnAbandoned();
    Drop(entry, absl::CancelledError("cancelled by the client while queued"));
  } else {
    observer_.OnRejected(Rejection::kDeadline);
    Drop(entry,
         absl::DeadlineExceededError(fmt::format("deadline passed after {} in the queue",
                                                 absl::FormatDuration(entry->result.queue))));
  }
  return true;
}

void Batcher::Drop(QueueEntry* entry, const absl::Status& status) {
  if (entry->result.status.ok()) entry->result.status = status;
  queued_tokens_ -= entry->waiting_tokens();
  queued_sequences_ -= entry->waiting();
  entry->next_sequence = entry->num_sequences;
  LeaveQueue(entry);
  FinishIfOver(entry);
}

bool Batcher::SweepDead(absl::Time now) {
  if (now >= last_sweep_ && now - last_sweep_ < kSweepInterval) return false;
  last_sweep_ = now;
  bool dropped = false;
  for (QueueEntry* entry = queue_.head; entry != nullptr;) {
    QueueEntry* const next = entry->next;
    dropped |= DropIfDead(entry, now);
    entry = next;
  }
  if (dropped) changed_.Signal();  // a waiting slot runs their `done`; a busy one will
  return dropped;
}

void Batcher::LeaveQueue(QueueEntry* entry) {
  queue_.Remove(entry);
  --queued_requests_;
  queued_bytes_ -= entry->bytes;
}

void Batcher::FinishIfOver(QueueEntry* entry) {
  if (entry->waiting() == 0 && entry->pieces_in_flight == 0) finished_.PushBack(entry);
}

void Batcher::RunDone() {
  EntryList running;
  {
    MutexLock lock(&mu_);
    running = std::exchange(finished_, EntryList());
  }
  if (running.head == nullptr) return;
  for (QueueEntry* entry = running.head; entry != nullptr; entry = entry->next) {
    entry->request->done(entry->result);
    entry->request = nullptr;
  }
  MutexLock lock(&mu_);
  while (running.head != nullptr) {
    QueueEntry* entry = running.head;
    running.Remove(entry);
    free_.PushBack(entry);
  }
}

QueueReport Batcher::queue() const {
  MutexLock lock(&mu_);
  return Report(clock_.Now());
}

QueueReport Batcher::Report(absl::Time now) const {
  QueueReport report;
  report.items = queued_sequences_;
  report.tokens = queued_tokens_;
  report.bytes = queued_bytes_;
  if (queue_.head != nullptr) report.oldest_age = Since(queue_.head->submitted, now);
  return report;
}

}  // namespace flashsvd
