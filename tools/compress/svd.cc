#include "tools/compress/svd.h"

#include <cblas.h>
#include <lapacke.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "fmt/format.h"

namespace flashsvd {
namespace {

void UseOneBlasThread() {
  static std::once_flag once;
  std::call_once(once, [] { openblas_set_num_threads(1); });
}

}  // namespace

absl::StatusOr<Svd> ComputeSvd(std::span<const float> w, int m, int n) {
  UseOneBlasThread();
  for (size_t i = 0; i < w.size(); ++i) {
    if (!std::isfinite(w[i])) {
      return absl::InvalidArgumentError(
          fmt::format("element {} is {}: not a finite number", i, w[i]));
    }
  }
  const int k = std::min(m, n);
  Svd svd{m, n, std::vector<double>(static_cast<size_t>(m) * k), std::vector<double>(k),
          std::vector<double>(static_cast<size_t>(k) * n)};
  std::vector<double> work(w.begin(), w.end());
  // The row-major W [m, n] is the column-major W' [n, m] = V diag(s) U', and LAPACK's column-major
  // V and U' are our row-major V' and U: no transposition anywhere.
  const lapack_int info = LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'S', n, m, work.data(), n, svd.s.data(),
                                         svd.vt.data(), n, svd.u.data(), k);
  if (info != 0) {
    return absl::InternalError(
        fmt::format("LAPACK dgesdd of a [{}, {}] matrix failed with info {}", m, n, info));
  }
  return svd;
}

LowRankFactors TruncateSvd(const Svd& svd, int r) {
  const int k = svd.k();
  LowRankFactors factors;
  factors.a.resize(static_cast<size_t>(r) * svd.n);
  factors.b.resize(static_cast<size_t>(svd.m) * r);
  for (int i = 0; i < r; ++i) {
    const double scale = std::sqrt(svd.s[i]);
    for (int j = 0; j < svd.n; ++j) {
      const size_t at = static_cast<size_t>(i) * svd.n + j;
      factors.a[at] = static_cast<float>(scale * svd.vt[at]);
    }
    for (int j = 0; j < svd.m; ++j) {
      factors.b[static_cast<size_t>(j) * r + i] =
          static_cast<float>(scale * svd.u[static_cast<size_t>(j) * k + i]);
    }
  }
  return factors;
}

SquaredError ProductError(std::span<const float> w, std::span<const float> a,
                          std::span<const float> b, int m, int n, int r) {
  UseOneBlasThread();
  const std::vector<double> a64(a.begin(), a.end());
  const std::vector<double> b64(b.begin(), b.end());
  std::vector<double> rest(w.begin(), w.end());
  SquaredError error;
  for (const double value : rest) error.reference += value * value;
  cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, r, -1.0, b64.data(), r, a64.data(),
              n, 1.0, rest.data(), n);
  for (const double value : rest) error.difference += value * value;
  return error;
}

}  // namespace flashsvd
