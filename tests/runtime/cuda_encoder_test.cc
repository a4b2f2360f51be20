// The encoder on a CUDA device: against the independent forward pass, against itself in other
// batches, for as long as a server runs. Skips without a device.

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "fmt/format.h"
#include "gtest/gtest.h"
#include "kernels/backend_factory.h"
#include "nlohmann/json.hpp"
#include "runtime/encoder.h"
#include "runtime/model_config.h"
#include "runtime/random_weights.h"
#include "runtime/weights.h"

namespace flashsvd {
namespace {

struct CudaCase {
  std::string path;
  DType dtype;
};

std::string NameOf(const ::testing::TestParamInfo<CudaCase>& info) {
  return info.param.path + "_" + std::string(DTypeName(info.param.dtype));
}

// An encoder with a slot, on a backend that may be shared.
struct Loaded {
  std::unique_ptr<Encoder> encoder;
  std::unique_ptr<ExecutionSlot> slot;

  std::vector<float> Run(const PackedBatch& batch) const {
    const auto used = encoder->Forward(batch, *slot);
    EXPECT_TRUE(used.ok()) << used.status();
    return {slot->output().begin(), slot->output().end()};
  }
};

Loaded Load(const WeightSource& weights, const ModelConfig& config, const Backend& backend,
            int max_tokens, int max_sequences, int chunk_tokens = 0) {
  auto encoder = Encoder::Create(weights, config, backend, {.chunk_tokens = chunk_tokens});
  EXPECT_TRUE(encoder.ok()) << encoder.status();
  auto slot =
      (*encoder)->MakeSlot((*encoder)->Limit(max_tokens, max_sequences, config.max_positions));
  EXPECT_TRUE(slot.ok()) << slot.status();
  return {*std::move(encoder), *std::move(slot)};
}

double Norm(const float* a, const float* b, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += std::pow(double{a[i]} - (b == nullptr ? 0 : b[i]), 2);
  return std::sqrt(sum);
}

class CudaEncoderTest : public ::testing::TestWithParam<CudaCase> {
 protected:
  void SetUp() override {
    if (!HasCuda()) GTEST_SKIP() << "no CUDA device";
    auto backend =
        MakeBackend({.device = "cuda", .dtype = GetParam().dtype, .cuda_path = GetParam().path});
    if (!backend.ok()) GTEST_SKIP() << backend.status();
    backend_ = *std::move(backend);
    config_ = {.model_type = "bert",
               .hidden = 128,
               .layers = 2,
               .heads = 4,
               .ffn = 320,
               .vocab = 500,
               .max_positions = 512,
               .type_vocab = 2,
               .layer_norm_eps = 1e-12f,
               .max_seq_length = 512};
  }

  std::vector<int32_t> RandomIds(int length) {
    std::vector<int32_t> ids(length);
    for (int32_t& id : ids) id = std::uniform_int_distribution<int32_t>(0, 499)(generator_);
    return ids;
  }

