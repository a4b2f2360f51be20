#include "runtime/request_check.h"

#include <algorithm>
#include <span>

#include "fmt/format.h"
#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

absl::Status CheckWithin(const PackedBatch& input, std::span<const int32_t> values, int end,
                         const char* what) {
  // Unsigned, so that one comparison refuses negative values too; the usual case is one pass that
  // vectorises, and the culprit is looked for only when there is one.
  uint32_t largest = 0;
  for (const int32_t value : values) largest = std::max(largest, static_cast<uint32_t>(value));
  if (largest < static_cast<uint32_t>(end)) return absl::OkStatus();
  int64_t at = 0;
  while (static_cast<uint32_t>(values[at]) < static_cast<uint32_t>(end)) ++at;
  const auto next = std::upper_bound(input.cu_seqlens.begin(), input.cu_seqlens.end(), at);
  const int64_t sequence = next - input.cu_seqlens.begin() - 1;
  return absl::InvalidArgumentError(
      fmt::format("sequence {}, position {}: {} {} is not within [0, {})", sequence,
                  at - input.cu_seqlens[sequence], what, values[at], end));
}

}  // namespace

absl::StatusOr<int> CheckShape(const Request& request, int max_seqlen) {
  const PackedBatch& input = request.input;
  if (input.num_sequences() < 1) return absl::InvalidArgumentError("request has no sequence");
  if (input.cu_seqlens.front() != 0 ||
      static_cast<size_t>(input.cu_seqlens.back()) != input.ids.size() ||
      input.type_ids.size() != input.ids.size()) {
    return absl::InvalidArgumentError(
        fmt::format("request of {} ids and {} type ids has offsets from {} to {}", input.ids.size(),
                    input.type_ids.size(), input.cu_seqlens.front(), input.cu_seqlens.back()));
  }
  int longest = 0;
  for (int s = 0; s < input.num_sequences(); ++s) {
    const int64_t length = int64_t{input.cu_seqlens[s + 1]} - input.cu_seqlens[s];
    if (length < 1 || length > max_seqlen) {
      return absl::InvalidArgumentError(fmt::format(
          "sequence {} has {} tokens, not within [1, max_seqlen {}]", s, length, max_seqlen));
    }
    longest = std::max(longest, static_cast<int>(length));
  }
  if (!request.done) return absl::InvalidArgumentError("request has no done function");
  return longest;
}

absl::Status CheckIds(const Request& request, int vocab, int type_vocab) {
  const PackedBatch& input = request.input;
  FSVD_RETURN_IF_ERROR(CheckWithin(input, input.ids, vocab, "id"));
  return CheckWithin(input, input.type_ids, type_vocab, "type id");
}

}  // namespace flashsvd
