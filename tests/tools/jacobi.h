#ifndef FLASHSVD_TESTS_TOOLS_JACOBI_H_
#define FLASHSVD_TESTS_TOOLS_JACOBI_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <span>
#include <vector>

namespace flashsvd {

// Singular values of w [m, n], descending, min(m, n) of them, by one-sided Jacobi rotations: slow,
// accurate, and nothing in common with LAPACK's dgesdd.
inline std::vector<double> JacobiSingularValues(std::span<const float> w, int m, int n) {
  const int rows = std::min(m, n);
  const int cols = std::max(m, n);
  std::vector<std::vector<double>> x(rows, std::vector<double>(cols));
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) (m <= n ? x[i][j] : x[j][i]) = w[static_cast<size_t>(i) * n + j];
  }
  const auto dot = [&](int p, int q) {
    double sum = 0;
    for (int j = 0; j < cols; ++j) sum += x[p][j] * x[q][j];
    return sum;
  };
  bool rotated = true;
  for (int sweep = 0; sweep < 60 && rotated; ++sweep) {
    rotated = false;
    for (int p = 0; p < rows; ++p) {
      for (int q = p + 1; q < rows; ++q) {
        const double pp = dot(p, p);
        const double qq = dot(q, q);
        const double pq = dot(p, q);
        if (std::abs(pq) <= 1e-15 * std::sqrt(pp * qq)) continue;
        rotated = true;
        const double zeta = (qq - pp) / (2 * pq);
        const double t = std::copysign(1.0, zeta) / (std::abs(zeta) + std::hypot(1.0, zeta));
        const double c = 1 / std::hypot(1.0, t);
        for (int j = 0; j < cols; ++j) {
          const double xp = x[p][j];
          x[p][j] = c * (xp - t * x[q][j]);
          x[q][j] = c * (t * xp + x[q][j]);
        }
      }
    }
  }
  std::vector<double> values;
  for (int p = 0; p < rows; ++p) values.push_back(std::sqrt(dot(p, p)));
  std::sort(values.begin(), values.end(), std::greater<>());
  return values;
}

}  // namespace flashsvd

#endif  // FLASHSVD_TESTS_TOOLS_JACOBI_H_
