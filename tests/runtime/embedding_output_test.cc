#include "runtime/embedding_output.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/float_convert.h"

namespace flashsvd {
namespace {

// At an odd address, as a protobuf string may leave it.
class Rows {
 public:
  Rows(int rows, int width) : bytes_(1 + sizeof(float) * rows * width) {}
  explicit Rows(const std::vector<float>& values) : Rows(1, static_cast<int>(values.size())) {
    std::memcpy(data(), values.data(), sizeof(float) * values.size());
  }
  std::byte* data() { return bytes_.data() + 1; }
  template <typename T>
  T at(size_t i) {
    T value;
    std::memcpy(&value, data() + sizeof(T) * i, sizeof(T));
    return value;
  }
  void set(size_t i, float value) {
    std::memcpy(data() + sizeof(float) * i, &value, sizeof(float));
  }

 private:
  std::vector<std::byte> bytes_;
};

float Input(int row, int column) {
  return static_cast<float>((row * 31 + column + 1) * 37 % 101 - 50) / 7.0f;
}

Rows SampleRows(int rows, int width) {
  Rows data(rows, width);
  for (int s = 0; s < rows; ++s) {
    for (int i = 0; i < width; ++i) data.set(static_cast<size_t>(s) * width + i, Input(s, i));
  }
  return data;
}

struct Case {
  int rows, width, dimensions;
  bool normalize;
  DType dtype;
};

class EmbeddingOutputTest : public ::testing::TestWithParam<Case> {};

TEST_P(EmbeddingOutputTest, EqualsStepByStepComputation) {
  const Case& c = GetParam();
  Rows data = SampleRows(c.rows, c.width);
  const auto bytes =
      FormatEmbeddings(data.data(), c.rows, c.width, {c.dimensions, c.normalize, c.dtype});
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(*bytes, c.rows * c.dimensions * DTypeBytes(c.dtype));
  for (int s = 0; s < c.rows; ++s) {
    double sum = 0;
    for (int i = 0; i < c.dimensions; ++i) sum += double{Input(s, i)} * Input(s, i);
    const double norm = c.normalize ? std::sqrt(sum) : 1;
    for (int i = 0; i < c.dimensions; ++i) {
      const double expected = Input(s, i) / norm;
      const size_t at = static_cast<size_t>(s) * c.dimensions + i;
      float actual = 0, unit_roundoff = 0;
      switch (c.dtype) {
        case DType::kF32:
          actual = data.at<float>(at), unit_roundoff = 0x1p-23f;
          break;
        case DType::kF16:
          actual = FloatFromF16(data.at<uint16_t>(at)), unit_roundoff = 0x1p-10f;
          break;
        case DType::kBF16:
          actual = FloatFromBf16(data.at<uint16_t>(at)), unit_roundoff = 0x1p-7f;
          break;
      }
      // 2^-24 is the smallest float16.
      EXPECT_NEAR(actual, expected, std::abs(expected) * unit_roundoff + 0x1p-24)
          << "row " << s << ", component " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Formats, EmbeddingOutputTest,
    ::testing::Values(Case{3, 384, 384, true, DType::kF32}, Case{3, 384, 384, false, DType::kF32},
                      Case{5, 33, 32, true, DType::kF32}, Case{4, 33, 1, false, DType::kF32},
                      Case{3, 384, 384, true, DType::kF16}, Case{5, 37, 19, true, DType::kF16},
                      Case{3, 384, 384, false, DType::kBF16}, Case{7, 9, 9, true, DType::kBF16},
                      Case{1, 1, 1, true, DType::kF32}, Case{0, 8, 8, true, DType::kF32}));

TEST(EmbeddingOutputTest, KeepsUnnormalisedFloatsBitForBit) {
  Rows data = SampleRows(2, 11);
  ASSERT_TRUE(FormatEmbeddings(data.data(), 2, 11, {.dimensions = 11}).ok());
  for (int s = 0; s < 2; ++s) {
    for (int i = 0; i < 11; ++i) EXPECT_EQ(data.at<float>(s * 11 + i), Input(s, i));
  }
}

TEST(EmbeddingOutputTest, LeavesZeroVectorZero) {
  Rows data(std::vector<float>(8, 0.0f));
  ASSERT_TRUE(FormatEmbeddings(data.data(), 1, 8, {.dimensions = 8, .normalize = true}).ok());
  for (int i = 0; i < 8; ++i) EXPECT_EQ(data.at<float>(i), 0.0f);
}

TEST(EmbeddingOutputTest, NormalisesVectorsWhoseSquaresOverflowFloat) {
  Rows data(std::vector<float>{3e30f, 4e30f});
  ASSERT_TRUE(FormatEmbeddings(data.data(), 1, 2, {.dimensions = 2, .normalize = true}).ok());
  EXPECT_FLOAT_EQ(data.at<float>(0), 0.6f);
  EXPECT_FLOAT_EQ(data.at<float>(1), 0.8f);
}

TEST(EmbeddingOutputTest, NamesRowThatIsNotFinite) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Rows data = SampleRows(3, 5);
    data.set(2 * 5 + 4, bad);
    const auto bytes = FormatEmbeddings(data.data(), 3, 5, {.dimensions = 5});
    EXPECT_EQ(bytes.status().code(), absl::StatusCode::kInternal);
    EXPECT_EQ(bytes.status().message(), "the embedding of input 2 has a value that is not finite");
    // What is cut off does not count.
    data = SampleRows(3, 5);
    data.set(2 * 5 + 4, bad);
    EXPECT_TRUE(FormatEmbeddings(data.data(), 3, 5, {.dimensions = 4}).ok());
  }
}

}  // namespace
}  // namespace flashsvd
