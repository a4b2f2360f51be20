#include "kernels/cuda/last_write.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace flashsvd {
namespace {

class LastWriteTest : public ::testing::Test {
 protected:
  // `count` rows of 6 elements from row `first` of a matrix, 8 elements apart.
  Rows Slice(int64_t first, int64_t count) { return {memory_.data() + first * 8, count, 6, 8}; }
  std::vector<uint16_t> memory_ = std::vector<uint16_t>(32 * 8);
  LastWrite last_;
};

TEST_F(LastWriteTest, NothingIsSettledBeforeAWriteIsKnown) {
  EXPECT_EQ(last_.SettledRows(Slice(0, 32)), 0);
}

TEST_F(LastWriteTest, RowsBesideTheWrittenOnesAreSettled) {
  last_.Set(Slice(8, 8));
  EXPECT_EQ(last_.SettledRows(Slice(16, 16)), 16);
  EXPECT_EQ(last_.SettledRows(Slice(0, 8)), 8);
}

TEST_F(LastWriteTest, RowsAheadOfTheFirstWrittenOneAreSettled) {
  last_.Set(Slice(8, 8));
  EXPECT_EQ(last_.SettledRows(Slice(0, 32)), 8);
  EXPECT_EQ(last_.SettledRows(Slice(5, 4)), 3);
  EXPECT_EQ(last_.SettledRows(Slice(8, 8)), 0);
  EXPECT_EQ(last_.SettledRows(Slice(15, 4)), 0);
}

TEST_F(LastWriteTest, AWriteOfOtherColumnsOfTheSameRowsCounts) {
  last_.Set({memory_.data() + 8 * 8 + 4, 8, 4, 8});
  EXPECT_EQ(last_.SettledRows(Slice(0, 32)), 8);
  EXPECT_EQ(last_.SettledRows(Slice(8, 1)), 0);
}

TEST_F(LastWriteTest, OtherMemoryIsSettled) {
  std::vector<uint16_t> other(64);
  last_.Set(Slice(0, 32));
  EXPECT_EQ(last_.SettledRows({other.data(), 8, 8, 8}), 8);
}

TEST_F(LastWriteTest, ForgetsOnRequest) {
  last_.Set(Slice(8, 8));
  last_.Forget();
  EXPECT_EQ(last_.SettledRows(Slice(16, 16)), 0);
}

}  // namespace
}  // namespace flashsvd
