#include "runtime/model.h"

#include <cstring>
#include <filesystem>
#include <latch>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/counting_new.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace flashsvd {
namespace {

using ::testing::HasSubstr;

class ModelTest : public ::testing::Test {
 protected:
  ModelTest() {
    testing::TinyModel tiny;
    tiny.files["vocab.txt"] = "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n";
    tiny.files["tokenizer_config.json"] = R"({"do_lower_case": true})";
    tiny.WriteTo(dir_);
    options_.dir = dir_.path();
    options_.backend = {.device = "cpu", .num_threads = 2};
    options_.engine.batcher.max_batch_tokens = 64;
    options_.engine.batcher.max_batch_sequences = 16;
  }

  absl::StatusOr<std::shared_ptr<Model>> Load() { return Model::Load(options_, clock_, observer_); }

  testing::TempDir dir_;
  ModelOptions options_;
  SystemClock clock_;
  Observer observer_;
};

// A request for `sequences`, and the vectors that come back.
struct Call {
  std::shared_ptr<Request> request = std::make_shared<Request>();
  std::vector<float> vectors;
  std::latch finished{1};
  RequestResult result;

  Call(const std::vector<std::vector<int32_t>>& sequences, int width) {
    for (const auto& ids : sequences) {
      request->input.Append(ids, std::vector<int32_t>(ids.size(), 0));
    }
    vectors.resize(sequences.size() * width, -1);
    request->output = reinterpret_cast<std::byte*>(vectors.data());
    request->row_stride_bytes = width * sizeof(float);
    request->done = [this](const RequestResult& r) {
      result = r;
      finished.count_down();
    };
  }
};

TEST_F(ModelTest, IsNamedAfterItsDirectoryUnlessTold) {
  auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->name(), std::filesystem::path(dir_.path()).filename());
  options_.name = "mine";
  options_.dir += "/";
  model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->name(), "mine");
}

TEST_F(ModelTest, ListsLayoutAndSizeOfEveryLinearModule) {
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  const std::vector<ModuleInfo>& modules = (*model)->modules();
  ASSERT_EQ(modules.size(), 12u);
  int64_t parameters = 0;
  for (const ModuleInfo& m : modules) parameters += m.parameters;
  EXPECT_EQ(modules[0].name, "encoder.layer.0.attention.self.query");
  EXPECT_EQ(modules[0].layout, LinearLayout::kPerHead);
  EXPECT_EQ(modules[0].parameters, 2 * 1 * 4 + 4 * 1);  // H R in + out R
  EXPECT_EQ(modules[5].layout, LinearLayout::kDense);
  EXPECT_EQ(modules[5].parameters, modules[5].dense_parameters);
  EXPECT_EQ(modules[6].layout, LinearLayout::kQkvShared);
  EXPECT_EQ(modules[6].parameters, 4 + 4);  // the basis is counted with the query
  EXPECT_EQ(modules[7].parameters, 4);
  EXPECT_EQ((*model)->encoder().weight_bytes().linear_parameters, parameters);
}

TEST_F(ModelTest, MemoryAddsUpToWhatTheBudgetAllows) {
  auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  const MemoryInfo free = (*model)->memory();
  EXPECT_EQ(free.arenas, free.activation_per_slot);
  EXPECT_EQ(free.activation_dense_unfused, 64u * (4 + 16) * 4);

  options_.engine.num_slots = 2;
  options_.memory_budget_bytes = free.weights + 2 * (free.arenas + free.io) - 1;
  model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  const MemoryInfo tight = (*model)->memory();
  EXPECT_EQ((*model)->options().engine.num_slots, 2);
  EXPECT_LT((*model)->options().engine.batcher.max_batch_tokens, 64);
  EXPECT_LE(tight.weights + tight.arenas + tight.io, options_.memory_budget_bytes);

  options_.memory_budget_bytes = free.weights;
  const absl::Status refused = Load().status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("smallest budget that would do"));
}

