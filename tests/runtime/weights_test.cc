#include "runtime/weights.h"

#include <cmath>
#include <limits>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/temp_dir.h"

namespace flashsvd {
namespace {

using ::flashsvd::testing::TempDir;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

using Shape = std::vector<int64_t>;
using Metadata = std::map<std::string, std::string>;

// 0, 1/4, 2/4, ...: exact in every dtype at these lengths.
std::vector<float> Ramp(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i) / 4;
  return values;
}

class CheckpointTest : public ::testing::Test {
 protected:
  void Add(const std::string& name, const Shape& shape, DType as = DType::kF32) {
    const int64_t count =
        std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    AddValues(name, shape, Ramp(static_cast<size_t>(count)), as);
  }

  void AddValues(const std::string& name, const Shape& shape, std::vector<float> values,
                 DType as = DType::kF32) {
    values_[name] = std::move(values);
    tensors_.push_back({name, shape, as, values_[name]});
  }

  absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const Metadata& metadata = {}) {
    const absl::Status status =
        WriteSafetensors(dir_.File("model.safetensors"), tensors_, metadata);
    EXPECT_TRUE(status.ok()) << status;
    return Checkpoint::Open(dir_.path());
  }

  std::unique_ptr<Checkpoint> Opened(const Metadata& metadata = {}) {
    auto checkpoint = Open(metadata);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
  }

  // lowrank.format and lowrank.modules.
  static Metadata LowRank(const std::string& modules) {
    return {{"lowrank.format", "1"}, {"lowrank.modules", modules}};
  }

  TempDir dir_;
  std::map<std::string, std::vector<float>> values_;
  std::vector<TensorToWrite> tensors_;
};

template <typename T>
void ExpectError(const absl::StatusOr<T>& result, absl::StatusCode code,
                 std::initializer_list<const char*> substrings) {
  EXPECT_EQ(result.status().code(), code) << result.status();
  for (const char* text : substrings) {
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(text));
  }
}

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

TEST_F(CheckpointTest, DetectsPrefixBeforeWordEmbeddings) {
  for (const std::string prefix : {"", "bert.", "model.", "a.b.c."}) {
    tensors_.clear();
    Add(prefix + "embeddings.word_embeddings.weight", {3, 2});
    Add(prefix + "x.bias", {2});
    Add("classifier.bias", {3});
    const auto checkpoint = Opened();
    ASSERT_TRUE(checkpoint);
    EXPECT_EQ(checkpoint->prefix(), prefix);
    EXPECT_TRUE(checkpoint->Has("embeddings.word_embeddings.weight"));
    EXPECT_TRUE(checkpoint->Has("x.bias"));
    EXPECT_TRUE(checkpoint->Has("classifier.bias")) << "heads stand outside the encoder";
    EXPECT_FALSE(checkpoint->Has("y.bias"));
    const auto tensor = checkpoint->LoadTensor("classifier.bias", {3});
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    EXPECT_THAT(*tensor, ElementsAre(0, 0.25, 0.5));
  }
}

TEST_F(CheckpointTest, PrefixEndsAtADot) {
  Add("my_embeddings.word_embeddings.weight", {3, 2});
  const auto checkpoint = Opened();
  ASSERT_TRUE(checkpoint);
  EXPECT_EQ(checkpoint->prefix(), "");
}

TEST_F(CheckpointTest, RefusesTwoEncoders) {
  Add("query.embeddings.word_embeddings.weight", {3, 2});
  Add("passage.embeddings.word_embeddings.weight", {3, 2});
  ExpectError(Open(), kInvalid, {"model.safetensors", "query.", "passage.", "two encoders"});
}

TEST_F(CheckpointTest, MissingCheckpointNamesBothFiles) {
  ExpectError(Checkpoint::Open(dir_.path()), absl::StatusCode::kNotFound,
              {dir_.path().c_str(), "model.safetensors", "model.safetensors.index.json"});
}

