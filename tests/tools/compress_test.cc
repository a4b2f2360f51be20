#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/safetensors.h"
#include "tests/tools/jacobi.h"
#include "tests/tools/tiny_bert.h"
#include "tools/compress/compressor.h"

namespace flashsvd {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::HasSubstr;

// Unit roundoff of a stored matrix.
double Roundoff(DType dtype) {
  return dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
}

class CompressTest : public testing::Test {
 protected:
  CompressTest() : dir_(fs::path(testing::TempDir()) / UniqueName()) {
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }
  ~CompressTest() override { fs::remove_all(dir_); }

  static std::string UniqueName() {
    const testing::TestInfo* info = testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string("fsvd_") + info->test_suite_name() + "_" + info->name();
    std::replace(name.begin(), name.end(), '/', '_');
    return name;
  }

  CompressOptions Options() const {
    CompressOptions options;
    options.model_dir = (dir_ / "model").string();
    options.out_dir = (dir_ / "out").string();
    options.keep = 0.5;
    options.threads = 2;
    return options;
  }

  std::unique_ptr<Checkpoint> Open(const std::string& name = "out") const {
    auto checkpoint = Checkpoint::Open((dir_ / name).string());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
  }

  const fs::path dir_;
};

struct ModuleShape {
  std::string name;
  int in, out;
};

std::vector<ModuleShape> Modules() {
  constexpr int d = TinyBert::kHidden;
  std::vector<ModuleShape> modules;
  for (int i = 0; i < TinyBert::kLayers; ++i) {
    const std::string layer = "encoder.layer." + std::to_string(i) + ".";
    for (const char* name : {"query", "key", "value"}) {
      modules.push_back({layer + "attention.self." + name, d, d});
    }
    modules.push_back({layer + "attention.output.dense", d, d});
    modules.push_back({layer + "intermediate.dense", d, TinyBert::kFfn});
    modules.push_back({layer + "output.dense", TinyBert::kFfn, d});
  }
  return modules;
}

// B A, or the dense weight, in double.
std::vector<double> Product(const LinearWeights& w) {
  if (w.layout == LinearLayout::kDense) return {w.weight.begin(), w.weight.end()};
  const int rows = w.out / w.heads;
  std::vector<double> product(static_cast<size_t>(w.out) * w.in);
  for (int i = 0; i < w.out; ++i) {
    const int head = i / rows;
    for (int q = 0; q < w.rank; ++q) {
      const double b = w.b[i * w.rank + q];
      for (int j = 0; j < w.in; ++j) {
        product[i * w.in + j] += b * w.a[(head * w.rank + q) * w.in + j];
      }
    }
  }
  return product;
}

struct Norms {
  double error, reference;
};

Norms Compare(const std::vector<float>& w, const std::vector<double>& product) {
  double error = 0;
  double reference = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    error += std::pow(w[i] - product[i], 2);
    reference += std::pow(static_cast<double>(w[i]), 2);
  }
  return {std::sqrt(error), std::sqrt(reference)};
}

struct FormatCase {
  LinearLayout layout;
  DType dtype;
};

class CompressFormatTest : public CompressTest, public testing::WithParamInterface<FormatCase> {
 protected:
  CompressFormatTest() { model_.Write(dir_ / "model"); }

  CompressReport Run(CompressOptions options) const {
    options.layout = GetParam().layout;
    options.dtype = GetParam().dtype;
    auto report = Compress(options);
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *std::move(report) : CompressReport();
  }

  // Row of the report for a module.
  static ModuleReport Row(const CompressReport& report, const std::string& name) {
    for (const ModuleReport& row : report.modules) {
      if (row.name == name) return row;
    }
    ADD_FAILURE() << "no row for " << name;
    return {};
  }

  std::vector<float> Weight(const std::string& name) const {
    return Floats(model_.tensors.at(name + ".weight"));
  }

  const TinyBert model_;
};

