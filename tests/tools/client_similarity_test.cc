#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/client/similarity.h"
#include "tools/client/table.h"

namespace flashsvd {
namespace {

using ::testing::HasSubstr;

TEST(ClientSimilarityTest, CosineOfKnownAngles) {
  const std::vector<float> x = {2, 0};
  const std::vector<float> y = {0, 3};
  const std::vector<float> diagonal = {1, 1};
  const std::vector<float> zero = {0, 0};
  EXPECT_DOUBLE_EQ(Cosine(x, x), 1);
  EXPECT_DOUBLE_EQ(Cosine(x, y), 0);
  EXPECT_NEAR(Cosine(x, diagonal), std::sqrt(0.5), 1e-15);
  EXPECT_DOUBLE_EQ(Cosine(x, zero), 0);
}

TEST(ClientSimilarityTest, ShadesInFiveStepsAndClampsTheRest) {
  EXPECT_STREQ(Shade(-0.5), " ");
  EXPECT_STREQ(Shade(0.19), " ");
  EXPECT_STREQ(Shade(0.2), "░");
  EXPECT_STREQ(Shade(0.79), "▓");
  EXPECT_STREQ(Shade(1.0), "█");
  EXPECT_STREQ(Shade(1.0000001), "█");
}

TEST(ClientSimilarityTest, EveryLineOfTheMatrixIsEquallyWide) {
  const std::string matrix = RenderSimilarity(
      {"short", "日本語のテキストがここにあって、とても長いので切られるはずです", "e\u0301"},
      {{1, 0}, {0, 1}, {1, 1}}, {1, 0.5, 0.25}, "to dense");
  std::vector<int> widths;
  for (size_t at = 0; at < matrix.size();) {
    const size_t end = matrix.find('\n', at);
    widths.push_back(DisplayWidth(matrix.substr(at, end - at)));
    at = end + 1;
  }
  EXPECT_THAT(widths, ::testing::ElementsAre(widths[0], widths[0], widths[0], widths[0]));
  EXPECT_THAT(matrix, HasSubstr("1.00█  0.00   0.71▓    1.0000"));
}

TEST(ClientTableTest, FitWidthCutsAtGlyphsAndPads) {
  EXPECT_EQ(FitWidth("abc", 5), "abc  ");
  EXPECT_EQ(FitWidth("abcdef", 4), "abc…");
  EXPECT_EQ(FitWidth("日本語", 5), "日本…");
  EXPECT_EQ(FitWidth("日本語", 4), "日… ");
  EXPECT_EQ(FitWidth("a\tb\x1b[0m", 7), "a b [0m");
}

TEST(ClientTableTest, AlignsTheFirstColumnLeftAndTheOthersRight) {
  Table table({"NAME", "N"});
  table.AddRow({"é", "1"});
  table.AddRow({"longer", "22"});
  EXPECT_EQ(table.Render(), "NAME     N\né        1\nlonger  22\n");
}

}  // namespace
}  // namespace flashsvd
