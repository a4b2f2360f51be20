#include "runtime/batch_staging.h"

#include <cstring>
#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend_factory.h"

namespace flashsvd {
namespace {

using ::testing::ElementsAre;

// A host backend whose schedule is the list of its chunk's sequence lengths.
class SchedulingBackend : public Backend {
 public:
  SchedulingBackend() : inner_(*MakeBackend({.device = "reference"})) {}

  size_t AttentionScheduleBytes(int, int num_sequences) const override {
    return ArenaAlign(sizeof(int32_t) * (1 + num_sequences));
  }
  void WriteAttentionSchedule(const int32_t* cu_seqlens, int num_sequences, int num_tokens,
                              void* host) const override {
    auto* out = static_cast<int32_t*>(host);
    *out++ = num_tokens;
    for (int s = 0; s < num_sequences; ++s) *out++ = cu_seqlens[s + 1] - cu_seqlens[s];
  }

  absl::StatusOr<Buffer> Allocate(size_t bytes) const override { return inner_->Allocate(bytes); }
  std::string_view name() const override { return "scheduling"; }
  DType dtype() const override { return DType::kF32; }
  int num_threads() const override { return 1; }
  absl::StatusOr<std::unique_ptr<Linear>> PackLinear(const LinearSource&) const override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<Buffer> Upload(const float*, size_t, DType) const override {
    return absl::UnimplementedError("");
  }
  size_t ScratchBytes(const ProjectArgs&) const override { return 0; }
  size_t ScratchBytes(const AttentionArgs&) const override { return 0; }
  size_t ScratchBytes(const ProjectAddNormArgs&) const override { return 0; }
  size_t ScratchBytes(const FeedForwardArgs&) const override { return 0; }
  absl::Status Embed(const EmbedArgs&, Stream&) const override { return absl::OkStatus(); }
  absl::Status Project(const ProjectArgs&, Scratch, Stream&) const override {
    return absl::OkStatus();
  }
  absl::Status Attention(const AttentionArgs&, Scratch, Stream&) const override {
    return absl::OkStatus();
  }
  absl::Status ProjectAddNorm(const ProjectAddNormArgs&, Scratch, Stream&) const override {
    return absl::OkStatus();
  }
  absl::Status FeedForward(const FeedForwardArgs&, Scratch, Stream&) const override {
    return absl::OkStatus();
  }
  absl::Status Pool(const PoolArgs&, Stream&) const override { return absl::OkStatus(); }
  absl::Status Synchronize(Stream&) const override { return absl::OkStatus(); }