TEST_F(CheckpointTest, LoadsDenseModuleFromEveryDtype) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    tensors_.clear();
    Add("m.weight", {2, 3}, dtype);
    Add("m.bias", {2}, dtype);
    const auto checkpoint = Opened();
    ASSERT_TRUE(checkpoint);
    const auto linear = checkpoint->LoadLinear("m", 3, 2, 1);
    ASSERT_TRUE(linear.ok()) << linear.status();
    EXPECT_EQ(linear->name, "m");
    EXPECT_EQ(linear->layout, LinearLayout::kDense);
    EXPECT_EQ(linear->in, 3);
    EXPECT_EQ(linear->out, 2);
    EXPECT_EQ(linear->rank, 0);
    EXPECT_EQ(linear->weight, Ramp(6));
    EXPECT_EQ(linear->bias, Ramp(2));
    EXPECT_THAT(linear->a, IsEmpty());
    EXPECT_EQ(linear->parameters(), 6);
    EXPECT_EQ(linear->dense_parameters(), 6);
  }
}

TEST_F(CheckpointTest, LoadsFullFactors) {
  Add("m.lowrank.A", {2, 5});
  Add("m.lowrank.B", {4, 2}, DType::kBF16);
  Add("m.bias", {4});
  const auto checkpoint =
      Opened(LowRank(R"({"m": {"rank": 2, "layout": "full", "method": "svd"}})"));
  ASSERT_TRUE(checkpoint);
  ASSERT_THAT(checkpoint->lowrank_modules(), SizeIs(1));
  EXPECT_EQ(checkpoint->lowrank_modules().at("m").method, "svd");
  const auto linear = checkpoint->LoadLinear("m", 5, 4, 3);
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_EQ(linear->layout, LinearLayout::kFull);
  EXPECT_EQ(linear->rank, 2);
  EXPECT_EQ(linear->heads, 1);
  EXPECT_EQ(linear->a, Ramp(10));
  EXPECT_EQ(linear->b, Ramp(8));
  EXPECT_THAT(linear->weight, IsEmpty());
  EXPECT_EQ(linear->parameters(), 18);
  EXPECT_EQ(linear->dense_parameters(), 20);
}

TEST_F(CheckpointTest, LoadsPerHeadFactors) {
  Add("m.lowrank.A", {2, 3, 8});
  Add("m.lowrank.B", {2, 4, 3});
  Add("m.bias", {8});
  const auto checkpoint = Opened(LowRank(R"({"m": {"rank": 3, "layout": "per_head"}})"));
  ASSERT_TRUE(checkpoint);
  const auto linear = checkpoint->LoadLinear("m", 8, 8, 2);
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_EQ(linear->layout, LinearLayout::kPerHead);
  EXPECT_EQ(linear->rank, 3);
  EXPECT_EQ(linear->heads, 2);
  EXPECT_EQ(linear->a, Ramp(48));
  EXPECT_EQ(linear->b, Ramp(24));
  ExpectError(checkpoint->LoadLinear("m", 8, 8, 4), kInvalid,
              {"model.safetensors", "m.lowrank.A", "[2, 3, 8]", "[4, 3, 8]"});
  ExpectError(checkpoint->LoadLinear("m", 8, 8, 3), kInvalid,
              {"model.safetensors", "\"m\"", "3 heads"});
  ExpectError(checkpoint->LoadLinear("m", 8, 8, 0), kInvalid, {"\"m\"", "0 heads"});
}

TEST_F(CheckpointTest, QkvModulesShareOneA) {
  Add("bert.embeddings.word_embeddings.weight", {3, 6});
  Add("bert.self.shared.A", {2, 6});
  std::string modules;
  for (const std::string name : {"query", "key", "value"}) {
    Add("bert.self." + name + ".lowrank.B", {6, 2}, DType::kF16);
    Add("bert.self." + name + ".bias", {6});
    modules += std::string(modules.empty() ? "\"" : ",\"") + "bert.self." + name +
               R"(": {"rank": 2, "layout": "qkv_shared"})";
  }
  const auto checkpoint = Opened(LowRank("{" + modules + "}"));
  ASSERT_TRUE(checkpoint);
  ASSERT_THAT(checkpoint->lowrank_modules(), SizeIs(3));
  for (const std::string name : {"self.query", "self.key", "self.value"}) {
    EXPECT_EQ(checkpoint->lowrank_modules().count(name), 1u) << name;
    const auto linear = checkpoint->LoadLinear(name, 6, 6, 2);
    ASSERT_TRUE(linear.ok()) << linear.status();
    EXPECT_EQ(linear->layout, LinearLayout::kQkvShared);
    EXPECT_EQ(linear->rank, 2);
    EXPECT_EQ(linear->a, Ramp(12));
    EXPECT_EQ(linear->b, Ramp(12));
  }
}

