#ifndef FLASHSVD_RUNTIME_REQUEST_CHECK_H_
#define FLASHSVD_RUNTIME_REQUEST_CHECK_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/request.h"

namespace flashsvd {

// The length of the longest sequence, if the request can be queued at all. InvalidArgument: no
// sequence, one that is empty or longer than max_seqlen, offsets that do not match the ids, no
// `done`.
absl::StatusOr<int> CheckShape(const Request& request, int max_seqlen);

// InvalidArgument, naming sequence and position: an id outside [0, vocab), a type id outside
// [0, type_vocab).
// REQUIRES: CheckShape passes.
absl::Status CheckIds(const Request& request, int vocab, int type_vocab);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_REQUEST_CHECK_H_
