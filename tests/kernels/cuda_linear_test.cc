// The packed form of weights, on the host: no device is needed.

#include "kernels/cuda/cuda_linear.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/float_convert.h"
#include "tests/testing/random_tensor.h"

namespace flashsvd::testing {
namespace {

// Element (i, j) of a packed matrix that starts at `offset` of the image, by packed_matrix.h.
float Element(const LinearImage& image, size_t offset, const PackedMatrix& w, int i, int j,
              DType dtype) {
  uint16_t bits;
  const size_t index = (static_cast<size_t>(j) / 8 * w.n_padded + i) * 8 + j % 8;
  std::memcpy(&bits, image.bytes.data() + offset + 2 * index, sizeof(bits));
  return WidenFloat(dtype, bits);
}

TEST(CudaLinearTest, PacksEveryElementAndZerosThePadding) {
  for (const auto& [n, k] : {std::pair{1, 1}, {8, 16}, {13, 31}, {240, 100}, {5, 17}}) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      SCOPED_TRACE(::testing::Message() << n << " x " << k);
      const RandomLinear linear(k, n, 0, 3);
      const LinearImage image = PackLinearImage(linear.source(), dtype);
      const PackedMatrix& w = image.first;
      EXPECT_EQ(w.n, n);
      EXPECT_EQ(w.k, k);
      EXPECT_EQ(w.n_padded % 8, 0);
      EXPECT_EQ(w.k_padded % 16, 0);
      for (int i = 0; i < w.n_padded; ++i) {
        for (int j = 0; j < w.k_padded; ++j) {
          const bool inside = i < n && j < k;
          const float expected =
              inside ? RoundTo(dtype, linear.source().weight[size_t(i) * k + j]) : 0;
          ASSERT_EQ(Element(image, 0, w, i, j, dtype), expected) << i << ", " << j;
        }
      }
      for (int i = 0; i < w.n_padded; ++i) {
        float bias;
        std::memcpy(&bias, image.bytes.data() + image.bias_offset + sizeof(float) * i, 4);
        ASSERT_EQ(bias, i < n ? linear.source().bias[i] : 0);
      }
    }
  }
}

TEST(CudaLinearTest, KeepsAPairThatIsMuchSmallerThanItsProduct) {
  const RandomLinear linear(96, 80, 9, 3);
  const LinearImage image = PackLinearImage(linear.source(), DType::kF16);
  EXPECT_EQ(image.rank, 9);
  for (int r = 0; r < 9; ++r) {
    EXPECT_EQ(Element(image, 0, image.first, r, 95, DType::kF16),
              RoundTo(DType::kF16, linear.source().a[r * 96 + 95]));
    EXPECT_EQ(Element(image, image.second_offset, image.second, 79, r, DType::kF16),
              RoundTo(DType::kF16, linear.source().b[79 * 9 + r]));
  }
}

TEST(CudaLinearTest, MultipliesOutAPairThatIsHardlySmaller) {
  // 64 x 64 against 30 x 128: the product has 7% more elements.
  const RandomLinear linear(64, 64, 30, 3);
  const LinearImage image = PackLinearImage(linear.source(), DType::kF16);
  EXPECT_EQ(image.rank, 0);
  for (const auto& [i, j] : {std::pair{0, 0}, {63, 63}, {17, 40}}) {
    double product = 0;
    for (int r = 0; r < 30; ++r) {
      product += double{linear.source().b[i * 30 + r]} * linear.source().a[r * 64 + j];
    }
    // One rounding of the product to f16, one of the sum of 30 to float.
    EXPECT_NEAR(Element(image, 0, image.first, i, j, DType::kF16), product,
                0x1p-11 * std::abs(product) + 1e-6);
  }
}

TEST(CudaLinearTest, StacksTheFirstFactorsOfGroupsAtAlignedRowsAndKeepsTheSecondApart) {
  constexpr int kIn = 40, kOut = 22, kRank = 5, kGroups = 2;  // 22 x 40 is 880, the pairs 510
  const RandomLinear linear(kIn, kOut, kRank, 3, kGroups);
  const LinearImage image = PackLinearImage(linear.source(), DType::kF16);
  EXPECT_EQ(image.rank, kRank);
  EXPECT_EQ(image.groups, kGroups);
  EXPECT_EQ(image.first.n, 16);
  EXPECT_EQ(image.second.n, 11);
  for (int group = 0; group < kGroups; ++group) {
    for (int r = 0; r < 8; ++r) {
      const float expected =
          r < kRank ? RoundTo(DType::kF16, linear.source().a[(group * kRank + r) * kIn + 39]) : 0;
      EXPECT_EQ(Element(image, 0, image.first, group * 8 + r, 39, DType::kF16), expected);
    }
    const int last = group * 11 + 10;
    EXPECT_EQ(Element(image, image.second_offset + group * image.second_bytes, image.second, 10, 4,
                      DType::kF16),
              RoundTo(DType::kF16, linear.source().b[last * kRank + 4]));
    float bias;
    std::memcpy(&bias, &image.bytes[image.bias_offset + group * image.bias_bytes + 4 * 10], 4);
    EXPECT_EQ(bias, linear.source().bias[last]);
  }
}

TEST(CudaLinearTest, LeavesOutABiasThatIsNotThere) {
  const std::vector<float> weight(4, 1.0f);
  const LinearImage image =
      PackLinearImage({.in = 2, .out = 2, .weight = weight.data()}, DType::kBF16);
  EXPECT_FALSE(image.has_bias);
}

}  // namespace
}  // namespace flashsvd::testing