TEST_F(CheckpointTest, MetadataMayLeaveThePrefixOut) {
  Add("bert.embeddings.word_embeddings.weight", {3, 2});
  Add("bert.m.lowrank.A", {1, 2});
  Add("bert.m.lowrank.B", {2, 1});
  Add("bert.m.bias", {2});
  const std::string fields = R"(": {"rank": 1, "layout": "full"})";
  for (const std::string name : {"m", "bert.m"}) {
    const auto checkpoint = Opened(LowRank("{\"" + name + fields + "}"));
    ASSERT_TRUE(checkpoint);
    EXPECT_EQ(checkpoint->lowrank_modules().count("m"), 1u);
    EXPECT_TRUE(checkpoint->LoadLinear("m", 2, 2, 1).ok());
  }
  ExpectError(Open(LowRank("{\"m" + fields + ",\"bert.m" + fields + "}")), kInvalid,
              {"lowrank.modules", "given twice"});
}

TEST_F(CheckpointTest, InfersLayoutsWithoutMetadata) {
  Add("bert.embeddings.word_embeddings.weight", {3, 6});
  Add("bert.f.lowrank.A", {1, 6});
  Add("bert.f.lowrank.B", {4, 1});
  Add("bert.h.lowrank.A", {2, 5, 6});
  Add("bert.h.lowrank.B", {2, 3, 5});
  Add("bert.s.shared.A", {2, 6});
  Add("bert.s.query.lowrank.B", {6, 2});
  const auto checkpoint = Opened();
  ASSERT_TRUE(checkpoint);
  const auto& modules = checkpoint->lowrank_modules();
  ASSERT_THAT(modules, SizeIs(3));
  EXPECT_EQ(modules.at("f").layout, LinearLayout::kFull);
  EXPECT_EQ(modules.at("f").rank, 1);
  EXPECT_EQ(modules.at("h").layout, LinearLayout::kPerHead);
  EXPECT_EQ(modules.at("h").rank, 5);
  EXPECT_EQ(modules.at("s.query").layout, LinearLayout::kQkvShared);
  EXPECT_EQ(modules.at("s.query").rank, 2);
}

TEST_F(CheckpointTest, RefusesToGuessBetweenOwnAndSharedA) {
  Add("s.shared.A", {2, 6});
  Add("s.query.lowrank.A", {2, 6});
  Add("s.query.lowrank.B", {6, 2});
  ExpectError(Open(), kInvalid, {"s.query.lowrank.A", "ambiguous", "s.shared.A"});
}

TEST_F(CheckpointTest, RefusesModuleBothDenseAndLowRank) {
  Add("m.lowrank.A", {1, 3});
  Add("m.lowrank.B", {2, 1});
  Add("m.weight", {2, 3});
  ExpectError(Open(), kInvalid, {"model.safetensors", "m.weight", "low-rank tensors, too"});
}

TEST_F(CheckpointTest, MissingTensorsAreNamed) {
  Add("m.weight", {2, 3});
  const auto checkpoint = Opened();
  ASSERT_TRUE(checkpoint);
  const auto code = absl::StatusCode::kNotFound;
  ExpectError(checkpoint->LoadLinear("m", 3, 2, 1), code, {"model.safetensors", "\"m.bias\""});
  ExpectError(checkpoint->LoadLinear("n", 3, 2, 1), code, {"model.safetensors", "\"n.weight\""});
  ExpectError(checkpoint->LoadTensor("t", {1}), code, {"model.safetensors", "\"t\""});
}