TEST_F(ModelTest, ReplicasTakeTheirMemoryOfEachDevice) {
  const auto one = Load();
  ASSERT_TRUE(one.ok()) << one.status();
  options_.devices = {0, 0};
  const auto two = Load();
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ((*one)->num_replicas(), 1);
  EXPECT_EQ((*two)->num_replicas(), 2);
  EXPECT_EQ((*two)->memory().weights, 2 * (*one)->memory().weights);
  EXPECT_EQ((*two)->memory().arenas, 2 * (*one)->memory().arenas);
  EXPECT_EQ((*two)->memory().io, 2 * (*one)->memory().io);
  // Both are on one device, so one with a replica on each of two takes half of it.
  EXPECT_EQ((*two)->memory().fullest_device, 2 * (*one)->memory().fullest_device);
  options_.devices = {0, 1};
  const auto apart = Load();
  ASSERT_TRUE(apart.ok()) << apart.status();
  EXPECT_EQ((*apart)->memory().fullest_device, (*one)->memory().fullest_device);
  EXPECT_EQ((*two)->load_allocations(), 2 * (*one)->load_allocations());
}

TEST_F(ModelTest, CountsDeviceAllocationsOfLoadingAndServingApart) {
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  // Three embedding tables, ten LayerNorm vectors, at least four linear maps a layer, one arena.
  EXPECT_GE((*model)->load_allocations(), 3 + 10 + 8 + 1);
  EXPECT_EQ((*model)->serve_allocations(), 0);
  ASSERT_TRUE((*model)->backend().Allocate(1).ok());
  EXPECT_EQ((*model)->serve_allocations(), 1);
}

TEST_F(ModelTest, RefusesLimitsThatCouldNotServeTheLongestInput) {
  options_.engine.batcher.max_batch_tokens = 4;  // max_seq_length is 5
  const absl::Status refused = Load().status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("max_batch_tokens: 4"));
}

TEST_F(ModelTest, RefusesATokenizerLargerThanTheEmbeddingTable) {
  dir_.Write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\n");
  const absl::Status refused = Load().status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("6 tokens"));
}

TEST_F(ModelTest, RefusesATokenizerWithNoRoomForText) {
  dir_.Write("sentence_bert_config.json", R"({"max_seq_length": 2})");
  const absl::Status refused = Load().status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("adds 2 special tokens"));
}

TEST_F(ModelTest, ServesWhatTheEncoderComputes) {
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  const std::vector<std::vector<int32_t>> sequences = {{2, 4, 3}, {2, 3}, {2, 4, 4, 1, 3}};
  Call call(sequences, 4);
  ASSERT_TRUE((*model)->engine().Submit(call.request).ok());
  call.finished.wait();
  ASSERT_TRUE(call.result.status.ok()) << call.result.status;

  const Encoder& encoder = (*model)->encoder();
  const auto slot = encoder.MakeSlot(encoder.Limit(64, 16, 5));
  ASSERT_TRUE(slot.ok());
  const auto used = encoder.Forward(call.request->input, **slot);
  ASSERT_TRUE(used.ok()) << used.status();
  EXPECT_EQ(call.vectors, std::vector<float>((*slot)->output().begin(), (*slot)->output().end()));
  EXPECT_EQ(call.result.activation_bytes, *used);
}

TEST_F(ModelTest, NothingIsAllocatedBetweenAdmissionAndTheResponse) {
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  const std::vector<std::vector<int32_t>> sequences(8, {2, 4, 4, 4, 3});
  for (int round = 0; round < 3; ++round) {
    Call call(sequences, 4);
    const std::shared_ptr<Request> request = call.request;
    const int64_t before = testing::NumAllocations();
    const bool accepted = (*model)->engine().Submit(request).ok();
    call.finished.wait();
    const int64_t allocations = testing::NumAllocations() - before;
    EXPECT_TRUE(accepted);
    EXPECT_EQ((*model)->serve_allocations(), 0);
    // The first round may still grow what is then kept.
    if (round > 0) {
      EXPECT_EQ(allocations, 0);
    }
  }
}

}  // namespace
}  // namespace flashsvd
