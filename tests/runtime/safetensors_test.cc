#include "runtime/safetensors.h"

#include <sys/stat.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/float_convert.h"
#include "tests/testing/temp_dir.h"

namespace flashsvd {
namespace {

using ::flashsvd::testing::TempDir;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const char* const kGolden = FSVD_TEST_DATA "/safetensors/";

std::unique_ptr<SafetensorsFile> OpenOrDie(const std::string& path) {
  auto file = SafetensorsFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  return file.ok() ? *std::move(file) : nullptr;
}

std::vector<float> Floats(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry* entry = file.Find(name);
  if (entry == nullptr) {
    ADD_FAILURE() << name << " is missing";
    return {};
  }
  std::vector<float> out(static_cast<size_t>(entry->elements()));
  const absl::Status status = ToFloat(*entry, out);
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

// Equality of bits, so that signed zeros and NaNs count.
bool SameBits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

std::string SafetensorsBytes(const std::string& header, size_t data_bytes) {
  std::string out(8, '\0');
  const uint64_t length = header.size();
  std::memcpy(out.data(), &length, 8);
  return out + header + std::string(data_bytes, '\x01');
}

TEST(SafetensorsTest, ReadsFileOfReferenceImplementation) {
  const auto golden = OpenOrDie(std::string(kGolden) + "golden.safetensors");
  const auto widened = OpenOrDie(std::string(kGolden) + "widened.safetensors");
  ASSERT_TRUE(golden && widened);
  EXPECT_EQ(golden->tensors().size(), 6u);
  EXPECT_EQ(golden->metadata().at("made_by"), "tests/golden/safetensors/make.py");
  EXPECT_EQ(golden->Find("source.f16")->dtype, "F16");
  EXPECT_EQ(golden->Find("source.bf16")->dtype, "BF16");
  for (const char* name : {"source.f16", "source.bf16"}) {
    EXPECT_TRUE(SameBits(Floats(*golden, name), Floats(*widened, name))) << name;
  }
  EXPECT_THAT(Floats(*golden, "matrix"), ElementsAre(0, 0.25, 0.5, 0.75, 1, 1.25));
  EXPECT_THAT(golden->Find("matrix")->shape, ElementsAre(2, 3));
  EXPECT_THAT(golden->Find("scalar")->shape, ElementsAre());
  EXPECT_EQ(golden->Find("scalar")->elements(), 1);
  EXPECT_THAT(Floats(*golden, "scalar"), ElementsAre(2.5f));
  EXPECT_THAT(golden->Find("empty")->shape, ElementsAre(3, 0, 2));
  EXPECT_TRUE(Floats(*golden, "empty").empty());
  EXPECT_EQ(golden->Find("no such tensor"), nullptr);
}

TEST(SafetensorsTest, WritesTheBytesOfReferenceImplementation) {
  const std::string golden_path = std::string(kGolden) + "golden.safetensors";
  const auto golden = OpenOrDie(golden_path);
  ASSERT_TRUE(golden);
  const std::vector<float> source = Floats(*golden, "source");
  const std::vector<float> matrix = Floats(*golden, "matrix");
  const std::vector<float> scalar = {2.5f};
  const int64_t n = static_cast<int64_t>(source.size());
  const TensorToWrite tensors[] = {
      {"empty", {3, 0, 2}, DType::kF32, {}},      {"matrix", {2, 3}, DType::kF32, matrix},
      {"scalar", {}, DType::kF32, scalar},        {"source", {n}, DType::kF32, source},
      {"source.bf16", {n}, DType::kBF16, source}, {"source.f16", {n}, DType::kF16, source}};
  const TempDir dir;
  const absl::Status status = WriteSafetensors(dir.File("out.safetensors"), tensors,
                                               {{"made_by", "tests/golden/safetensors/make.py"}});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(dir.Read("out.safetensors"), testing::ReadFile(golden_path));
}

TEST(SafetensorsTest, RoundTripsEveryDtypeAtOddOffsets) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  // More than one block of the writer; odd lengths leave the float32 tensor misaligned.
  std::vector<float> values(40001);
  for (float& value : values) value = normal(random);
  const std::vector<float> three = {1, -2, 3};
  const TensorToWrite tensors[] = {{"odd.f16", {3}, DType::kF16, three},
                                   {"f32", {40001}, DType::kF32, values},
                                   {"odd.bf16", {3, 1}, DType::kBF16, three},
                                   {"f16", {40001}, DType::kF16, values},
                                   {"bf16", {1, 40001}, DType::kBF16, values}};
  const TempDir dir;
  ASSERT_TRUE(WriteSafetensors(dir.File("x.safetensors"), tensors, {}).ok());
  const auto file = OpenOrDie(dir.File("x.safetensors"));
  ASSERT_TRUE(file);
  EXPECT_TRUE(file->metadata().empty());
  EXPECT_NE(reinterpret_cast<uintptr_t>(file->Find("f32")->data) % 4, 0u);
  EXPECT_TRUE(SameBits(Floats(*file, "f32"), values));
  EXPECT_EQ(Floats(*file, "odd.f16"), three);
  EXPECT_EQ(Floats(*file, "odd.bf16"), three);
  std::vector<float> expected = values;
  for (float& value : expected) value = FloatFromF16(F16FromFloat(value));
  EXPECT_TRUE(SameBits(Floats(*file, "f16"), expected));
  expected = values;
  for (float& value : expected) value = FloatFromBf16(Bf16FromFloat(value));
  EXPECT_TRUE(SameBits(Floats(*file, "bf16"), expected));
}

TEST(SafetensorsTest, PadsHeaderToEightBytes) {
  const TempDir dir;
  const std::vector<float> one = {1};
  for (const std::string name : {"a", "ab", "abc", "abcd", "abcde", "abcdef", "abcdefg"}) {
    const TensorToWrite tensor = {name, {1}, DType::kF32, one};
    ASSERT_TRUE(WriteSafetensors(dir.File("x"), {&tensor, 1}, {}).ok());
    EXPECT_EQ((dir.Read("x").size() - 4) % 8, 0u) << name;
    EXPECT_TRUE(OpenOrDie(dir.File("x"))) << name;
  }
}

TEST(SafetensorsTest, KeepsNamesAndMetadataThatNeedEscapes) {
  const std::string odd = "a\"b\\c\nd\u00e9\U0001f600";
  const std::vector<float> one = {1};
  const TensorToWrite tensor = {odd, {1}, DType::kF32, one};
  const TempDir dir;
  ASSERT_TRUE(WriteSafetensors(dir.File("x"), {&tensor, 1}, {{odd, odd}}).ok());
  const auto file = OpenOrDie(dir.File("x"));
  ASSERT_TRUE(file);
  EXPECT_NE(file->Find(odd), nullptr);
  EXPECT_EQ(file->metadata().at(odd), odd);
}

TEST(SafetensorsTest, WriterRefusesWhatNoReaderCouldTake) {
  const TempDir dir;
  const std::vector<float> two = {1, 70000};
  const auto write = [&](std::vector<TensorToWrite> tensors) {
    return WriteSafetensors(dir.File("x"), tensors, {});
  };
  const TensorToWrite good = {"t", {2}, DType::kF32, two};
  struct Case {
    absl::Status status;
    const char* message;
  };
  const Case cases[] = {
      {write({good, good}), "\"t\": the name is taken"},
      {write({{"__metadata__", {2}, DType::kF32, two}}), "\"__metadata__\""},
      {write({{"t", {3}, DType::kF32, two}}), "shape [3] does not hold 2 values"},
      {write({{"t", {-2, -1}, DType::kF32, two}}), "shape [-2, -1] is negative"},
      {write({{"t", {int64_t{1} << 40, int64_t{1} << 40}, DType::kF32, two}}), "too large"},
      {write({{"t\xff", {2}, DType::kF32, two}}), "not UTF-8"},
      {write({{"t", {2}, DType::kF16, two}}), "element 1, 70000, is too large for f16"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(c.status.code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(std::string(c.status.message()), HasSubstr(c.message));
    EXPECT_THAT(std::string(c.status.message()), HasSubstr(dir.File("x")));
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(SafetensorsTest, FailedWriteLeavesOldFileAlone) {
  const TempDir dir;
  dir.Write("x", "old");
  const std::vector<float> huge = {std::numeric_limits<float>::max()};
  const TensorToWrite tensor = {"t", {1}, DType::kBF16, huge};
  EXPECT_FALSE(WriteSafetensors(dir.File("x"), {&tensor, 1}, {}).ok());
  EXPECT_EQ(dir.Read("x"), "old");
  EXPECT_FALSE(WriteSafetensors(dir.File("missing/x"), {}, {}).ok());
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
}

TEST(SafetensorsTest, ReplacesOpenFileWithoutTouchingItsReaders) {
  const TempDir dir;
  const std::vector<float> before = {1}, after = {2};
  const TensorToWrite first = {"t", {1}, DType::kF32, before},
                      second = {"t", {1}, DType::kF32, after};
  ASSERT_TRUE(WriteSafetensors(dir.File("x"), {&first, 1}, {}).ok());
  const auto open = OpenOrDie(dir.File("x"));
  ASSERT_TRUE(open);
  ASSERT_TRUE(WriteSafetensors(dir.File("x"), {&second, 1}, {}).ok());
  EXPECT_EQ(Floats(*open, "t"), before);
  EXPECT_EQ(Floats(*OpenOrDie(dir.File("x")), "t"), after);
}

TEST(SafetensorsTest, RefusesToConvertIntegers) {
  const auto file = OpenOrDie(std::string(kGolden) + "widened.safetensors");
  ASSERT_TRUE(file);
  std::vector<float> out(4);
  const absl::Status status = ToFloat(*file->Find("position_ids"), out);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("I64"));
}

TEST(SafetensorsTest, NotFoundNamesTheFile) {
  const TempDir dir;
  dir.Write("file", "");
  for (const std::string& path : {dir.File("none"), dir.File("none/x"), dir.File("file/x")}) {
    const auto file = SafetensorsFile::Open(path);
    EXPECT_EQ(file.status().code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(path));
  }
}

TEST(SafetensorsTest, RefusesDirectoryAndPipe) {
  const TempDir dir;
  ASSERT_EQ(mkfifo(dir.File("pipe").c_str(), 0600), 0);
  for (const std::string& path : {dir.path(), dir.File("pipe")}) {
    const auto file = SafetensorsFile::Open(path);
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(path));
  }
}

TEST(SafetensorsTest, AcceptsNoTensors) {
  const TempDir dir;
  dir.Write("x", SafetensorsBytes("{}", 0));
  const auto file = OpenOrDie(dir.File("x"));
  ASSERT_TRUE(file);
  EXPECT_TRUE(file->tensors().empty());
}

TEST(SafetensorsTest, AcceptsZeroSizedTensorsBetweenOthers) {
  const TempDir dir;
  dir.Write("x", SafetensorsBytes(R"({"c":{"dtype":"U8","shape":[0],"data_offsets":[3,3]},
      "b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},
      "z":{"dtype":"F64","shape":[0,9223372036854775807],"data_offsets":[4,4]},
      "a":{"dtype":"BOOL","shape":[1,1],"data_offsets":[3,4]}}  )",
                                  4));
  const auto file = OpenOrDie(dir.File("x"));
  ASSERT_TRUE(file);
  EXPECT_EQ(file->Find("z")->elements(), 0);
  EXPECT_EQ(file->Find("c")->bytes, 0u);
}

TEST(SafetensorsTest, OpensShardedSet) {
  const TempDir dir;
  const std::vector<float> one = {1}, two = {2};
  const TensorToWrite a = {"a", {1}, DType::kF32, one}, b = {"b", {1}, DType::kF16, two};
  ASSERT_TRUE(WriteSafetensors(dir.File("s-1.safetensors"), {&a, 1}, {{"format", "pt"}}).ok());
  ASSERT_TRUE(
      WriteSafetensors(dir.File("s-2.safetensors"), {&b, 1}, {{"format", "pt"}, {"more", "x"}})
          .ok());
  dir.Write("model.safetensors.index.json",
            R"({"metadata": {"total_size": 6},
                "weight_map": {"b": "s-2.safetensors", "a": "s-1.safetensors"}})");
  const auto file = OpenOrDie(dir.File("model.safetensors.index.json"));
  ASSERT_TRUE(file);
  EXPECT_EQ(file->path(), dir.File("model.safetensors.index.json"));
  EXPECT_EQ(Floats(*file, "a"), one);
  EXPECT_EQ(Floats(*file, "b"), two);
  EXPECT_EQ(file->metadata().size(), 2u);
}

}  // namespace
}  // namespace flashsvd
