#include "runtime/encoder.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend_factory.h"
#include "kernels/cpu/isa.h"
#include "nlohmann/json.hpp"
#include "runtime/model_config.h"
#include "runtime/random_weights.h"
#include "runtime/weights.h"
#include "tests/testing/counting_new.h"
#include "tests/testing/painted_backend.h"

namespace flashsvd {
namespace {

using ::testing::HasSubstr;

// What tests/golden/encoder/make.py computed in float64 numpy.
struct Golden {
  std::vector<std::vector<int32_t>> sequences;
  std::vector<std::vector<double>> pooled;
  double naive_bf16_relative_error = 0;
};

Golden ReadGolden(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  const nlohmann::json json = nlohmann::json::parse(file);
  return {json["sequences"], json["pooled"], json["naive_bf16_relative_error"]};
}

PackedBatch Pack(const std::vector<std::vector<int32_t>>& sequences) {
  PackedBatch batch;
  for (const auto& ids : sequences) batch.Append(ids, std::vector<int32_t>(ids.size(), 0));
  return batch;
}

PackedBatch UniformBatch(int sequences, int length, int vocab) {
  PackedBatch batch;
  for (int s = 0; s < sequences; ++s) {
    std::vector<int32_t> ids(length);
    for (int t = 0; t < length; ++t) ids[t] = (s * 31 + t * 7 + 1) % vocab;
    batch.Append(ids, std::vector<int32_t>(length, 0));
  }
  return batch;
}

std::unique_ptr<Backend> Cpu(DType dtype, const std::string& isa = "", int num_threads = 2) {
  auto backend =
      MakeBackend({.device = "cpu", .dtype = dtype, .num_threads = num_threads, .cpu_isa = isa});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return *std::move(backend);
}

// An encoder and a slot that holds `batch`.
struct Loaded {
  std::unique_ptr<Encoder> encoder;
  std::unique_ptr<ExecutionSlot> slot;

  std::vector<float> Run(const PackedBatch& batch) {
    const auto used = encoder->Forward(batch, *slot);
    EXPECT_TRUE(used.ok()) << used.status();
    return {slot->output().begin(), slot->output().end()};
  }
};

Loaded Load(const WeightSource& weights, const ModelConfig& config, const Backend& backend,
            int max_tokens, int max_sequences, EncoderOptions options = {}) {
  auto encoder = Encoder::Create(weights, config, backend, options);
  EXPECT_TRUE(encoder.ok()) << encoder.status();
  auto slot =
      (*encoder)->MakeSlot((*encoder)->Limit(max_tokens, max_sequences, config.max_positions));
  EXPECT_TRUE(slot.ok()) << slot.status();
  return {*std::move(encoder), *std::move(slot)};
}

Loaded LoadDirectory(const std::string& dir, const Backend& backend, const PackedBatch& batch,
                     EncoderOptions options = {}) {
  const auto config = LoadModelConfig(dir);
  EXPECT_TRUE(config.ok()) << config.status();
  const auto checkpoint = Checkpoint::Open(dir);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return Load(**checkpoint, *config, backend, batch.num_tokens(), batch.num_sequences(), options);
}

double RelativeError(const std::vector<float>& got, const std::vector<std::vector<double>>& want) {
  double difference = 0, norm = 0;
  size_t i = 0;
  for (const auto& row : want) {
    for (const double v : row) {
      difference += std::pow(got[i++] - v, 2);
      norm += v * v;
    }
  }
  EXPECT_EQ(i, got.size());
  return std::sqrt(difference / norm);
}

ModelConfig SmallConfig() {
  return {.model_type = "bert",
          .hidden = 64,
          .layers = 2,
          .heads = 4,
          .ffn = 128,
          .vocab = 100,
          .max_positions = 512,
          .type_vocab = 2,
          .layer_norm_eps = 1e-12f,
          .max_seq_length = 512};
}

// --- against the independent forward pass -------------------------------------------------------

struct GoldenCase {
  std::string model;
  DType dtype;
  std::string isa;
  bool streaming;
};

class EncoderGoldenTest : public ::testing::TestWithParam<GoldenCase> {};

std::vector<GoldenCase> GoldenCases() {
  std::vector<GoldenCase> cases;
  for (const char* model : {"dense", "per_head", "full", "qkv_shared", "mixed"}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const char* isa : {"portable", "avx2", "avx512", "avx512_bf16"}) {
        for (const bool streaming : {true, false}) cases.push_back({model, dtype, isa, streaming});
      }
    }
  }
  return cases;
}

