#include "runtime/activation_plan.h"

#include <random>

#include "gtest/gtest.h"

namespace flashsvd {
namespace {

PackedBatch BatchOf(const std::vector<int>& lengths) {
  PackedBatch batch;
  for (const int n : lengths) {
    batch.Append(std::vector<int32_t>(n, 1), std::vector<int32_t>(n, 0));
  }
  return batch;
}

TEST(ActivationPlanTest, ChunksAreWholeSequencesUpToTheTarget) {
  const PackedBatch batch = BatchOf({10, 20, 30, 5, 100, 1});
  EXPECT_EQ(ChunkEnd(batch.cu_seqlens, 0, 60), 3);
  EXPECT_EQ(ChunkEnd(batch.cu_seqlens, 0, 59), 2);
  EXPECT_EQ(ChunkEnd(batch.cu_seqlens, 3, 60), 4);
}

TEST(ActivationPlanTest, SequenceLongerThanTheTargetIsAChunkOfItsOwn) {
  const PackedBatch batch = BatchOf({10, 20, 30, 5, 100, 1});
  EXPECT_EQ(ChunkEnd(batch.cu_seqlens, 4, 60), 5);
  const BatchShape shape = ShapeOf(batch, 60);
  EXPECT_EQ(shape.chunk_tokens, 100);
  EXPECT_EQ(shape.chunk_sequences, 3);
}

TEST(ActivationPlanTest, EmptySequencesJoinTheChunkBeforeThem) {
  const PackedBatch batch = BatchOf({0, 0, 8, 0});
  EXPECT_EQ(ChunkEnd(batch.cu_seqlens, 0, 8), 4);
  const BatchShape shape = ShapeOf(batch, 8);
  EXPECT_EQ(shape.sequences, 4);
  EXPECT_EQ(shape.chunk_tokens, 8);
}

TEST(ActivationPlanTest, NoBatchWithinTheLimitsHasALargerShape) {
  std::mt19937 generator(11);
  const auto uniform = [&](int low, int high) {
    return std::uniform_int_distribution(low, high)(generator);
  };
  for (int round = 0; round < 2000; ++round) {
    const int max_seqlen = uniform(1, 64), max_tokens = max_seqlen + uniform(0, 300);
    const int max_sequences = uniform(1, 40), target = uniform(1, 128);
    std::vector<int> lengths;
    for (int tokens = 0; static_cast<int>(lengths.size()) < max_sequences;) {
      const int n = uniform(0, max_seqlen);
      if (tokens + n > max_tokens) break;
      tokens += n;
      lengths.push_back(n);
    }
    const BatchShape shape = ShapeOf(BatchOf(lengths), target);
    const BatchShape limit = ShapeLimit(max_tokens, max_sequences, max_seqlen, target);
    ASSERT_LE(shape.tokens, limit.tokens);
    ASSERT_LE(shape.sequences, limit.sequences);
    ASSERT_LE(shape.max_seqlen, limit.max_seqlen);
    ASSERT_LE(shape.chunk_tokens, limit.chunk_tokens);
    ASSERT_LE(shape.chunk_sequences, limit.chunk_sequences);
  }
}

TEST(ActivationPlanTest, DenseEquivalentCountsTheLargestPhase) {
  // d + 4 d against d + F elements a token.
  EXPECT_EQ(DenseUnfusedActivationBytes(10, 8, 32, 2), 10u * (8 + 32) * 2);
  EXPECT_EQ(DenseUnfusedActivationBytes(10, 8, 16, 4), 10u * (8 + 32) * 4);
}

}  // namespace
}  // namespace flashsvd
