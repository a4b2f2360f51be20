#include "runtime/batch_staging.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/arena.h"
#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

// Two neighbouring chunks together exceed the target, or they would be one.
size_t MaxChunks(const BatchShape& limit, int chunk_target) {
  return 2 * (static_cast<size_t>(limit.tokens) / chunk_target + 1);
}

size_t BytesBeforeSchedules(int num_tokens, int num_sequences) {
  return ArenaAlign((3 * size_t(num_tokens) + num_sequences + 2) * sizeof(int32_t));
}

size_t InputBytes(const Backend& backend, const BatchShape& limit, int chunk_target) {
  // A schedule per chunk: their tiles are no more than those of one chunk of everything, but each
  // has a head and is aligned.
  const size_t schedules =
      backend.AttentionScheduleBytes(limit.tokens, limit.sequences) +
      2 * MaxChunks(limit, chunk_target) * backend.AttentionScheduleBytes(0, 0);
  return BytesBeforeSchedules(limit.tokens, limit.sequences) + schedules;
}

size_t OutputBytes(const BatchShape& limit, int hidden) {
  return static_cast<size_t>(limit.sequences) * hidden * sizeof(float);
}

}  // namespace

size_t BatchStaging::Bytes(const Backend& backend, const BatchShape& limit, int chunk_target,
                           int hidden) {
  const size_t sides = backend.shares_host_memory() ? 1 : 2;
  return sides * InputBytes(backend, limit, chunk_target) + OutputBytes(limit, hidden);
}

absl::StatusOr<BatchStaging> BatchStaging::Create(const Backend& backend, const BatchShape& limit,
                                                  int chunk_target, int hidden) {
  BatchStaging staging(backend, chunk_target);
  FSVD_ASSIGN_OR_RETURN(staging.input_,
                        backend.AllocateStaging(InputBytes(backend, limit, chunk_target)));
  FSVD_ASSIGN_OR_RETURN(staging.output_, backend.AllocateOutput(OutputBytes(limit, hidden)));
  staging.chunks_.reserve(MaxChunks(limit, chunk_target));
  return staging;
}

void BatchStaging::Write(const PackedBatch& batch, int num_tokens, int num_sequences) {
  FSVD_CHECK(num_tokens >= batch.num_tokens() && num_sequences >= batch.num_sequences(),
             "a batch of %d tokens, %d sequences as one of %d, %d", batch.num_tokens(),
             batch.num_sequences(), num_tokens, num_sequences);
  const size_t bytes_before_schedules = BytesBeforeSchedules(num_tokens, num_sequences);
  FSVD_CHECK(bytes_before_schedules <= input_.bytes(), "%zu bytes of input staged in %zu",
             bytes_before_schedules, input_.bytes());
  auto* ids = static_cast<int32_t*>(input_.host());
  int32_t* const type_ids = ids + num_tokens;
  int32_t* const positions = type_ids + num_tokens;
  int32_t* const cu_seqlens = positions + num_tokens;

  std::copy(batch.ids.begin(), batch.ids.end(), ids);
  std::copy(batch.type_ids.begin(), batch.type_ids.end(), type_ids);
  for (int s = 0; s < batch.num_sequences(); ++s) {
    for (int t = batch.cu_seqlens[s]; t < batch.cu_seqlens[s + 1]; ++t) {
      positions[t] = t - batch.cu_seqlens[s];
    }
  }
  // Tokens of no sequence are computed and never read: any id will do.
  for (int32_t* array : {ids, type_ids, positions}) {
    std::fill(array + batch.num_tokens(), array + num_tokens, 0);
  }
  std::copy(batch.cu_seqlens.begin(), batch.cu_seqlens.end(), cu_seqlens);
  std::fill(cu_seqlens + batch.num_sequences() + 1, cu_seqlens + num_sequences + 1,
            batch.num_tokens());
  cu_seqlens[num_sequences + 1] = batch.num_sequences();

  const auto* device = static_cast<const int32_t*>(input_.device());
  batch_ = {.ids = device,
            .type_ids = device + num_tokens,
            .positions = device + 2 * size_t(num_tokens),
            .cu_seqlens = device + 3 * size_t(num_tokens),
            .host_cu_seqlens = cu_seqlens,
            .num_present = device + 3 * size_t(num_tokens) + num_sequences + 1,
            .num_tokens = num_tokens,
            .num_sequences = num_sequences,
            .max_seqlen = batch.max_seqlen};

  input_bytes_ = bytes_before_schedules;
  chunks_.clear();
  const bool padded = num_tokens > batch.num_tokens();
  const std::span<const int32_t> cu(cu_seqlens, num_sequences + 1);
  for (int begin = 0, end; begin < num_sequences; begin = end) {
    end = padded ? num_sequences : ChunkEnd(cu, begin, chunk_target_);
    const int rows = padded ? num_tokens : cu[end] - cu[begin];
    if (rows == 0) continue;
    const size_t bytes = backend_->AttentionScheduleBytes(rows, end - begin);
    FSVD_CHECK(input_bytes_ + bytes <= input_.bytes() && chunks_.size() < chunks_.capacity(),
               "%zu bytes of input and %zu chunks staged in %zu and %zu", input_bytes_ + bytes,
               chunks_.size() + 1, input_.bytes(), chunks_.capacity());
    backend_->WriteAttentionSchedule(cu_seqlens + begin, end - begin, rows,
                                     static_cast<std::byte*>(input_.host()) + input_bytes_);
    chunks_.push_back({.first_sequence = begin,
                       .num_sequences = end - begin,
                       .first_row = cu[begin],
                       .num_rows = rows,
                       .schedule = static_cast<std::byte*>(input_.device()) + input_bytes_});
    input_bytes_ += bytes;
  }
}

absl::Status BatchStaging::CopyIn(Stream& stream) const {
  return backend_->CopyToDevice(input_, 0, input_bytes_, stream);
}

}  // namespace flashsvd