TEST_P(CompressFormatTest, ReportedErrorsAreThoseOfTheStoredFactors) {
  const CompressReport report = Run(Options());
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  for (const ModuleShape& m : Modules()) {
    SCOPED_TRACE(m.name);
    const auto stored = checkpoint->LoadLinear(m.name, m.in, m.out, TinyBert::kHeads);
    ASSERT_TRUE(stored.ok()) << stored.status();
    const bool attention = m.name.find(".self.") != std::string::npos;
    EXPECT_EQ(stored->layout, attention ? GetParam().layout : LinearLayout::kFull);
    const LowRankModule& declared = checkpoint->lowrank_modules().at(m.name);
    EXPECT_EQ(declared.layout, stored->layout);
    EXPECT_EQ(declared.rank, stored->rank);
    EXPECT_EQ(declared.method, "svd");
    const ModuleReport row = Row(report, m.name);
    EXPECT_EQ(row.layout, stored->layout);
    EXPECT_EQ(row.rank, stored->rank);
    const Norms norms = Compare(Weight(m.name), Product(*stored));
    ASSERT_TRUE(row.relative_error.has_value());
    EXPECT_NEAR(*row.relative_error, norms.error / norms.reference, 1e-12);
    EXPECT_EQ(stored->bias, Floats(model_.tensors.at(m.name + ".bias")));
  }
}

// The factors are the best of their rank: the error of a unit is what its discarded singular values
// say, up to the rounding of A and B: (2u + u^2) ||A|| ||B||, ||A||^2 = ||B||^2 = sum of s kept.
TEST_P(CompressFormatTest, ErrorIsTheOptimumOfItsRankUpToRounding) {
  const CompressReport report = Run(Options());
  const double u = Roundoff(GetParam().dtype);
  ModelConfig config;
  config.layers = TinyBert::kLayers;
  config.hidden = TinyBert::kHidden;
  config.heads = TinyBert::kHeads;
  config.ffn = TinyBert::kFfn;
  for (const RankUnit& unit : RankUnits(config, GetParam().layout)) {
    SCOPED_TRACE(unit.modules.front());
    std::vector<float> stacked;
    double error = 0;
    for (const std::string& name : unit.modules) {
      const std::vector<float> w = Weight(name);
      stacked.insert(stacked.end(), w.begin(), w.end());
      const Norms norms = Compare(w, std::vector<double>(w.size()));
      error += std::pow(*Row(report, name).relative_error * norms.reference, 2);
    }
    const int rank = Row(report, unit.modules.front()).rank;
    const int rows = unit.out / unit.heads;
    double tail = 0;
    double rounding = 0;
    for (int head = 0; head < unit.heads; ++head) {
      const size_t size = static_cast<size_t>(rows) * unit.in;
      const auto s = JacobiSingularValues({stacked.data() + head * size, size}, rows, unit.in);
      double kept = 0;
      for (int i = 0; i < rank; ++i) kept += s[i];
      for (size_t i = rank; i < s.size(); ++i) tail += s[i] * s[i];
      rounding += std::pow((2 * u + u * u) * kept, 2);
    }
    // The first float rounding of the factors, before a 16-bit one, is the 1.01.
    EXPECT_NEAR(std::sqrt(error), std::sqrt(tail), 1.01 * std::sqrt(rounding));
  }
}

TEST_P(CompressFormatTest, KeepsItsPromiseOnParametersAndBytes) {
  const CompressReport report = Run(Options());
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_LE(report.kept(), 0.5);
  EXPECT_GT(report.kept(), 0.48);
  int64_t dense = 0;
  int64_t params = 0;
  int64_t bytes = 0;
  for (const auto& [name, entry] : checkpoint->file().tensors()) {
    if (!name.ends_with(".A") && !name.ends_with(".B")) continue;
    params += entry.elements();
    bytes += static_cast<int64_t>(entry.bytes);
  }
  for (const ModuleShape& m : Modules()) dense += static_cast<int64_t>(m.in) * m.out;
  int64_t reported_bytes = 0;
  for (const ModuleReport& row : report.modules) reported_bytes += row.bytes;
  EXPECT_EQ(report.dense_params(), dense);
  EXPECT_EQ(report.params(), params);
  EXPECT_EQ(reported_bytes, bytes);
  EXPECT_EQ(bytes, params * static_cast<int64_t>(DTypeBytes(GetParam().dtype)));
  EXPECT_EQ(report.file_bytes_before,
            static_cast<int64_t>(fs::file_size(dir_ / "model/model.safetensors")));
  EXPECT_EQ(report.file_bytes_after,
            static_cast<int64_t>(fs::file_size(dir_ / "out/model.safetensors")));
}

