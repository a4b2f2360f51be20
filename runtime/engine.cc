#include "runtime/engine.h"

#include <atomic>
#include <cstring>
#include <system_error>
#include <utility>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "runtime/mutex.h"
#include "runtime/request_check.h"

namespace flashsvd {
namespace {

constexpr int kMaxSlots = 256;

// Errors of the device itself. Others (an id that the model does not have) are the batch's own.
bool IsFatal(const absl::Status& status) {
  return status.code() == absl::StatusCode::kInternal ||
         status.code() == absl::StatusCode::kUnknown;
}

// Copies every row to where its request wants it. Slots never share a row.
void Scatter(const Batch& batch, std::span<const float> output, int hidden) {
  const size_t row_bytes = sizeof(float) * hidden;
  FSVD_CHECK(output.size() == static_cast<size_t>(batch.tokens.num_sequences()) * hidden,
             "%zu floats of output for %d sequences of %d", output.size(),
             batch.tokens.num_sequences(), hidden);
  for (const BatchPiece& piece : batch.pieces) {
    const Request& request = *piece.request;
    const float* from = output.data() + static_cast<size_t>(piece.first_row) * hidden;
    std::byte* to = request.output + piece.first_sequence * request.row_stride_bytes;
    for (int i = 0; i < piece.num_sequences; ++i) {
      std::memcpy(to, from, row_bytes);
      from += hidden;
      to += request.row_stride_bytes;
    }
  }
}

}  // namespace

struct Engine::Impl {
  struct Slot {
    std::unique_ptr<BatchRunner> runner;
    std::atomic<size_t> high_water{0};
    std::thread thread;
  };

  Impl(const EngineModel& model, const Clock& clock, Observer& observer, size_t num_slots)
      : model(model), clock(clock), observer(observer), slots(num_slots) {}

  void RunSlot(Slot& slot);
  absl::Status RunBatch(Slot& slot, const Batch& batch, BatchReport* report);
  // Nothing is computed on a device that has failed: the first error stays, the queue fails.
  void Fail(const absl::Status& error);
  void Drain();

