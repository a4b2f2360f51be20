#ifndef FLASHSVD_RUNTIME_HOST_MATRIX_H_
#define FLASHSVD_RUNTIME_HOST_MATRIX_H_

#include <cstddef>
#include <span>
#include <vector>

namespace flashsvd {

// A small row-major float64 matrix, for folding weights at load. Not for the request path.
struct HostMatrix {
  HostMatrix() = default;
  HostMatrix(int r, int c) : rows(r), cols(c), values(static_cast<size_t>(r) * c) {}

  int rows = 0;
  int cols = 0;
  std::vector<double> values;

  double* row(int i) { return values.data() + static_cast<size_t>(i) * cols; }
  const double* row(int i) const { return values.data() + static_cast<size_t>(i) * cols; }
};

// Copies [rows, cols] out of row-major float32 whose rows start `stride` elements apart.
// REQUIRES: source covers them.
HostMatrix FromFloat(std::span<const float> source, int rows, int cols, int stride);

// a [m, k] times b [k, n].
HostMatrix Multiply(const HostMatrix& a, const HostMatrix& b);
HostMatrix Transpose(const HostMatrix& a);

// a = q r by Householder reflections, q [m, n] with orthonormal columns (also where a is
// rank-deficient), r [n, n] upper triangular. REQUIRES: a.rows >= a.cols.
struct ThinQr {
  HostMatrix q;
  HostMatrix r;
};
ThinQr FactorQr(HostMatrix a);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_HOST_MATRIX_H_