TEST_P(CompressFormatTest, CopiesEverythingElse) {
  const CompressReport report = Run(Options());
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  const double u = Roundoff(GetParam().dtype);
  int copied = 0;
  for (const auto& [name, tensor] : model_.tensors) {
    if (name.starts_with("encoder.") && name.ends_with(".weight") && tensor.shape.size() == 2) {
      EXPECT_EQ(checkpoint->file().Find(name), nullptr) << name << " is stored twice";
      continue;
    }
    if (tensor.dtype != "F32") continue;
    const auto values = checkpoint->LoadTensor(name, tensor.shape);
    ASSERT_TRUE(values.ok()) << values.status();
    const std::vector<float> expected = Floats(tensor);
    const double tolerance = tensor.shape.size() == 1 ? 0 : u;
    for (size_t i = 0; i < expected.size(); ++i) {
      // Below 2^-14 the steps of f16 no longer shrink.
      ASSERT_NEAR((*values)[i], expected[i], tolerance * std::max(std::abs(expected[i]), 0x1p-14F))
          << name;
    }
    ++copied;
  }
  // Embeddings 3 + 2, per layer 6 biases and 4 LayerNorm vectors, pooler 2.
  EXPECT_EQ(copied, 5 + TinyBert::kLayers * 10 + 2);
  EXPECT_EQ(checkpoint->file().Find("embeddings.position_ids"), nullptr);
  EXPECT_THAT(report.notes, Contains(HasSubstr("embeddings.position_ids (I64) left out")));
}

TEST_P(CompressFormatTest, FullRankReproducesTheWeights) {
  CompressOptions options = Options();
  const bool per_head = GetParam().layout == LinearLayout::kPerHead;
  constexpr int d = TinyBert::kHidden;
  options.ranks = {per_head ? d / TinyBert::kHeads : d, d, d};
  const CompressReport report = Run(options);
  EXPECT_GT(report.kept(), 1);
  EXPECT_THAT(report.notes, Contains(HasSubstr("warning: encoder.layer.1.attention.output.dense")));
  const double u = Roundoff(GetParam().dtype);
  for (const ModuleShape& m : Modules()) {
    // As above, with the sum of all s at most sqrt(d) ||W|| (Cauchy-Schwarz; over heads likewise);
    // a shared basis has the sums of three modules, sqrt(3) ||W|| up to their different norms.
    const double shared = GetParam().layout == LinearLayout::kQkvShared ? 3 : 1;
    const double bound = shared * 2.02 * u * std::sqrt(d);
    EXPECT_LT(*Row(report, m.name).relative_error, bound) << m.name;
    EXPECT_GT(*Row(report, m.name).relative_error, 0) << m.name;
  }
}

INSTANTIATE_TEST_SUITE_P(LayoutsAndTypes, CompressFormatTest,
                         testing::Values(FormatCase{LinearLayout::kPerHead, DType::kF32},
                                         FormatCase{LinearLayout::kPerHead, DType::kF16},
                                         FormatCase{LinearLayout::kPerHead, DType::kBF16},
                                         FormatCase{LinearLayout::kFull, DType::kF32},
                                         FormatCase{LinearLayout::kFull, DType::kF16},
                                         FormatCase{LinearLayout::kFull, DType::kBF16},
                                         FormatCase{LinearLayout::kQkvShared, DType::kF32},
                                         FormatCase{LinearLayout::kQkvShared, DType::kF16},
                                         FormatCase{LinearLayout::kQkvShared, DType::kBF16}),
                         [](const auto& info) {
                           return std::string(LinearLayoutName(info.param.layout)) + "_" +
                                  std::string(DTypeName(info.param.dtype));
                         });

TEST_F(CompressTest, KeepOneLeavesEveryModuleDense) {
  const TinyBert model;
  model.Write(dir_ / "model");
  CompressOptions options = Options();
  options.keep = 1;
  options.dtype = DType::kF32;
  const auto report = Compress(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->kept(), 1);
  EXPECT_THAT(report->notes, Contains(HasSubstr("encoder.layer.0.output.dense left dense")));
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_TRUE(checkpoint->lowrank_modules().empty());
  for (const ModuleReport& row : report->modules) {
    EXPECT_EQ(row.layout, LinearLayout::kDense);
    EXPECT_EQ(*row.relative_error, 0);
  }
}

