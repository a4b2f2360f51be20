#ifndef FLASHSVD_RUNTIME_ENCODER_H_
#define FLASHSVD_RUNTIME_ENCODER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/arena.h"
#include "kernels/backend.h"
#include "runtime/activation_plan.h"
#include "runtime/batch_staging.h"
#include "runtime/model_config.h"
#include "runtime/packed_batch.h"
#include "runtime/weights.h"

namespace flashsvd {

struct EncoderOptions {
  // Attention walks the batch in chunks of whole sequences of about this many tokens, and its
  // workspace is that large (design.md section 3). 0: what the backend likes best.
  int chunk_tokens = 0;
  // false: the honest baseline. The same kernels, but attention over the whole batch at once and
  // the feed-forward's [T, F] activation written out between two GEMMs.
  bool streaming = true;
};

// Weights by the numbers. "Dense" is what the same encoder takes uncompressed.
struct WeightBytes {
  size_t resident = 0;          // as packed by the backend, embeddings included
  size_t dense_equivalent = 0;  // parameters of the dense model at the same dtype
  int64_t linear_parameters = 0;
  int64_t dense_linear_parameters = 0;
};

class Encoder;
struct OwnedLayerNorm;

// Everything one batch in flight needs beside the weights, allocated once: the activation arena,
// input and output, a stream and, where the backend records, graphs of small batches. Used by one
// thread at a time. Neither encoder nor backend may go before it.
class ExecutionSlot {
 public:
  // [S, d] float32 of the last Forward: pooled, not normalised (normalisation follows the cut to
  // the dimensions that a client asks for).
  std::span<const float> output() const { return output_; }
  const Arena& arena() const { return arena_; }

 private:
  friend class Encoder;

  // A forward pass over up to so many tokens and sequences, recorded.
  struct Recording {
    int tokens = 0;
    int sequences = 0;
    size_t activation_bytes = 0;
    size_t input_bytes = 0;
    std::unique_ptr<Graph> graph;
  };

  ExecutionSlot(Arena arena, BatchStaging staging, std::unique_ptr<Stream> stream, BatchShape limit)
      : arena_(std::move(arena)),
        staging_(std::move(staging)),
        stream_(std::move(stream)),
        limit_(limit) {}

  // The smallest recording that the batch fits into, or null.
  const Recording* FindRecording(const PackedBatch& batch) const;

  Arena arena_;
  BatchStaging staging_;
  std::unique_ptr<Stream> stream_;
  BatchShape limit_;
  std::vector<Recording> recordings_;  // by ascending tokens
  std::span<const float> output_;
};

// A BERT-family encoder (post-LayerNorm, absolute positions): token ids in, one pooled vector a
// sequence out. Weights are folded (design.md 2.1) and packed at load. Immutable; thread-safe: any
// number of slots may run at once. The backend must outlive it.
class Encoder {
 public:
  // Loads, folds and packs all weights. Errors are the source's (tensor and shapes named) or the
  // backend's.
  static absl::StatusOr<std::unique_ptr<Encoder>> Create(const WeightSource& weights,
                                                         const ModelConfig& config,
                                                         const Backend& backend,
                                                         const EncoderOptions& options);
  ~Encoder();

  // The activation buffers of any batch of this shape.
  ActivationPlan Plan(const BatchShape& shape) const;
  // The largest shape under these limits, with this encoder's chunking.
  BatchShape Limit(int max_tokens, int max_sequences, int max_seqlen) const;

  // Bytes of input and output staging of a slot with these limits, host and device together.
  size_t StagingBytes(const BatchShape& limit) const;

  // Allocates a slot for batches within the limits; where the backend records, also records its
  // graphs and runs a few large batches.
  absl::StatusOr<std::unique_ptr<ExecutionSlot>> MakeSlot(const BatchShape& limit) const;

  // Runs one batch; the pooled vectors are in slot.output(). Allocates nothing. Returns the bytes
  // of activations that this batch used, which equal Plan(its shape).total_bytes.
  // InvalidArgument: an id outside the vocabulary, a type id or a length the model does not have;
  // nothing has run then.
  // REQUIRES: the batch is within the slot's limits and has at least one token.
  absl::StatusOr<size_t> Forward(const PackedBatch& batch, ExecutionSlot& slot) const;

  // Multiply-adds of one forward pass, counted as two each: linear maps as packed, and attention.
  double Flops(const PackedBatch& batch) const;

  const ModelConfig& config() const { return config_; }
  const Backend& backend() const { return backend_; }
  const WeightBytes& weight_bytes() const { return weight_bytes_; }

 private:
  struct Layer;
  friend class EncoderBuilder;

  Encoder(const ModelConfig& config, const Backend& backend, const EncoderOptions& options);

  absl::Status Validate(const PackedBatch& batch) const;
  int ChunkTarget(int num_tokens) const;
  absl::Status Record(ExecutionSlot& slot) const;
  // Runs batches of the sizes beyond the recorded ones, so that the device has loaded every kernel
  // that they need before the first request does.
  absl::Status WarmUp(ExecutionSlot& slot) const;
  // Enqueues the pass over what is staged.
  absl::Status Enqueue(const ActivationPlan& plan, ExecutionSlot& slot) const;
  absl::Status Attention(const Layer& layer, const Rows& x, const ActivationPlan& plan,
                         ExecutionSlot& slot) const;
  absl::Status FeedForward(const Layer& layer, const Rows& x, const ActivationPlan& plan,
                           ExecutionSlot& slot) const;
  // Rows of contiguous memory, `cols` wide, at the stride that the backend wants.
  Rows Matrix(void* data, int64_t rows, int64_t cols) const;
  // Whether the layer's attention writes its context over its queries.
  bool ReplacesQuery(const Layer& layer) const;

  const ModelConfig config_;
  const Backend& backend_;
  const EncoderOptions options_;
  WeightBytes weight_bytes_;
  Buffer word_, position_, type_;
  std::unique_ptr<OwnedLayerNorm> embedding_norm_;
  std::vector<Layer> layers_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_ENCODER_H_