 private:
  std::unique_ptr<Backend> inner_;
};

PackedBatch BatchOf(const std::vector<int>& lengths) {
  PackedBatch batch;
  int32_t id = 10;
  for (const int length : lengths) {
    std::vector<int32_t> ids(length);
    for (int32_t& v : ids) v = id++;
    batch.Append(ids, std::vector<int32_t>(length, length % 2));
  }
  return batch;
}

std::vector<int32_t> Ints(const int32_t* values, int count) { return {values, values + count}; }

std::vector<int32_t> ScheduleOf(const BatchChunk& chunk) {
  const auto* values = static_cast<const int32_t*>(chunk.schedule);
  return Ints(values, 1 + chunk.num_sequences);
}

class BatchStagingTest : public ::testing::Test {
 protected:
  BatchStaging Make(const BatchShape& limit, int chunk_target) {
    auto staging = BatchStaging::Create(backend_, limit, chunk_target, 4);
    EXPECT_TRUE(staging.ok()) << staging.status();
    return *std::move(staging);
  }
  SchedulingBackend backend_;
};

TEST_F(BatchStagingTest, LaysOutABatchAndItsChunks) {
  BatchStaging staging = Make({.tokens = 20, .sequences = 6, .max_seqlen = 6}, 8);
  staging.Write(BatchOf({3, 4, 0, 6, 1}), 14, 5);
  const RaggedBatch& batch = staging.batch();
  EXPECT_EQ(batch.num_tokens, 14);
  EXPECT_EQ(batch.num_sequences, 5);
  EXPECT_EQ(batch.max_seqlen, 6);
  EXPECT_THAT(Ints(batch.ids, 14),
              ElementsAre(10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23));
  EXPECT_THAT(Ints(batch.type_ids, 14), ElementsAre(1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1));
  EXPECT_THAT(Ints(batch.positions, 14), ElementsAre(0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0));
  EXPECT_THAT(Ints(batch.cu_seqlens, 6), ElementsAre(0, 3, 7, 7, 13, 14));
  EXPECT_EQ(*batch.num_present, 5);
  ASSERT_EQ(staging.chunks().size(), 2u);
  EXPECT_EQ(staging.chunks()[0].first_row, 0);
  EXPECT_EQ(staging.chunks()[0].num_rows, 7);
  EXPECT_THAT(ScheduleOf(staging.chunks()[0]), ElementsAre(7, 3, 4, 0));
  EXPECT_EQ(staging.chunks()[1].first_sequence, 3);
  EXPECT_EQ(staging.chunks()[1].first_row, 7);
  EXPECT_THAT(ScheduleOf(staging.chunks()[1]), ElementsAre(7, 6, 1));
}

TEST_F(BatchStagingTest, FillsUpToTheRecordedSizesWithTokensOfNoSequence) {
  BatchStaging staging = Make({.tokens = 8, .sequences = 4, .max_seqlen = 8}, 8);
  staging.Write(BatchOf({8}), 8, 1);  // leaves its ids behind
  staging.Write(BatchOf({2, 1}), 8, 4);
  const RaggedBatch& batch = staging.batch();
  EXPECT_THAT(Ints(batch.ids, 8), ElementsAre(10, 11, 12, 0, 0, 0, 0, 0));
  EXPECT_THAT(Ints(batch.positions, 8), ElementsAre(0, 1, 0, 0, 0, 0, 0, 0));
  EXPECT_EQ(*batch.num_present, 2);
  EXPECT_THAT(Ints(batch.cu_seqlens, 5), ElementsAre(0, 2, 3, 3, 3));
  ASSERT_EQ(staging.chunks().size(), 1u);
  EXPECT_EQ(staging.chunks()[0].num_rows, 8);
  EXPECT_THAT(ScheduleOf(staging.chunks()[0]), ElementsAre(8, 2, 1, 0, 0));
}

// The room for schedules is planned before batches are known: the worst of them must fit.
TEST_F(BatchStagingTest, HoldsEveryBatchWithinItsLimit) {
  const BatchShape limit = {.tokens = 64, .sequences = 64, .max_seqlen = 40};
  for (const int target : {1, 2, 7, 33, 64}) {
    BatchStaging staging = Make(limit, target);
    for (const int length : {1, 2, 3, 20, 33, 40}) {
      const std::vector<int> lengths(64 / length, length);
      const PackedBatch batch = BatchOf(lengths);
      staging.Write(batch, batch.num_tokens(), batch.num_sequences());
      int rows = 0;
      for (const BatchChunk& chunk : staging.chunks()) rows += chunk.num_rows;
      EXPECT_EQ(rows, batch.num_tokens()) << target << " " << length;
    }
    std::vector<int> mixed;
    for (int s = 0; s < 10; ++s) mixed.insert(mixed.end(), {0, 1, 5, 0});
    staging.Write(BatchOf(mixed), 60, 40);
  }
}

TEST_F(BatchStagingTest, CountsInputsAndOutputs) {
  const BatchShape limit = {.tokens = 64, .sequences = 9, .max_seqlen = 40};
  // Ids, types, positions and offsets, and the output; schedules come on top.
  EXPECT_GE(BatchStaging::Bytes(backend_, limit, 16, 4),
            (3 * 64 + 9 + 1) * sizeof(int32_t) + 9 * 4 * sizeof(float));
}

}  // namespace
}  // namespace flashsvd