// f32: the bound. bf16: at most twice the error of a plain unfused bf16 chain.
TEST_P(EncoderGoldenTest, EqualsTheLowRankProductInFloat64) {
  const GoldenCase& c = GetParam();
  if (!::testing::Value(AvailableIsas(), ::testing::Contains(c.isa))) {
    GTEST_SKIP() << "this CPU has no " << c.isa;
  }
  const std::string dir = fmt::format("{}/encoder/{}", FSVD_TEST_DATA, c.model);
  const Golden golden = ReadGolden(dir + "/golden.json");
  const PackedBatch batch = Pack(golden.sequences);
  const auto backend = Cpu(c.dtype, c.isa);
  Loaded loaded =
      LoadDirectory(dir, *backend, batch, {.chunk_tokens = 40, .streaming = c.streaming});
  const double bound = c.dtype == DType::kF32 ? 1e-5 : 2 * golden.naive_bf16_relative_error;
  EXPECT_LE(RelativeError(loaded.Run(batch), golden.pooled), bound);
}

INSTANTIATE_TEST_SUITE_P(All, EncoderGoldenTest, ::testing::ValuesIn(GoldenCases()),
                         [](const auto& info) {
                           const GoldenCase& c = info.param;
                           return fmt::format("{}_{}_{}_{}", c.model, DTypeName(c.dtype), c.isa,
                                              c.streaming ? "streaming" : "unfused");
                         });

class MiniLmTest : public ::testing::TestWithParam<DType> {};

