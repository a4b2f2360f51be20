#ifndef FLASHSVD_RUNTIME_ACTIVATION_PLAN_H_
#define FLASHSVD_RUNTIME_ACTIVATION_PLAN_H_

#include <cstddef>
#include <span>

#include "kernels/arena.h"
#include "runtime/packed_batch.h"

namespace flashsvd {

// What decides the size of a batch's activations.
struct BatchShape {
  int tokens = 0;     // T
  int sequences = 0;  // S
  int max_seqlen = 0;
  int chunk_tokens = 0;     // C: tokens of the largest attention chunk
  int chunk_sequences = 0;  // sequences of the chunk that has most
};

// The shape of `batch` when attention walks it in chunks of whole sequences of at most
// `chunk_target` tokens (one longer sequence is a chunk of its own).
BatchShape ShapeOf(const PackedBatch& batch, int chunk_target);

// The largest shape that any batch within these limits can have.
BatchShape ShapeLimit(int max_tokens, int max_sequences, int max_seqlen, int chunk_target);

// Sequences [begin, end) of the chunk that starts at sequence `begin`.
int ChunkEnd(std::span<const int32_t> cu_seqlens, int begin, int chunk_target);

// Every activation buffer of one forward pass: offset and bytes within the slot's arena, computed
// before anything is allocated. Live at once: the hidden state X, and a workspace that attention
// (qkv + context + scratch), feed-forward and the unfused baseline take turns in.
// Plans are monotonic: a batch inside the limits never needs more than the limit's plan.
struct ActivationPlan {
  ArenaSpan x;                  // [T, d]
  ArenaSpan qkv;                // [C, H (2 d_qk + d_v)]
  ArenaSpan context;            // [C, H d_v]
  ArenaSpan attention_scratch;  // of the operation of the attention block that needs most
  ArenaSpan hidden;             // [T, F]; the unfused baseline alone, else empty
  ArenaSpan ffn_scratch;
  size_t total_bytes = 0;
};

// Activation bytes of the uncompressed encoder run operation by operation on `tokens` tokens: X,
// and beside it the larger of Q, K, V + context (4 d) and the feed-forward's hidden activation (F).
// Two buffers fewer than a framework keeps, so a lower bound of what the dense model takes
// elsewhere.
size_t DenseUnfusedActivationBytes(int64_t tokens, int hidden, int ffn, size_t element_bytes);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_ACTIVATION_PLAN_H_
