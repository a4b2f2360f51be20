#include "runtime/activation_plan.h"

#include <algorithm>

namespace flashsvd {

int ChunkEnd(std::span<const int32_t> cu_seqlens, int begin, int chunk_target) {
  const int num_sequences = static_cast<int>(cu_seqlens.size()) - 1;
  int end = begin + 1;
  while (end < num_sequences && cu_seqlens[end + 1] - cu_seqlens[begin] <= chunk_target) ++end;
  return end;
}

BatchShape ShapeOf(const PackedBatch& batch, int chunk_target) {
  BatchShape shape{.tokens = batch.num_tokens(),
                   .sequences = batch.num_sequences(),
                   .max_seqlen = batch.max_seqlen};
  for (int begin = 0; begin < shape.sequences;) {
    const int end = ChunkEnd(batch.cu_seqlens, begin, chunk_target);
    shape.chunk_tokens =
        std::max(shape.chunk_tokens, batch.cu_seqlens[end] - batch.cu_seqlens[begin]);
    shape.chunk_sequences = std::max(shape.chunk_sequences, end - begin);
    begin = end;
  }
  return shape;
}

BatchShape ShapeLimit(int max_tokens, int max_sequences, int max_seqlen, int chunk_target) {
  const int chunk_tokens = std::min(max_tokens, std::max(max_seqlen, chunk_target));
  return {.tokens = max_tokens,
          .sequences = max_sequences,
          .max_seqlen = std::min(max_seqlen, max_tokens),
          .chunk_tokens = chunk_tokens,
          .chunk_sequences = max_sequences};
}

size_t DenseUnfusedActivationBytes(int64_t tokens, int hidden, int ffn, size_t element_bytes) {
  return static_cast<size_t>(tokens) * (hidden + std::max(4 * hidden, ffn)) * element_bytes;
}

}  // namespace flashsvd
