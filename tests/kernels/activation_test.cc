// The activation approximations of every instruction set against double.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/kernel_table.h"
#include "tests/testing/tensor_matchers.h"

namespace flashsvd::testing {
namespace {

std::vector<float> Apply(const std::string& isa, int activation, const std::vector<float>& x) {
  std::vector<float> y(x.size());
  KernelsFor(isa, DType::kF32).activate(activation, x.data(), y.data(), static_cast<int>(x.size()));
  return y;
}

// Dense around zero, and out to where the exact tails begin.
std::vector<float> Inputs() {
  std::vector<float> x;
  for (int i = -104000; i < 104000; ++i) x.push_back(i * 1.25e-4f);
  return x;
}

double GeluExact(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
double GeluTanhExact(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double SiluExact(double x) { return x / (1 + std::exp(-x)); }

class ActivationTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const std::string& isa : AvailableIsas()) {
      if (isa == GetParam()) return;
    }
    GTEST_SKIP() << "this CPU lacks " << GetParam();
  }

  double MaxError(int activation, const std::function<double(double)>& exact) const {
    const std::vector<float> x = Inputs(), y = Apply(GetParam(), activation, x);
    double error = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double difference = std::abs(y[i] - exact(x[i]));
      if (!(difference <= error)) error = difference;
    }
    return error;
  }
};

TEST_P(ActivationTest, GeluIsWithinItsDocumentedErrorOfDoubleErf) {
  EXPECT_LE(MaxError(kCpuGelu, GeluExact), kActivationError);
}

// Relative errors of 2^x (3e-7) and of the roundings around it, times |x| up to 13.
TEST_P(ActivationTest, GeluTanhAndSiluFollowTheirFormula) {
  EXPECT_LE(MaxError(kCpuGeluTanh, GeluTanhExact), 13 * 5e-7);
  EXPECT_LE(MaxError(kCpuSilu, SiluExact), 13 * 5e-7);
  EXPECT_EQ(MaxError(kCpuRelu, [](double x) { return x > 0 ? x : 0; }), 0);
  EXPECT_EQ(MaxError(kCpuNone, [](double x) { return x; }), 0);
}

TEST_P(ActivationTest, TailsAreExactAndNanStaysNan) {
  std::vector<float> x(16, 0.0f);
  x[0] = 1e30f;
  x[1] = -1e30f;
  x[2] = 100;
  x[3] = -100;
  x[4] = std::numeric_limits<float>::quiet_NaN();
  for (int activation : {kCpuGelu, kCpuGeluTanh, kCpuRelu, kCpuSilu}) {
    SCOPED_TRACE(activation);
    const std::vector<float> y = Apply(GetParam(), activation, x);
    EXPECT_EQ(y[0], 1e30f);
    EXPECT_EQ(y[2], 100);
    EXPECT_NEAR(y[1], 0, 1e-6);
    EXPECT_NEAR(y[3], 0, 1e-6);
    EXPECT_TRUE(std::isnan(y[4]));
    EXPECT_EQ(y[5], 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ActivationTest, ::testing::ValuesIn(CompiledIsas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace flashsvd::testing
