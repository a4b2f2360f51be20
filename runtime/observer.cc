#include "runtime/observer.h"

namespace flashsvd {

std::string_view BatchCloseName(BatchClose close) {
  switch (close) {
    case BatchClose::kTokens:
      return "tokens";
    case BatchClose::kSequences:
      return "sequences";
    case BatchClose::kMemory:
      return "memory";
    case BatchClose::kEmpty:
      return "empty";
    case BatchClose::kDelay:
      return "delay";
  }
  return "?";
}

std::string_view RejectionName(Rejection reason) {
  switch (reason) {
    case Rejection::kItems:
      return "items";
    case Rejection::kTokens:
      return "tokens";
    case Rejection::kBytes:
      return "bytes";
    case Rejection::kMemory:
      return "memory";
    case Rejection::kDeadline:
      return "deadline";
    case Rejection::kDraining:
      return "draining";
    case Rejection::kInvalid:
      return "invalid";
  }
  return "?";
}

}  // namespace flashsvd
