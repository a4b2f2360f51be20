#include "tools/compress/svd.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/tools/jacobi.h"

namespace flashsvd {
namespace {

std::vector<float> RandomMatrix(int m, int n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> w(static_cast<size_t>(m) * n);
  for (float& value : w) value = normal(generator);
  return w;
}

struct Shape {
  int m, n;
};

class SvdTest : public testing::TestWithParam<Shape> {
 protected:
  const int m_ = GetParam().m;
  const int n_ = GetParam().n;
  const std::vector<float> w_ = RandomMatrix(m_, n_, 7);
};

// Both norms grow with sqrt of the size; 1e-13 leaves two digits above double rounding.
TEST_P(SvdTest, SingularVectorsAreOrthonormal) {
  const auto svd = ComputeSvd(w_, m_, n_);
  ASSERT_TRUE(svd.ok()) << svd.status();
  const int k = svd->k();
  ASSERT_EQ(k, std::min(m_, n_));
  for (int p = 0; p < k; ++p) {
    for (int q = p; q < k; ++q) {
      double u = 0;
      double v = 0;
      for (int i = 0; i < m_; ++i) u += svd->u[i * k + p] * svd->u[i * k + q];
      for (int j = 0; j < n_; ++j) v += svd->vt[p * n_ + j] * svd->vt[q * n_ + j];
      ASSERT_NEAR(u, p == q ? 1 : 0, 1e-13) << p << " " << q;
      ASSERT_NEAR(v, p == q ? 1 : 0, 1e-13) << p << " " << q;
    }
  }
}

TEST_P(SvdTest, SingularValuesEqualThoseOfJacobiRotations) {
  const auto svd = ComputeSvd(w_, m_, n_);
  ASSERT_TRUE(svd.ok()) << svd.status();
  const std::vector<double> expected = JacobiSingularValues(w_, m_, n_);
  ASSERT_EQ(svd->s.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(svd->s[i], expected[i], 1e-12 * expected[0]) << i;
  }
}

// Eckart-Young: what a truncation to rank r misses is exactly the discarded singular values. The
// factors are float, which adds at most 2u ||B|| ||A|| with ||A||^2 = ||B||^2 = sum of s.
TEST_P(SvdTest, TruncationErrorIsTheDiscardedSingularValues) {
  const auto svd = ComputeSvd(w_, m_, n_);
  ASSERT_TRUE(svd.ok()) << svd.status();
  const std::vector<double> s = JacobiSingularValues(w_, m_, n_);
  for (int r = 1; r <= svd->k(); ++r) {
    const LowRankFactors factors = TruncateSvd(*svd, r);
    double kept = 0;
    double tail = 0;
    for (int i = 0; i < svd->k(); ++i) (i < r ? kept : tail) += i < r ? s[i] : s[i] * s[i];
    double error = 0;
    double norm = 0;
    for (int i = 0; i < m_; ++i) {
      for (int j = 0; j < n_; ++j) {
        double rest = w_[i * n_ + j];
        norm += rest * rest;
        for (int q = 0; q < r; ++q) {
          rest -= static_cast<double>(factors.b[i * r + q]) * factors.a[q * n_ + j];
        }
        error += rest * rest;
      }
    }
    const double rounding = 2 * std::numeric_limits<float>::epsilon() / 2 * kept;
    EXPECT_NEAR(std::sqrt(error), std::sqrt(tail), 1.01 * rounding) << "rank " << r;
    const SquaredError reported = ProductError(w_, factors.a, factors.b, m_, n_, r);
    EXPECT_NEAR(reported.difference, error, 1e-10 * norm);
    EXPECT_NEAR(reported.reference, norm, 1e-12 * norm);
  }
}

// The split of sqrt(s) to both sides: |row i of A| = |column i of B| = sqrt(s_i).
TEST_P(SvdTest, FactorsAreBalanced) {
  const auto svd = ComputeSvd(w_, m_, n_);
  ASSERT_TRUE(svd.ok()) << svd.status();
  const int r = svd->k();
  const LowRankFactors factors = TruncateSvd(*svd, r);
  for (int q = 0; q < r; ++q) {
    double a = 0;
    double b = 0;
    for (int j = 0; j < n_; ++j) a += std::pow(factors.a[q * n_ + j], 2);
    for (int i = 0; i < m_; ++i) b += std::pow(factors.b[i * r + q], 2);
    EXPECT_NEAR(a, svd->s[q], 1e-6 * svd->s[q]);
    EXPECT_NEAR(b, svd->s[q], 1e-6 * svd->s[q]);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, SvdTest,
                         testing::Values(Shape{1, 1}, Shape{1, 9}, Shape{9, 1}, Shape{16, 16},
                                         Shape{7, 33}, Shape{33, 7}, Shape{48, 20}),
                         [](const auto& info) {
                           return std::to_string(info.param.m) + "x" + std::to_string(info.param.n);
                         });

TEST(ComputeSvdTest, ZeroMatrixGivesZeroFactors) {
  const std::vector<float> zero(12);
  const auto svd = ComputeSvd(zero, 3, 4);
  ASSERT_TRUE(svd.ok()) << svd.status();
  const LowRankFactors factors = TruncateSvd(*svd, 2);
  EXPECT_THAT(factors.a, testing::Each(0.0F));
  EXPECT_THAT(factors.b, testing::Each(0.0F));
}

TEST(ComputeSvdTest, RefusesValuesThatAreNotFinite) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    std::vector<float> w(12, 1.0F);
    w[5] = bad;
    const auto svd = ComputeSvd(w, 3, 4);
    EXPECT_EQ(svd.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(svd.status().message()), testing::HasSubstr("element 5"));
  }
}

}  // namespace
}  // namespace flashsvd