TEST_F(CheckpointTest, ShapeErrorsNameBothShapes) {
  Add("m.weight", {2, 3});
  Add("m.bias", {3});
  const auto checkpoint = Opened();
  ASSERT_TRUE(checkpoint);
  ExpectError(checkpoint->LoadLinear("m", 2, 3, 1), kInvalid,
              {"model.safetensors", "m.weight", "[2, 3]", "[3, 2]"});
  ExpectError(checkpoint->LoadLinear("m", 3, 2, 1), kInvalid, {"m.bias", "[3]", "[2]"});
  ExpectError(checkpoint->LoadTensor("m.bias", {3, 1}), kInvalid, {"m.bias", "[3]", "[3, 1]"});
}

TEST_F(CheckpointTest, RefusesNanAndInfinityWithTheirIndex) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      tensors_.clear();
      std::vector<float> values = Ramp(100);
      values[77] = values[80] = bad;
      AddValues("t", {10, 10}, values, dtype);
      const auto checkpoint = Opened();
      ASSERT_TRUE(checkpoint);
      ExpectError(checkpoint->LoadTensor("t", {10, 10}), kInvalid,
                  {"model.safetensors", "\"t\"", "element 77", std::isnan(bad) ? "nan" : "-inf"});
    }
  }
}

TEST_F(CheckpointTest, WarnsWhenLowRankIsLargerThanDense) {
  // Dense 36; rank 3 takes 36, rank 4 takes 48.
  Add("equal.lowrank.A", {3, 6});
  Add("equal.lowrank.B", {6, 3});
  Add("larger.lowrank.A", {4, 6});
  Add("larger.lowrank.B", {6, 4});
  Add("heads.lowrank.A", {2, 3, 6});
  Add("heads.lowrank.B", {2, 3, 3});
  // Shared rank 4: 24 + 3 * 24 of 3 * 36 is fine as a group, though 24 + 24 > 36.
  Add("s.shared.A", {4, 6});
  for (const std::string name : {"query", "key", "value"}) Add("s." + name + ".lowrank.B", {6, 4});
  const auto checkpoint = Opened();
  ASSERT_TRUE(checkpoint);
  EXPECT_THAT(checkpoint->Warnings(),
              ElementsAre(AllOf(HasSubstr("heads"), HasSubstr("54"), HasSubstr("36")),
                          AllOf(HasSubstr("larger"), HasSubstr("48"), HasSubstr("36"))));
}

TEST_F(CheckpointTest, OpensShardedCheckpointWithMetadataOfOneShard) {
  const std::vector<float> two = Ramp(2);
  const TensorToWrite a = {"m.lowrank.A", {1, 2}, DType::kF32, two};
  const TensorToWrite rest[] = {{"m.lowrank.B", {2, 1}, DType::kF32, two},
                                {"m.bias", {2}, DType::kF32, two}};
  ASSERT_TRUE(WriteSafetensors(dir_.File("1.safetensors"), {&a, 1},
                               LowRank(R"({"m": {"rank": 1, "layout": "full"}})"))
                  .ok());
  ASSERT_TRUE(WriteSafetensors(dir_.File("2.safetensors"), rest, {}).ok());
  dir_.Write("model.safetensors.index.json",
             R"({"weight_map": {"m.lowrank.A": "1.safetensors", "m.lowrank.B": "2.safetensors",
                                "m.bias": "2.safetensors"}})");
  const auto checkpoint = Checkpoint::Open(dir_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE((*checkpoint)->LoadLinear("m", 2, 2, 1).ok());
}

TEST(LinearLayoutTest, NamesAreThoseOfTheFormat) {
  EXPECT_EQ(LinearLayoutName(LinearLayout::kDense), "dense");
  EXPECT_EQ(LinearLayoutName(LinearLayout::kFull), "full");
  EXPECT_EQ(LinearLayoutName(LinearLayout::kPerHead), "per_head");
  EXPECT_EQ(LinearLayoutName(LinearLayout::kQkvShared), "qkv_shared");
}

}  // namespace
}  // namespace flashsvd
