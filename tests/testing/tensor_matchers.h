#ifndef FLASHSVD_TESTS_TESTING_TENSOR_MATCHERS_H_
#define FLASHSVD_TESTS_TESTING_TENSOR_MATCHERS_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/tensor.h"

namespace flashsvd::testing {

// Unit roundoffs: half the distance from 1 to the next number.
inline constexpr double kF32Roundoff = 0x1p-24;
inline constexpr double kBF16Roundoff = 0x1p-8;
inline constexpr double kF16Roundoff = 0x1p-11;
inline double RoundoffOf(DType dtype) {
  return dtype == DType::kF32 ? kF32Roundoff : dtype == DType::kF16 ? kF16Roundoff : kBF16Roundoff;
}
// Documented absolute error of the activation approximations (kernels/cpu/isa/activation.h).
inline constexpr double kActivationError = 1.5e-6;

struct TensorError {
  double max_abs = 0;
  double rms = 0;  // root of the mean squared difference
};

inline TensorError ErrorOf(const std::vector<float>& actual, const std::vector<float>& expected) {
  TensorError error;
  double squares = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(double{actual[i]} - expected[i]);
    // A NaN compares false with everything: make it the error, not no error.
    if (!(difference <= error.max_abs)) error.max_abs = difference;
    squares += difference * difference;
  }
  if (!expected.empty()) error.rms = std::sqrt(squares / expected.size());
  return error;
}

inline TensorError Magnitude(const std::vector<float>& values) {
  return ErrorOf(values, std::vector<float>(values.size(), 0.0f));
}

inline double Cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double dot = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    dot += double{a[i]} * b[i];
    aa += double{a[i]} * a[i];
    bb += double{b[i]} * b[i];
  }
  return dot / std::sqrt(aa * bb);
}

// float32 accumulation of `terms` products against the double oracle. Rounding errors of a sum of
// random signs grow with sqrt(terms) times the size of the result: bounded here by
//   8 u sqrt(terms) max(1, max |oracle|) + kActivationError,      u = 2^-24,
// for data of unit variance; 8 covers the few roundings outside the sum and the maximum over many
// elements. The last part is there only for operations with an activation.
inline ::testing::AssertionResult NearOracleF32(const std::vector<float>& actual,
                                                const std::vector<float>& oracle, double terms,
                                                bool activation = false) {
  if (actual.size() != oracle.size()) return ::testing::AssertionFailure() << "sizes differ";
  const double bound =
      8 * kF32Roundoff * std::sqrt(terms) * std::max(1.0, Magnitude(oracle).max_abs) +
      (activation ? kActivationError : 0);
  const TensorError error = ErrorOf(actual, oracle);
  if (error.max_abs <= bound) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "max error " << error.max_abs << " above " << bound;
}

// FlashAttention's rule: a fused result errs at most twice as much as the naive chain in the same
// dtype, both against the oracle, in the maximum and in the mean square. A chain may be exact by
// luck on a few elements, while a result always carries its own last rounding, so one roundoff of
// the largest element is granted besides.
inline ::testing::AssertionResult WithinTwiceNaive(const std::vector<float>& actual,
                                                   const std::vector<float>& naive,
                                                   const std::vector<float>& oracle,
                                                   double roundoff = kBF16Roundoff) {
  if (actual.size() != oracle.size() || naive.size() != oracle.size()) {
    return ::testing::AssertionFailure() << "sizes differ";
  }
  const TensorError ours = ErrorOf(actual, oracle);
  const TensorError theirs = ErrorOf(naive, oracle);
  const TensorError size = Magnitude(oracle);
  const double max_bound = 2 * theirs.max_abs + roundoff * size.max_abs;
  const double rms_bound = 2 * theirs.rms + roundoff * size.rms;
  if (ours.max_abs <= max_bound && ours.rms <= rms_bound) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << "max error " << ours.max_abs << " (naive " << theirs.max_abs << ", bound " << max_bound
         << "), rms " << ours.rms << " (naive " << theirs.rms << ", bound " << rms_bound << ")";
}

inline ::testing::AssertionResult BitEqual(const std::vector<float>& a,
                                           const std::vector<float>& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) {
      return ::testing::AssertionFailure() << "element " << i << ": " << a[i] << " != " << b[i];
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace flashsvd::testing

#endif  // FLASHSVD_TESTS_TESTING_TENSOR_MATCHERS_H_