  std::unique_ptr<Backend> backend_;
  ModelConfig config_;
  std::mt19937 generator_{7};
};

PackedBatch BatchOf(const std::vector<std::vector<int32_t>>& sequences) {
  PackedBatch batch;
  for (const auto& ids : sequences) batch.Append(ids, std::vector<int32_t>(ids.size(), 0));
  return batch;
}

TEST_P(CudaEncoderTest, MatchesTheIndependentForwardPass) {
  // tests/golden, or where the environment says it lies on the machine with the device.
  const char* elsewhere = std::getenv("FLASHSVD_TEST_DATA");
  const std::string data = elsewhere != nullptr ? elsewhere : FSVD_TEST_DATA;
  for (const char* model : {"dense", "per_head", "full", "qkv_shared", "mixed"}) {
    SCOPED_TRACE(model);
    const std::string dir = data + "/encoder/" + model;
    std::ifstream file(dir + "/golden.json");
    ASSERT_TRUE(file.good()) << dir;
    const nlohmann::json golden = nlohmann::json::parse(file);
    const std::vector<std::vector<int32_t>> sequences = golden["sequences"];
    const std::vector<std::vector<double>> pooled = golden["pooled"];
    const PackedBatch batch = BatchOf(sequences);
    const auto config = LoadModelConfig(dir);
    ASSERT_TRUE(config.ok()) << config.status();
    const auto checkpoint = Checkpoint::Open(dir);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const std::vector<float> got =
        Load(**checkpoint, *config, *backend_, batch.num_tokens(), batch.num_sequences())
            .Run(batch);
    double difference = 0, norm = 0;
    size_t i = 0;
    for (const auto& row : pooled) {
      for (const double v : row) {
        difference += std::pow(got[i++] - v, 2);
        norm += v * v;
      }
    }
    // Twice the error of a plain chain in bf16; f16 rounds eight times finer.
    const double naive = golden["naive_bf16_relative_error"];
    const double bound = 2 * naive / (GetParam().dtype == DType::kF16 ? 8 : 1);
    EXPECT_LE(std::sqrt(difference / norm), bound);
  }
}

TEST_P(CudaEncoderTest, RecordedPassesEqualDirectOnes) {
  for (const LinearLayout layout : {LinearLayout::kPerHead, LinearLayout::kFull}) {
    const RandomWeights weights({.layout = layout, .rank_qkv = 12, .rank_ffn = 48, .rank_out = 40});
    // Chunks of fewer tokens than the smallest recording: nothing is recorded.
    const Loaded direct = Load(weights, config_, *backend_, 2048, 64, 15);
    const Loaded recorded = Load(weights, config_, *backend_, 2048, 64);
    for (const std::vector<int>& lengths :
         {std::vector<int>{1}, {16}, {17, 3}, {100, 1, 1, 90}, {512, 512, 512, 511}}) {
      std::vector<std::vector<int32_t>> sequences;
      for (const int length : lengths) sequences.push_back(RandomIds(length));
      const PackedBatch batch = BatchOf(sequences);
      const std::vector<float> a = recorded.Run(batch), b = direct.Run(batch);
      ASSERT_EQ(a.size(), b.size());
      const int count = static_cast<int>(a.size());
      // Two layers, each of which may round a few values the other way.
      const double u = GetParam().dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
      EXPECT_LE(Norm(a.data(), b.data(), count), 4 * u * Norm(b.data(), nullptr, count))
          << lengths.size();
    }
  }
}

size_t FreeDeviceMemory() {
  size_t free = 0, total = 0;
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  return free;
}

// What a server does all day: batches of any composition, none of which may change a sequence's
// vector beyond rounding, allocate, or leave anything behind.
TEST_P(CudaEncoderTest, RandomBatchesNeitherMismatchNorAllocateNorLeak) {
  constexpr int kSequences = 300, kBatches = 10000, kMaxTokens = 3000, kMaxSequences = 64;
  const RandomWeights weights(
      {.layout = LinearLayout::kPerHead, .rank_qkv = 20, .rank_ffn = 60, .rank_out = 50});
  const int d = config_.hidden;
  const auto cpu = MakeBackend({.device = "cpu", .dtype = DType::kF32});
  ASSERT_TRUE(cpu.ok());
  const Loaded exact = Load(weights, config_, **cpu, 512, 1);
  const Loaded device = Load(weights, config_, *backend_, kMaxTokens, kMaxSequences, 1024);

  std::vector<std::vector<int32_t>> sequences;
  std::vector<float> alone;
  double worst = 0;  // relative error of a sequence alone
  for (int s = 0; s < kSequences; ++s) {
    const bool is_long = s % 10 == 0;
    sequences.push_back(
        RandomIds(std::uniform_int_distribution<int>(1, is_long ? 512 : 80)(generator_)));
    const PackedBatch batch = BatchOf({sequences.back()});
    const std::vector<float> got = device.Run(batch), want = exact.Run(batch);
    worst = std::max(worst, Norm(got.data(), want.data(), d) / Norm(want.data(), nullptr, d));
    alone.insert(alone.end(), got.begin(), got.end());
  }
  EXPECT_LT(worst, GetParam().dtype == DType::kF16 ? 0.01 : 0.05);

  const int64_t allocations = backend_->num_allocations();
  const size_t free = FreeDeviceMemory();
  for (int b = 0; b < kBatches; ++b) {
    std::vector<int> chosen;
    std::vector<std::vector<int32_t>> members;
    const int wanted = std::uniform_int_distribution<int>(1, kMaxSequences)(generator_);
    for (int tokens = 0; static_cast<int>(chosen.size()) < wanted;) {
      const int s = std::uniform_int_distribution<int>(0, kSequences - 1)(generator_);
      tokens += static_cast<int>(sequences[s].size());
      if (tokens > kMaxTokens) break;
      chosen.push_back(s);
      members.push_back(sequences[s]);
    }
    const std::vector<float> got = device.Run(BatchOf(members));
    for (size_t i = 0; i < chosen.size(); ++i) {
      const float* reference = alone.data() + size_t(chosen[i]) * d;
      ASSERT_LE(Norm(got.data() + i * d, reference, d), worst * Norm(reference, nullptr, d))
          << "batch " << b << ", sequence " << i << " of " << chosen.size();
    }
  }
  EXPECT_EQ(backend_->num_allocations(), allocations);
  EXPECT_EQ(FreeDeviceMemory(), free);
}

TEST_P(CudaEncoderTest, SlotsRunSideBySide) {
  const RandomWeights weights(
      {.layout = LinearLayout::kPerHead, .rank_qkv = 20, .rank_ffn = 60, .rank_out = 50});
  const Loaded first = Load(weights, config_, *backend_, 1024, 16);
  const PackedBatch batch = BatchOf({RandomIds(300), RandomIds(5), RandomIds(77)});
  const std::vector<float> expected = first.Run(batch);
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    auto slot = first.encoder->MakeSlot(first.encoder->Limit(1024, 16, 512));
    ASSERT_TRUE(slot.ok()) << slot.status();
    threads.emplace_back([&, own = std::shared_ptr<ExecutionSlot>(*std::move(slot))] {
      for (int i = 0; i < 200; ++i) {
        ASSERT_TRUE(first.encoder->Forward(batch, *own).ok());
        const std::vector<float> got(own->output().begin(), own->output().end());
        ASSERT_EQ(got, expected);  // the same batch gives the same bits
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(CudaEncoderTest, OutOfMemoryAtLoadSaysWhatWasNeededAndWhatWasFree) {
  const RandomWeights weights(
      {.layout = LinearLayout::kPerHead, .rank_qkv = 20, .rank_ffn = 60, .rank_out = 50});
  const Loaded loaded = Load(weights, config_, *backend_, 512, 1);
  const auto slot = loaded.encoder->MakeSlot({.tokens = 2000000000,
                                              .sequences = 1,
                                              .max_seqlen = 512,
                                              .chunk_tokens = 2048,
                                              .chunk_sequences = 1});
  ASSERT_FALSE(slot.ok());
  EXPECT_EQ(slot.status().code(), absl::StatusCode::kResourceExhausted);
  const std::string message(slot.status().message());
  EXPECT_NE(message.find("MiB of device memory"), std::string::npos) << message;
  EXPECT_NE(message.find("are free"), std::string::npos) << message;
  // And the device goes on working.
  EXPECT_EQ(loaded.Run(BatchOf({{1, 2, 3}})).size(), static_cast<size_t>(config_.hidden));
}

INSTANTIATE_TEST_SUITE_P(All, CudaEncoderTest,
                         ::testing::Values(CudaCase{"sm80", DType::kBF16},
                                           CudaCase{"sm80", DType::kF16},
                                           CudaCase{"sm90", DType::kBF16},
                                           CudaCase{"sm90", DType::kF16}),
                         NameOf);

}  // namespace
}  // namespace flashsvd