TEST_F(CompressTest, PrefixAndShardsMakeNoDifferenceToTheFactors) {
  TinyBert().Write(dir_ / "model");
  TinyBert("bert.").WriteSharded(dir_ / "sharded");
  ASSERT_TRUE(Compress(Options()).ok());
  CompressOptions options = Options();
  options.model_dir = (dir_ / "sharded").string();
  options.out_dir = (dir_ / "out2").string();
  const auto report = Compress(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->file_bytes_before,
            static_cast<int64_t>(fs::file_size(dir_ / "sharded/model-00001-of-00002.safetensors") +
                                 fs::file_size(dir_ / "sharded/model-00002-of-00002.safetensors")));
  const auto plain = Open("out");
  const auto prefixed = Open("out2");
  ASSERT_TRUE(plain != nullptr && prefixed != nullptr);
  EXPECT_EQ(prefixed->prefix(), "bert.");
  EXPECT_FALSE(fs::exists(dir_ / "out2/model.safetensors.index.json"));
  for (const ModuleShape& m : Modules()) {
    const auto one = plain->LoadLinear(m.name, m.in, m.out, TinyBert::kHeads);
    const auto two = prefixed->LoadLinear(m.name, m.in, m.out, TinyBert::kHeads);
    ASSERT_TRUE(one.ok() && two.ok());
    EXPECT_EQ(one->a, two->a);
    EXPECT_EQ(one->b, two->b);
  }
}

TEST_F(CompressTest, NumberOfThreadsDoesNotChangeTheFile) {
  TinyBert().Write(dir_ / "model");
  CompressOptions options = Options();
  options.threads = 1;
  ASSERT_TRUE(Compress(options).ok());
  options.threads = 4;
  options.out_dir = (dir_ / "out4").string();
  ASSERT_TRUE(Compress(options).ok());
  EXPECT_EQ(ReadText(dir_ / "out/model.safetensors"), ReadText(dir_ / "out4/model.safetensors"));
}

TEST_F(CompressTest, MetadataSaysWhereTheModelComesFrom) {
  TinyBert().Write(dir_ / "model");
  ASSERT_TRUE(Compress(Options()).ok());
  const auto checkpoint = Open();
  ASSERT_NE(checkpoint, nullptr);
  const auto& metadata = checkpoint->file().metadata();
  EXPECT_EQ(metadata.at("format"), "pt");
  EXPECT_EQ(metadata.at("lowrank.format"), "1");
  EXPECT_EQ(metadata.at("lowrank.base_model"), "model");
  EXPECT_EQ(metadata.at("lowrank.dtype"), "bf16");
  EXPECT_NEAR(std::stod(metadata.at("lowrank.keep")), 0.5, 0.02);
}

TEST_F(CompressTest, CopiesFilesButNoOtherWeights) {
  const fs::path model = dir_ / "model";
  TinyBert().Write(model);
  for (const char* name :
       {"pytorch_model.bin", "onnx/model.onnx", "tf_model.h5", ".git/config", ".gitattributes",
        "2_Dense/model.safetensors", "sentencepiece.bpe.model", "tokenizer.json"}) {
    WriteText(model / name, std::string("content of ") + name);
  }
  fs::create_symlink(model / "tokenizer.json", model / "linked.json");
  ASSERT_TRUE(Compress(Options()).ok());
  for (const char* name : {"config.json", "vocab.txt", "1_Pooling/config.json", "tokenizer.json",
                           "2_Dense/model.safetensors", "sentencepiece.bpe.model", "linked.json"}) {
    EXPECT_EQ(ReadText(dir_ / "out" / name), ReadText(model / name)) << name;
  }
  EXPECT_FALSE(fs::is_symlink(dir_ / "out/linked.json"));
  for (const char* name : {"pytorch_model.bin", "onnx", "tf_model.h5", ".git", ".gitattributes"}) {
    EXPECT_FALSE(fs::exists(dir_ / "out" / name)) << name;
  }
}

TEST_F(CompressTest, CancellationLeavesNothingBehind) {
  TinyBert().Write(dir_ / "model");
  const std::atomic<bool> cancelled = true;
  CompressOptions options = Options();
  options.cancelled = &cancelled;
  EXPECT_EQ(Compress(options).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_), fs::directory_iterator()), 1);
}

}  // namespace
}  // namespace flashsvd
