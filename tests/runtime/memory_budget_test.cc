#include "runtime/memory_budget.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend_factory.h"
#include "runtime/random_weights.h"

namespace flashsvd {
namespace {

using ::testing::HasSubstr;

constexpr int kMaxSeqlen = 64;

class MemoryBudgetTest : public ::testing::Test {
 protected:
  MemoryBudgetTest() {
    backend_ = *MakeBackend({.device = "cpu", .dtype = DType::kF32, .num_threads = 1});
    const ModelConfig config{.hidden = 32,
                             .layers = 1,
                             .heads = 2,
                             .ffn = 64,
                             .vocab = 50,
                             .max_positions = kMaxSeqlen,
                             .type_vocab = 2,
                             .layer_norm_eps = 1e-12f,
                             .max_seq_length = kMaxSeqlen};
    encoder_ = *Encoder::Create(RandomWeights({}), config, *backend_, {.chunk_tokens = 128});
  }

  size_t Total(const BatchLimits& limits) const {
    return encoder_->weight_bytes().resident +
           limits.num_slots * SlotBytes(*encoder_, limits, kMaxSeqlen);
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Encoder> encoder_;
  const BatchLimits wanted_{.max_batch_tokens = 8192, .max_batch_sequences = 256, .num_slots = 2};
};

TEST_F(MemoryBudgetTest, NoBudgetLeavesTheLimitsAlone) {
  const auto limits = FitToBudget(*encoder_, wanted_, kMaxSeqlen, 0);
  ASSERT_TRUE(limits.ok());
  EXPECT_EQ(limits->max_batch_tokens, 8192);
  EXPECT_EQ(limits->max_batch_sequences, 256);
  EXPECT_EQ(limits->num_slots, 2);
}

TEST_F(MemoryBudgetTest, TokensAreTheMostThatFit) {
  for (const size_t budget : {Total(wanted_), Total(wanted_) - 1, Total(wanted_) / 2}) {
    const auto limits = FitToBudget(*encoder_, wanted_, kMaxSeqlen, budget);
    ASSERT_TRUE(limits.ok()) << limits.status();
    EXPECT_EQ(limits->num_slots, 2);
    EXPECT_LE(Total(*limits), budget);
    if (limits->max_batch_tokens < wanted_.max_batch_tokens) {
      BatchLimits more = *limits;
      ++more.max_batch_tokens;
      EXPECT_GT(Total(more), budget);
    }
  }
}

TEST_F(MemoryBudgetTest, SlotsGoWhenTokensCannotShrinkFurther) {
  const BatchLimits least{
      .max_batch_tokens = kMaxSeqlen, .max_batch_sequences = kMaxSeqlen, .num_slots = 1};
  const auto limits = FitToBudget(*encoder_, wanted_, kMaxSeqlen, Total(least));
  ASSERT_TRUE(limits.ok()) << limits.status();
  EXPECT_EQ(limits->num_slots, 1);
  EXPECT_EQ(limits->max_batch_tokens, kMaxSeqlen);
}

TEST_F(MemoryBudgetTest, ReplicasOnOneDeviceShareItsBudget) {
  const auto one = FitToBudget(*encoder_, wanted_, kMaxSeqlen, Total(wanted_) / 2);
  const auto two = FitToBudget(*encoder_, wanted_, kMaxSeqlen, Total(wanted_) / 2 * 2, 2);
  ASSERT_TRUE(one.ok() && two.ok()) << one.status() << two.status();
  EXPECT_EQ(two->max_batch_tokens, one->max_batch_tokens);
  EXPECT_EQ(two->num_slots, one->num_slots);

  const BatchLimits least{
      .max_batch_tokens = kMaxSeqlen, .max_batch_sequences = kMaxSeqlen, .num_slots = 1};
  EXPECT_TRUE(FitToBudget(*encoder_, wanted_, kMaxSeqlen, 2 * Total(least), 2).ok());
  const auto refused = FitToBudget(*encoder_, wanted_, kMaxSeqlen, 2 * Total(least) - 1, 2);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("2 replicas on one device"));
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr(std::to_string(2 * Total(least))));
}

TEST_F(MemoryBudgetTest, TooSmallABudgetNamesTheSmallestThatWouldDo) {
  const BatchLimits least{
      .max_batch_tokens = kMaxSeqlen, .max_batch_sequences = kMaxSeqlen, .num_slots = 1};
  const auto limits = FitToBudget(*encoder_, wanted_, kMaxSeqlen, Total(least) - 1);
  ASSERT_EQ(limits.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(limits.status().message()), HasSubstr("memory_budget"));
  EXPECT_THAT(std::string(limits.status().message()), HasSubstr(std::to_string(Total(least))));
}

}  // namespace
}  // namespace flashsvd
