#include "runtime/batch_room.h"

#include <algorithm>

namespace flashsvd {

std::optional<BatchClose> BatchRoom::Refuses(const QueueEntry& entry, int count) const {
  const int tokens = entry.TokensOf(entry.next_sequence, count);
  if (tokens > limits_.max_batch_tokens - tokens_) return BatchClose::kTokens;
  if (count > limits_.max_batch_sequences - sequences_) return BatchClose::kSequences;
  if (limits_.max_batch_bytes == 0) return std::nullopt;
  const int max_seqlen = std::max(max_seqlen_, Longest(entry, count));
  const size_t bytes = limits_.activation_bytes(tokens_ + tokens, sequences_ + count, max_seqlen);
  if (bytes > limits_.max_batch_bytes) return BatchClose::kMemory;
  return std::nullopt;
}

int BatchRoom::CountThatFit(const QueueEntry& entry) {
  // Every limit is monotonic in the count, so bisect: a plan costs more than a comparison.
  int fit = 0;
  int beyond = entry.waiting() + 1;
  while (beyond - fit > 1) {
    const int middle = fit + (beyond - fit) / 2;
    const std::optional<BatchClose> refusal = Refuses(entry, middle);
    if (refusal.has_value()) refusal_ = refusal;
    (refusal.has_value() ? beyond : fit) = middle;
  }
  return fit;
}

void BatchRoom::Add(const QueueEntry& entry, int count) {
  tokens_ += entry.TokensOf(entry.next_sequence, count);
  sequences_ += count;
  if (limits_.max_batch_bytes > 0) max_seqlen_ = std::max(max_seqlen_, Longest(entry, count));
}

BatchClose BatchRoom::Close(BatchClose otherwise) const {
  if (tokens_ >= limits_.max_batch_tokens) return BatchClose::kTokens;
  if (sequences_ >= limits_.max_batch_sequences) return BatchClose::kSequences;
  return refusal_.value_or(otherwise);
}

int BatchRoom::Longest(const QueueEntry& entry, int count) const {
  if (count == entry.num_sequences) return entry.max_seqlen;
  int longest = 0;
  for (int s = 0; s < count; ++s) {
    longest = std::max(longest, entry.TokensOf(entry.next_sequence + s, 1));
  }
  return longest;
}

}  // namespace flashsvd
