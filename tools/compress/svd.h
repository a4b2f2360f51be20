#ifndef FLASHSVD_TOOLS_COMPRESS_SVD_H_
#define FLASHSVD_TOOLS_COMPRESS_SVD_H_

#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace flashsvd {

// W = U diag(s) V', k = min(m, n) columns, in double. Matrices are row-major.
struct Svd {
  int m = 0;
  int n = 0;
  std::vector<double> u;   // [m, k], orthonormal columns
  std::vector<double> s;   // [k], descending
  std::vector<double> vt;  // [k, n], orthonormal rows

  int k() const { return static_cast<int>(s.size()); }
};

// Decomposes w [m, n]. InvalidArgument: a value is not finite. Internal: LAPACK did not converge.
// Thread-safe. The first call sets BLAS to one thread for the whole process: the callers run one
// matrix per thread, which is faster, and makes results independent of the number of threads.
// REQUIRES: m, n > 0, w.size() == m * n.
absl::StatusOr<Svd> ComputeSvd(std::span<const float> w, int m, int n);

// W ~ B A.
struct LowRankFactors {
  std::vector<float> a;  // [r, n], applied first
  std::vector<float> b;  // [m, r]
};

// The r leading terms, with sqrt(s) on both sides: A = sqrt(S) V', B = U sqrt(S). Balanced factors
// lose least when they are rounded to 16 bits.
// REQUIRES: 1 <= r <= svd.k().
LowRankFactors TruncateSvd(const Svd& svd, int r);

// Sums of squares, to be added up over the heads of one module.
struct SquaredError {
  double difference = 0;  // ||W - B A||_F^2
  double reference = 0;   // ||W||_F^2
};

// w [m, n], a [r, n], b [m, r]; computed in double. Thread-safe.
SquaredError ProductError(std::span<const float> w, std::span<const float> a,
                          std::span<const float> b, int m, int n, int r);

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_COMPRESS_SVD_H_
