#ifndef FLASHSVD_KERNELS_STATUS_MACROS_H_
#define FLASHSVD_KERNELS_STATUS_MACROS_H_

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// FSVD_RETURN_IF_ERROR(expr): returns the status of `expr` from the enclosing function unless OK.
#define FSVD_RETURN_IF_ERROR(expr)                                \
  do {                                                            \
    if (::absl::Status fsvd_status = (expr); !fsvd_status.ok()) { \
      return fsvd_status;                                         \
    }                                                             \
  } while (0)

#define FSVD_MACRO_CONCAT_INNER(a, b) a##b
#define FSVD_MACRO_CONCAT(a, b) FSVD_MACRO_CONCAT_INNER(a, b)

// FSVD_ASSIGN_OR_RETURN(lhs, expr): assigns the value of the StatusOr `expr` to `lhs` (which may
// declare a variable), or returns its status.
#define FSVD_ASSIGN_OR_RETURN(lhs, expr) \
  FSVD_ASSIGN_OR_RETURN_IMPL(FSVD_MACRO_CONCAT(fsvd_or_, __LINE__), lhs, expr)
#define FSVD_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                               \
  if (!tmp.ok()) return std::move(tmp).status();   \
  lhs = *std::move(tmp)

// FSVD_CHECK(condition, format, ...): a broken invariant aborts with values. For programming
// errors only; bad input is an absl::Status.
#define FSVD_CHECK(condition, ...)                                                         \
  do {                                                                                     \
    if (!(condition)) [[unlikely]] {                                                       \
      ::std::fprintf(stderr, "%s:%d: check failed: %s: ", __FILE__, __LINE__, #condition); \
      ::std::fprintf(stderr, __VA_ARGS__);                                                 \
      ::std::fputc('\n', stderr);                                                          \
      ::std::abort();                                                                      \
    }                                                                                      \
  } while (0)

#endif  // FLASHSVD_KERNELS_STATUS_MACROS_H_
