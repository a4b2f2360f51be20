#ifndef FLASHSVD_RUNTIME_BATCH_STAGING_H_
#define FLASHSVD_RUNTIME_BATCH_STAGING_H_

#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "runtime/activation_plan.h"
#include "runtime/packed_batch.h"

namespace flashsvd {

// Whole sequences that attention takes at once.
struct BatchChunk {
  int first_sequence = 0;
  int num_sequences = 0;
  int first_row = 0;
  int num_rows = 0;
  const void* schedule = nullptr;  // AttentionArgs::schedule
};

// The inputs of a batch and its pooled vectors, where host and device both reach them: one block
// [ids | type ids | positions | cu_seqlens | count of sequences | schedules] that goes in with one
// copy, and one that the device writes where the host reads it. Allocated once for the largest
// batch. Not thread-safe; the backend must outlive it.
class BatchStaging {
 public:
  // For batches within `limit`, in chunks of about `chunk_target` tokens.
  static absl::StatusOr<BatchStaging> Create(const Backend& backend, const BatchShape& limit,
                                             int chunk_target, int hidden);

  // Bytes that Create takes of the host and of the device together.
  static size_t Bytes(const Backend& backend, const BatchShape& limit, int chunk_target,
                      int hidden);

  // Lays the batch out on the host's side, as one of `num_tokens` tokens and `num_sequences`
  // sequences: those beyond the batch's own are tokens of no sequence and empty sequences. With
  // such tokens there is one chunk, else as many as the chunk target makes.
  // REQUIRES: within the limit; num_tokens > batch.num_tokens() only if it is within the target.
  void Write(const PackedBatch& batch, int num_tokens, int num_sequences);

  // What was written last. Pointers are into this object's memory.
  const RaggedBatch& batch() const { return batch_; }
  std::span<const BatchChunk> chunks() const { return chunks_; }
  float* output() const { return static_cast<float*>(output_.host()); }

  // Bytes that CopyIn copies: they grow with the sizes given to Write.
  size_t input_bytes() const { return input_bytes_; }

  absl::Status CopyIn(Stream& stream) const;

 private:
  BatchStaging(const Backend& backend, int chunk_target)
      : backend_(&backend), chunk_target_(chunk_target) {}

  const Backend* backend_;
  int chunk_target_;
  Staging input_;
  Staging output_;
  size_t input_bytes_ = 0;  // of the batch written last
  RaggedBatch batch_;
  std::vector<BatchChunk> chunks_;  // reserved at creation
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_BATCH_STAGING_H_