  const EngineModel model;
  const Clock& clock;
  Observer& observer;
  std::unique_ptr<Batcher> batcher;
  std::vector<Slot> slots;
  mutable Mutex health_mu;
  absl::Status health ABSL_GUARDED_BY(health_mu);
  Mutex drain_mu;  // held while joining, so that every Drain returns drained
};

void Engine::Impl::RunSlot(Slot& slot) {
  Batch batch;
  while (batcher->Next(&batch)) {
    BatchReport report;
    const absl::Status status = RunBatch(slot, batch, &report);
    if (status.ok()) observer.OnBatch(report);
    if (IsFatal(status)) Fail(status);
    batcher->Complete(batch, status, report.compute, report.activation_bytes);
  }
}

absl::Status Engine::Impl::RunBatch(Slot& slot, const Batch& batch, BatchReport* report) {
  report->num_sequences = batch.tokens.num_sequences();
  report->num_tokens = batch.tokens.num_tokens();
  report->close = batch.close;
  report->planned_activation_bytes = batch.planned_bytes;
  report->copy_in = batch.copy_in;

  const absl::Time start = clock.Now();
  const absl::StatusOr<size_t> used = slot.runner->Run(batch.tokens);
  const absl::Time computed = clock.Now();
  report->compute = computed - start;
  if (!used.ok()) return used.status();
  report->activation_bytes = *used;
  if (*used > slot.high_water.load(std::memory_order_relaxed)) {
    slot.high_water.store(*used, std::memory_order_relaxed);  // this thread is the only writer
  }
  Scatter(batch, slot.runner->output(), model.hidden);
  report->copy_out = clock.Now() - computed;
  return absl::OkStatus();
}

void Engine::Impl::Fail(const absl::Status& error) {
  {
    MutexLock lock(&health_mu);
    if (health.ok()) health = error;
  }
  batcher->Abort(
      absl::UnavailableError(fmt::format("the device failed: {}", std::string(error.message()))));
}

void Engine::Impl::Drain() {
  batcher->Close();
  MutexLock lock(&drain_mu);
  for (Slot& slot : slots) {
    if (slot.thread.joinable()) slot.thread.join();
  }
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(std::span<const Encoder* const> replicas,
                                                       const EngineOptions& options,
                                                       const Clock& clock, Observer& observer) {
  if (replicas.empty()) return absl::InvalidArgumentError("an engine without an encoder");
  const Encoder& encoder = *replicas.front();
  const ModelConfig& config = encoder.config();
  EngineOptions resolved = options;
  BatcherOptions& batcher = resolved.batcher;
  if (!batcher.activation_bytes) {
    batcher.activation_bytes = [&encoder](int tokens, int sequences, int max_seqlen) {
      return encoder.Plan(encoder.Limit(tokens, sequences, max_seqlen)).total_bytes;
    };
  }
  FSVD_RETURN_IF_ERROR(ValidateBatcherOptions(batcher));
  if (batcher.max_seqlen > config.max_positions) {
    return absl::InvalidArgumentError(fmt::format("max_seqlen: {} exceeds the model's {} positions",
                                                  batcher.max_seqlen, config.max_positions));
  }
  const int max_slots = kMaxSlots / static_cast<int>(replicas.size());
  if (options.num_slots < 1 || options.num_slots > max_slots) {
    return absl::InvalidArgumentError(
        fmt::format("num_slots: {} is not within [1, {}] on {} devices", options.num_slots,
                    max_slots, replicas.size()));
  }
  const BatchShape limit =
      encoder.Limit(batcher.max_batch_tokens, batcher.max_batch_sequences, batcher.max_seqlen);
  std::vector<std::unique_ptr<BatchRunner>> runners;
  for (const Encoder* replica : replicas) {
    for (int i = 0; i < options.num_slots; ++i) {
      FSVD_ASSIGN_OR_RETURN(std::unique_ptr<BatchRunner> runner,
                            MakeEncoderRunner(*replica, limit));
      runners.push_back(std::move(runner));
    }
  }
  resolved.num_slots = static_cast<int>(runners.size());
  const EngineModel model = {config.hidden, config.vocab, config.type_vocab};
  return Create(std::move(runners), model, resolved, clock, observer);
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(
    std::vector<std::unique_ptr<BatchRunner>> runners, const EngineModel& model,
    const EngineOptions& options, const Clock& clock, Observer& observer) {
  if (runners.empty() || runners.size() > kMaxSlots ||
      static_cast<size_t>(options.num_slots) != runners.size()) {
    return absl::InvalidArgumentError(fmt::format("num_slots: {}, with {} runners, of 1 to {}",
                                                  options.num_slots, runners.size(), kMaxSlots));
  }
  auto impl = std::make_unique<Impl>(model, clock, observer, runners.size());
  FSVD_ASSIGN_OR_RETURN(impl->batcher, Batcher::Create(options.batcher, clock, observer));
  std::unique_ptr<Engine> engine(new Engine(std::move(impl)));
  Impl* running = engine->impl_.get();
  for (size_t i = 0; i < runners.size(); ++i) {
    Impl::Slot& slot = running->slots[i];
    slot.runner = std::move(runners[i]);
    try {
      slot.thread = std::thread([running, &slot] { running->RunSlot(slot); });
    } catch (const std::system_error& error) {
      return absl::ResourceExhaustedError(
          fmt::format("cannot start the thread of slot {}: {}", i, error.what()));
    }
  }
  return engine;
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Engine::~Engine() { Drain(); }

absl::Status Engine::Submit(std::shared_ptr<Request> request) {
  const Impl& impl = *impl_;
  const size_t row_bytes = sizeof(float) * impl.model.hidden;
  absl::Status status = CheckShape(*request, impl.batcher->options().max_seqlen).status();
  if (status.ok()) status = CheckIds(*request, impl.model.vocab, impl.model.type_vocab);
  if (status.ok() && (request->output == nullptr || request->row_stride_bytes < row_bytes)) {
    status = absl::InvalidArgumentError(fmt::format(
        "output {} with rows {} bytes apart does not hold rows of {} bytes",
        request->output == nullptr ? "null" : "buffer", request->row_stride_bytes, row_bytes));
  }
  if (!status.ok()) {
    impl.observer.OnRejected(Rejection::kInvalid);
    return status;
  }
  return impl_->batcher->Submit(std::move(request));
}

void Engine::Drain() { impl_->Drain(); }

absl::Status Engine::health() const {
  MutexLock lock(&impl_->health_mu);
  return impl_->health;
}

QueueReport Engine::queue() const { return impl_->batcher->queue(); }

size_t Engine::activation_high_water_bytes() const {
  size_t bytes = 0;
  for (const Impl::Slot& slot : impl_->slots) {
    bytes += slot.high_water.load(std::memory_order_relaxed);
  }
  return bytes;
}

}  // namespace flashsvd
