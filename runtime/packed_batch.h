#ifndef FLASHSVD_RUNTIME_PACKED_BATCH_H_
#define FLASHSVD_RUNTIME_PACKED_BATCH_H_

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace flashsvd {

// Ragged batch: token ids of all sequences back to back plus cu_seqlens; padding does not exist.
// Vectors keep their capacity over Clear().
struct PackedBatch {
  std::vector<int32_t> ids;               // [T]
  std::vector<int32_t> type_ids;          // [T]
  std::vector<int32_t> cu_seqlens = {0};  // [S+1]
  int max_seqlen = 0;

  int num_tokens() const { return static_cast<int>(ids.size()); }
  int num_sequences() const { return static_cast<int>(cu_seqlens.size()) - 1; }

  void Clear() {
    ids.clear();
    type_ids.clear();
    cu_seqlens.assign(1, 0);
    max_seqlen = 0;
  }
  void Reserve(int tokens, int sequences) {
    ids.reserve(tokens);
    type_ids.reserve(tokens);
    cu_seqlens.reserve(sequences + 1);
  }
  // REQUIRES: sequence_ids.size() == sequence_types.size().
  void Append(std::span<const int32_t> sequence_ids, std::span<const int32_t> sequence_types) {
    ids.insert(ids.end(), sequence_ids.begin(), sequence_ids.end());
    type_ids.insert(type_ids.end(), sequence_types.begin(), sequence_types.end());
    cu_seqlens.push_back(num_tokens());
    max_seqlen = std::max(max_seqlen, static_cast<int>(sequence_ids.size()));
  }
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_PACKED_BATCH_H_
