#include "runtime/host_matrix.h"

#include <cmath>
#include <random>

#include "gtest/gtest.h"

namespace flashsvd {
namespace {

HostMatrix RandomMatrix(int rows, int cols, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  HostMatrix m(rows, cols);
  for (double& v : m.values) v = normal(generator);
  return m;
}

double MaxDifference(const HostMatrix& a, const HostMatrix& b) {
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_EQ(a.cols, b.cols);
  double worst = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    worst = std::max(worst, std::abs(a.values[i] - b.values[i]));
  }
  return worst;
}

HostMatrix Identity(int n) {
  HostMatrix m(n, n);
  for (int i = 0; i < n; ++i) m.row(i)[i] = 1;
  return m;
}

// Householder QR is backward stable: errors are a small multiple of n times the rounding unit times
// the norm, here of order sqrt(rows cols).
double Tolerance(int rows, int cols) { return 8 * cols * 2.3e-16 * std::sqrt(rows * cols); }

TEST(HostMatrixTest, MultiplyMatchesTheDefinition) {
  HostMatrix a(2, 3), b(3, 1);
  a.values = {1, 2, 3, 4, 5, 6};
  b.values = {1, 0, -1};
  EXPECT_EQ(Multiply(a, b).values, (std::vector<double>{-2, -2}));
  EXPECT_EQ(Transpose(a).values, (std::vector<double>{1, 4, 2, 5, 3, 6}));
}

TEST(HostMatrixTest, FromFloatReadsStridedRows) {
  const std::vector<float> source = {1, 2, 9, 3, 4, 9};
  EXPECT_EQ(FromFloat(source, 2, 2, 3).values, (std::vector<double>{1, 2, 3, 4}));
}

TEST(HostMatrixTest, QrReproducesItsInputWithOrthonormalColumns) {
  for (const auto& [rows, cols] : {std::pair{1, 1}, {5, 1}, {5, 5}, {64, 40}, {33, 7}}) {
    const HostMatrix a = RandomMatrix(rows, cols, rows * 100 + cols);
    const ThinQr qr = FactorQr(a);
    EXPECT_LE(MaxDifference(Multiply(qr.q, qr.r), a), Tolerance(rows, cols));
    EXPECT_LE(MaxDifference(Multiply(Transpose(qr.q), qr.q), Identity(cols)),
              Tolerance(rows, cols));
    for (int i = 1; i < cols; ++i) {
      for (int j = 0; j < i; ++j) EXPECT_EQ(qr.r.row(i)[j], 0);
    }
  }
}

TEST(HostMatrixTest, QrOfRankDeficientInputStillHasOrthonormalColumns) {
  HostMatrix a = RandomMatrix(16, 4, 7);
  for (int i = 0; i < 16; ++i) {
    a.row(i)[1] = 0;
    a.row(i)[3] = 2 * a.row(i)[0];
  }
  const ThinQr qr = FactorQr(a);
  EXPECT_LE(MaxDifference(Multiply(qr.q, qr.r), a), Tolerance(16, 4));
  EXPECT_LE(MaxDifference(Multiply(Transpose(qr.q), qr.q), Identity(4)), Tolerance(16, 4));
}

}  // namespace
}  // namespace flashsvd
