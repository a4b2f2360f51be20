#include "runtime/host_matrix.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/status_macros.h"

namespace flashsvd {

HostMatrix FromFloat(std::span<const float> source, int rows, int cols, int stride) {
  HostMatrix m(rows, cols);
  for (int i = 0; i < rows; ++i) {
    const float* from = source.data() + static_cast<size_t>(i) * stride;
    std::copy(from, from + cols, m.row(i));
  }
  return m;
}

HostMatrix Multiply(const HostMatrix& a, const HostMatrix& b) {
  FSVD_CHECK(a.cols == b.rows, "[%d, %d] times [%d, %d]", a.rows, a.cols, b.rows, b.cols);
  HostMatrix c(a.rows, b.cols);
  for (int i = 0; i < a.rows; ++i) {
    double* out = c.row(i);
    for (int k = 0; k < a.cols; ++k) {
      const double scale = a.row(i)[k];
      const double* from = b.row(k);
      for (int j = 0; j < b.cols; ++j) out[j] += scale * from[j];
    }
  }
  return c;
}

HostMatrix Transpose(const HostMatrix& a) {
  HostMatrix t(a.cols, a.rows);
  for (int i = 0; i < a.rows; ++i) {
    for (int j = 0; j < a.cols; ++j) t.row(j)[i] = a.row(i)[j];
  }
  return t;
}

namespace {

// Applies I - 2 v v' / (v'v), v in rows [k, m), to columns [from, cols) of `m`.
void Reflect(const std::vector<double>& v, int k, int from, HostMatrix* m) {
  double norm = 0;
  for (int i = k; i < m->rows; ++i) norm += v[i] * v[i];
  if (norm == 0) return;
  for (int j = from; j < m->cols; ++j) {
    double dot = 0;
    for (int i = k; i < m->rows; ++i) dot += v[i] * m->row(i)[j];
    const double scale = 2 * dot / norm;
    for (int i = k; i < m->rows; ++i) m->row(i)[j] -= scale * v[i];
  }
}

}  // namespace

ThinQr FactorQr(HostMatrix a) {
  FSVD_CHECK(a.rows >= a.cols, "thin QR of [%d, %d]", a.rows, a.cols);
  const int n = a.cols;
  std::vector<std::vector<double>> reflectors(n, std::vector<double>(a.rows));
  for (int k = 0; k < n; ++k) {
    std::vector<double>& v = reflectors[k];
    double norm = 0;
    for (int i = k; i < a.rows; ++i) {
      v[i] = a.row(i)[k];
      norm += v[i] * v[i];
    }
    v[k] += std::copysign(std::sqrt(norm), v[k]);
    Reflect(v, k, k, &a);
  }
  ThinQr qr{HostMatrix(a.rows, n), HostMatrix(n, n)};
  for (int i = 0; i < n; ++i) {
    std::copy(a.row(i) + i, a.row(i) + n, qr.r.row(i) + i);
    qr.q.row(i)[i] = 1;
  }
  for (int k = n - 1; k >= 0; --k) Reflect(reflectors[k], k, 0, &qr.q);
  return qr;
}

}  // namespace flashsvd