TEST_P(MiniLmTest, EqualsTheFloat64ForwardPass) {
  const std::string dir = FSVD_MODELS "/all-MiniLM-L6-v2";
  if (!std::filesystem::exists(dir + "/model.safetensors")) {
    GTEST_SKIP() << dir << " is not there; tools/fetch-model.sh brings it";
  }
  const Golden golden = ReadGolden(FSVD_TEST_DATA "/encoder/minilm.json");
  const PackedBatch batch = Pack(golden.sequences);
  const auto backend = Cpu(GetParam());
  Loaded loaded = LoadDirectory(dir, *backend, batch);
  const std::vector<float> got = loaded.Run(batch);
  size_t i = 0;
  for (const std::vector<double>& want : golden.pooled) {
    double dot = 0, got_norm = 0, want_norm = 0;
    for (size_t j = 0; j < want.size(); ++j) {
      dot += got[i + j] * want[j];
      got_norm += got[i + j] * got[i + j];
      want_norm += want[j] * want[j];
    }
    got_norm = std::sqrt(got_norm);
    want_norm = std::sqrt(want_norm);
    EXPECT_GE(dot / (got_norm * want_norm), GetParam() == DType::kF32 ? 0.999999 : 0.999);
    if (GetParam() == DType::kF32) {
      for (size_t j = 0; j < want.size(); ++j) {
        EXPECT_NEAR(got[i + j] / got_norm, want[j] / want_norm, 1e-4);
      }
    }
    i += want.size();
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, MiniLmTest, ::testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

// --- the same whatever it is batched with --------------------------------------------------------

TEST(EncoderTest, BatchCompositionChangesNothing) {
  const RandomWeights weights(
      {.layout = LinearLayout::kPerHead, .rank_qkv = 7, .rank_ffn = 21, .rank_out = 13});
  const auto backend = Cpu(DType::kF32, "", 3);
  const ModelConfig config = SmallConfig();
  Loaded loaded = Load(weights, config, *backend, 4096, 64, {.chunk_tokens = 100});

  std::vector<std::vector<int32_t>> all;
  for (const int length : {1, 40, 3, 300, 17, 64, 8, 511, 2, 33}) {
    all.push_back(std::vector<int32_t>());
    for (int t = 0; t < length; ++t) all.back().push_back((t * 13 + length) % config.vocab);
  }
  const std::vector<float> together = loaded.Run(Pack(all));
  for (size_t s = 0; s < all.size(); ++s) {
    const std::vector<float> alone = loaded.Run(Pack({all[s]}));
    const std::vector<float> pair = loaded.Run(Pack({all[(s + 1) % all.size()], all[s]}));
    for (int j = 0; j < config.hidden; ++j) {
      ASSERT_NEAR(alone[j], together[s * config.hidden + j], 1e-6) << "sequence " << s;
      ASSERT_NEAR(alone[j], pair[config.hidden + j], 1e-6) << "sequence " << s;
    }
  }
}

// --- the memory contract -------------------------------------------------------------------------

struct MemoryCase {
  LinearLayout layout;
  DType dtype;
  bool streaming;
};

class EncoderMemoryTest : public ::testing::TestWithParam<MemoryCase> {};

TEST_P(EncoderMemoryTest, PlannedBytesEqualTheHighWaterMark) {
  const MemoryCase& c = GetParam();
  const RandomWeights weights({.layout = c.layout, .rank_qkv = 6, .rank_ffn = 24, .rank_out = 20});
  ModelConfig config = SmallConfig();
  config.layers = 1;
  testing::PaintedBackend backend(Cpu(c.dtype));
  auto encoder =
      Encoder::Create(weights, config, backend, {.chunk_tokens = 1024, .streaming = c.streaming});
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  for (const auto& [sequences, length] :
       {std::pair{1, 1}, {1, 16}, {3, 17}, {8, 128}, {5, 511}, {64, 512}}) {
    const PackedBatch batch = UniformBatch(sequences, length, config.vocab);
    const BatchShape limit = (*encoder)->Limit(sequences * length, sequences, length);
    auto slot = (*encoder)->MakeSlot(limit);
    ASSERT_TRUE(slot.ok());
    const auto used = (*encoder)->Forward(batch, **slot);
    ASSERT_TRUE(used.ok()) << used.status();

    const BatchShape shape = ShapeOf(batch, c.streaming ? 1024 : batch.num_tokens());
    EXPECT_EQ(*used, (*encoder)->Plan(shape).total_bytes);
    EXPECT_LE(*used, (*slot)->arena().capacity());
    // What the bookkeeping says is what the memory shows: nothing beyond the plan is written, and
    // of the plan all but the end of the last scratch is.
    EXPECT_TRUE(backend.GuardIntact());
    EXPECT_LE(backend.TouchedBytes(), *used);
    const ActivationPlan plan = (*encoder)->Plan(shape);
    EXPECT_GE(backend.TouchedBytes(), std::max(plan.context.end(), plan.hidden.end()));
  }
}

INSTANTIATE_TEST_SUITE_P(All, EncoderMemoryTest,
                         ::testing::Values(MemoryCase{LinearLayout::kPerHead, DType::kF32, true},
                                           MemoryCase{LinearLayout::kPerHead, DType::kBF16, true},
                                           MemoryCase{LinearLayout::kFull, DType::kBF16, true},
                                           MemoryCase{LinearLayout::kQkvShared, DType::kBF16, true},
                                           MemoryCase{LinearLayout::kDense, DType::kBF16, true},
                                           MemoryCase{LinearLayout::kDense, DType::kBF16, false}),
                         [](const auto& info) {
                           return fmt::format("{}_{}_{}", LinearLayoutName(info.param.layout),
                                              DTypeName(info.param.dtype),
                                              info.param.streaming ? "fused" : "unfused");
                         });

TEST(EncoderTest, BertBaseAt32x512FitsIntoFortyMebibytes) {
  auto config = NamedShape("bert-base");
  ASSERT_TRUE(config.ok());
  config->layers = 1;  // every layer reuses the same buffers
  config->vocab = 10;
  const RandomWeights weights(
      {.layout = LinearLayout::kPerHead, .rank_qkv = 40, .rank_ffn = 240, .rank_out = 240});
  const auto backend = Cpu(DType::kBF16);
  const auto encoder = Encoder::Create(weights, *config, *backend, {});
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  const BatchShape shape = ShapeOf(UniformBatch(32, 512, config->vocab), 2048);
  EXPECT_LE((*encoder)->Plan(shape).total_bytes, size_t{40} << 20);
  EXPECT_GE((*encoder)->Plan(shape).total_bytes, size_t{24} << 20);  // X alone
}

TEST(EncoderTest, ForwardAllocatesNothing) {
  const RandomWeights weights(
      {.layout = LinearLayout::kPerHead, .rank_qkv = 6, .rank_ffn = 24, .rank_out = 20});
  const auto backend = Cpu(DType::kBF16);
  const ModelConfig config = SmallConfig();
  Loaded loaded = Load(weights, config, *backend, 2048, 16);
  const PackedBatch batch = UniformBatch(16, 128, config.vocab);
  ASSERT_TRUE(loaded.encoder->Forward(batch, *loaded.slot).ok());
  const int64_t before = testing::NumAllocations();
  const bool ok = loaded.encoder->Forward(batch, *loaded.slot).ok();
  EXPECT_EQ(testing::NumAllocations() - before, 0);
  EXPECT_TRUE(ok);
}

// A device with graphs, as far as the encoder sees: what is recorded runs at once.
class RecordingBackend : public testing::PaintedBackend {
 public:
  using PaintedBackend::PaintedBackend;
  bool can_record() const override { return true; }
  absl::StatusOr<std::unique_ptr<Graph>> Record(
      Stream&, const std::function<absl::Status()>& enqueue) const override {
    const absl::Status status = enqueue();
    if (!status.ok()) return status;
    ++recorded;
    return std::make_unique<Graph>();
  }
  absl::Status Replay(const Graph&, Stream&) const override {
    ++replayed;
    return absl::OkStatus();
  }
  absl::Status Embed(const EmbedArgs& args, Stream& stream) const override {
    embedded.push_back(args.batch.num_tokens);
    return PaintedBackend::Embed(args, stream);
  }

  mutable int recorded = 0;
  mutable int replayed = 0;
  mutable std::vector<int> embedded;  // tokens
};

TEST(EncoderTest, RecordsSmallBatchesAndWarmsUpForLargeOnes) {
  const RandomWeights weights(
      {.layout = LinearLayout::kPerHead, .rank_qkv = 6, .rank_ffn = 24, .rank_out = 20});
  const RecordingBackend backend(Cpu(DType::kF32));
  const ModelConfig config = SmallConfig();
  Loaded loaded = Load(weights, config, backend, 200, 3, {.chunk_tokens = 100});
  // Recorded up to a chunk; then batches of up to the limit, for what is launched directly.
  EXPECT_EQ(backend.recorded, 5);
  EXPECT_THAT(backend.embedded, ::testing::ElementsAre(16, 32, 48, 64, 96, 200, 150, 112));
  backend.embedded.clear();

  ASSERT_TRUE(loaded.encoder->Forward(UniformBatch(3, 20, config.vocab), *loaded.slot).ok());
  EXPECT_EQ(backend.replayed, 1);  // 60 tokens as 64
  EXPECT_TRUE(backend.embedded.empty());
  ASSERT_TRUE(loaded.encoder->Forward(UniformBatch(3, 40, config.vocab), *loaded.slot).ok());
  EXPECT_EQ(backend.replayed, 1);
  EXPECT_THAT(backend.embedded, ::testing::ElementsAre(120));
}

// --- refusals ------------------------------------------------------------------------------------

TEST(EncoderTest, RefusesWhatTheModelCannotRead) {
  const RandomWeights weights(RandomWeightsOptions{});
  const auto backend = Cpu(DType::kF32);
  ModelConfig config = SmallConfig();
  config.max_positions = 32;
  Loaded loaded = Load(weights, config, *backend, 64, 4);
  const auto run = [&](std::vector<int32_t> ids, std::vector<int32_t> types) {
    PackedBatch batch;
    batch.Append(ids, types);
    return loaded.encoder->Forward(batch, *loaded.slot).status();
  };
  EXPECT_TRUE(run({1, 99}, {0, 1}).ok());
  EXPECT_THAT(std::string(run({1, 100}, {0, 0}).message()),
              HasSubstr("sequence 0: token 1 has id 100, the vocabulary has 100"));
  EXPECT_THAT(std::string(run({1, -1}, {0, 0}).message()), HasSubstr("id -1"));
  EXPECT_THAT(std::string(run({1, 2}, {0, 2}).message()), HasSubstr("type 2"));

  Loaded wide = {std::move(loaded.encoder), nullptr};
  wide.slot = *wide.encoder->MakeSlot(wide.encoder->Limit(64, 4, 64));
  const auto status = wide.encoder->Forward(UniformBatch(1, 33, 100), *wide.slot).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("33 tokens, the model has 32 positions"));
}

}  // namespace
}  // namespace flashsvd
