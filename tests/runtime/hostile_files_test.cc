// Safetensors files with one thing wrong in them: each must be refused with the right code and a
// message that names the file and the field or tensor. hostile_configs_test.cc has the other files
// of a model directory.

#include <cstring>
#include <functional>
#include <limits>

#include "gtest/gtest.h"
#include "tests/testing/hostile_case.h"
#include "tests/testing/tiny_model.h"

namespace flashsvd {
namespace {

using ::flashsvd::testing::ExpectRefused;
using ::flashsvd::testing::File;
using ::flashsvd::testing::HostileCase;
using ::flashsvd::testing::HostileCaseName;
using ::flashsvd::testing::kInvalid;
using ::flashsvd::testing::kLost;
using ::flashsvd::testing::kMissing;
using ::flashsvd::testing::TinyModel;
using namespace std::string_literals;

// Tensors or metadata of model.safetensors change.
HostileCase Weights(std::string name, std::vector<std::string> message,
                    std::function<void(TinyModel&)> spoil, absl::StatusCode code = kInvalid) {
  message.push_back("model.safetensors: ");
  return {std::move(name), code, std::move(message), std::move(spoil)};
}

// A safetensors file with this length field.
HostileCase Length(std::string name, uint64_t length, const std::string& rest,
                   std::vector<std::string> message, absl::StatusCode code) {
  std::string content(8, '\0');
  std::memcpy(content.data(), &length, 8);
  return File(std::move(name), "model.safetensors", content + rest, std::move(message), code);
}

// A safetensors file of this header and `data_bytes` of data.
HostileCase Header(std::string name, const std::string& header, size_t data_bytes,
                   std::vector<std::string> message, absl::StatusCode code = kInvalid) {
  return Length(std::move(name), header.size(), header + std::string(data_bytes, '\0'),
                std::move(message), code);
}

// One tensor "t" with this entry and 8 bytes of data.
HostileCase Entry(std::string name, const std::string& entry, const std::string& message,
                  absl::StatusCode code = kInvalid) {
  return Header(std::move(name), "{\"t\":" + entry + "}", 8, {"tensor \"t\": " + message}, code);
}

std::vector<HostileCase> FramingCases() {
  const std::string t = R"("t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  return {
      File("EmptyFile", "model.safetensors", "", {"0 bytes"}, kLost),
      File("SevenBytes", "model.safetensors", "\2\0\0\0\0\0\0"s, {"7 bytes"}, kLost),
      Length("LengthPastEnd", 100, "{}", {"header length 100", "10 bytes"}, kLost),
      Length("LengthOnePastEnd", 3, "{}", {"header length 3"}, kLost),
      Length("LengthAllOnes", UINT64_MAX, "{}", {"18446744073709551615"}, kInvalid),
      Length("LengthOver100MB", 100'000'001, "{}", {"100000001"}, kInvalid),
      File("PickleInstead", "model.safetensors", "PK\3\4\0\0\10\10\0\0archive/data.pkl"s,
           {"header length"}),
      Header("HeaderEmpty", "", 0, {"header: not valid JSON"}),
      Header("HeaderCutOff", "{\"t\":", 0, {"header: not valid JSON"}),
      Header("HeaderNotUtf8", "{\"t\xff\":1}", 0, {"header: not valid JSON"}),
      Header("HeaderNulPadded", "{}\0\0"s, 0, {"header: not valid JSON at byte 3"}),
      Header("HeaderIsArray", "[]", 0, {"header: does not begin with the brace"}),
      Header("HeaderIndented", " {}", 0, {"header: does not begin with the brace"}),
      Header("HeaderTwoObjects", "{}{}", 0, {"header: not valid JSON"}),
      Header("HeaderNestedDeep", "{\"t\":" + std::string(100000, '['), 0,
             {"nested deeper than 64"}),
      Header("HeaderNumberOverflows", "{\"t\":1e999}", 0, {"header: not valid JSON"}),
      Header("DuplicateTensor", "{" + t + "," + t + "}", 8, {"header: duplicate key \"t\""}),
      Header("DuplicateField", R"({"t":{"dtype":"F32","dtype":"F16"}})", 0, {"key \"dtype\""}),
      Header("TrailingBytes", "{" + t + "}", 9, {"1 trailing bytes"}),
      Header("DataButNoTensor", "{}", 4, {"4 trailing bytes"}),
      Header("DataCutOff", "{" + t + "}", 7, {"tensor \"t\": data_offsets: end 8", "7 bytes"},
             kLost),
      Header("Hole",
             R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
             R"("b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
             5, {"tensor \"b\": data_offsets: begin 3 leaves a hole"}),
      Header("HoleAtStart", R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", 3,
             {"tensor \"a\": data_offsets: begin 1 leaves a hole"}),
      Header("Overlap",
             R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
             R"("b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
             4, {"tensor \"b\": data_offsets: begin 2 overlaps tensor \"a\""}),
      Header("SameBytesTwice",
             R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
             R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
             4, {"tensor \"b\": data_offsets: begin 0 overlaps"}),
      Header("MetadataArray", R"({"__metadata__":[]})", 0, {"__metadata__: an array"}),
      Header("MetadataNumber", R"({"__metadata__":{"k":1}})", 0,
             {"__metadata__: \"k\": an integer"}),
      Header("MetadataObject", R"({"__metadata__":{"k":{}}})", 0,
             {"__metadata__: \"k\": an object"}),
      Header("LongNameIsCut", "{\"" + std::string(5000, 'n') + "\":0}", 0, {"nnn...\": entry: "}),
      Header("NameWithNewline", R"({"a\nb":0})", 0, {R"(tensor "a\u000ab": entry: an integer)"}),
  };
}

std::vector<HostileCase> EntryCases() {
  const auto shape = [](const std::string& text) {
    return R"({"dtype":"F32","shape":)" + text + R"(,"data_offsets":[0,8]})";
  };
  const auto offsets = [](const std::string& text) {
    return R"({"dtype":"F32","shape":[2],"data_offsets":)" + text + "}";
  };
  return {
      Entry("EntryNull", "null", "entry: null"),
      Entry("DtypeMissing", R"({"shape":[2],"data_offsets":[0,8]})", "dtype: missing"),
      Entry("ShapeMissing", R"({"dtype":"F32","data_offsets":[0,8]})", "shape: missing"),
      Entry("OffsetsMissing", R"({"dtype":"F32","shape":[2]})", "data_offsets: missing"),
      Entry("UnknownField", R"({"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1})", "\"x\": "),
      Entry("DtypeUnknown", R"({"dtype":"f32","shape":[2],"data_offsets":[0,8]})",
            "dtype: unknown type \"f32\""),
      Entry("DtypeNumber", R"({"dtype":32,"shape":[2],"data_offsets":[0,8]})", "dtype: an integer"),
      Entry("ShapeString", shape("\"2\""), "shape: a string"),
      Entry("ShapeNegative", shape("[-2]"), "shape: \"-2\""),
      Entry("ShapeFraction", shape("[2.0]"), "shape: \"2.0\""),
      Entry("ShapeNested", shape("[[2]]"), "shape: "),
      Entry("ShapeOver63Bits", shape("[9223372036854775808]"), "shape: \"9223372036854775808\""),
      Entry("ShapeOver64Bits", shape("[18446744073709551618]"), "shape: "),
      Entry("ShapeTimesBytesOverflows", shape("[4611686018427387904]"), "shape: the product"),
      // 2^32 * 2^32 * 2 elements would wrap to zero, and to 8 bytes with one more element.
      Entry("ShapeProductWraps", shape("[4294967296,4294967296,2]"), "shape: the product"),
      Entry("ShapeWrapsBeforeZero", shape("[4294967296,4294967296,0]"), "shape: the product"),
      Entry("ShapeManyDims",
            shape("[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,"
                  "2]"),
            "shape: 33 dimensions"),
      Entry("OffsetsOne", offsets("[0]"), "data_offsets: not an array"),
      Entry("OffsetsThree", offsets("[0,4,8]"), "data_offsets: not an array"),
      Entry("OffsetsNegative", offsets("[-8,0]"), "data_offsets: not an array"),
      Entry("OffsetsFraction", offsets("[0,8.0]"), "data_offsets: not an array"),
      Entry("OffsetsReversed", offsets("[8,0]"), "data_offsets: begin 8 is past end 0"),
      Entry("OffsetsTooShort", offsets("[0,4]"), "data_offsets: 4 bytes, but F32 [2] takes 8"),
      Entry("OffsetsTooLong", offsets("[0,12]"), "data_offsets: 12 bytes, but F32 [2] takes 8"),
      Entry("OffsetsOutside", offsets("[8,16]"), "data_offsets: end 16 is past the 8", kLost),
      Entry("OffsetsNearOverflow", offsets("[9223372036854775799,9223372036854775807]"),
            "data_offsets: end 9223372036854775807", kLost),
  };
}

std::vector<HostileCase> WeightCases() {
  const std::string dense = "encoder.layer.1.output.dense",
                    full = "encoder.layer.0.intermediate.dense",
                    head = "encoder.layer.0.attention.self.key";
  const auto erase = [](const std::string& name) {
    return [name](TinyModel& m) { m.tensors.erase("bert." + name); };
  };
  const auto modules = [](const std::string& json) {
    return [json](TinyModel& m) { m.metadata["lowrank.modules"] = json; };
  };
  const auto value = [](const std::string& name, size_t index, float bad) {
    return [=](TinyModel& m) { m.tensor(name).values[index] = bad; };
  };
  const auto reshape = [](const std::string& name, std::vector<int64_t> shape) {
    return [=](TinyModel& m) {
      size_t count = 1;
      for (int64_t size : shape) count *= static_cast<size_t>(size);
      m.tensor(name).shape = shape;
      m.tensor(name).values.assign(count, 1.0f);
    };
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const std::string field = "__metadata__: lowrank.modules: ";
  return {
      Weights("FormatUnknown", {"lowrank.format: \"2\" is not supported"},
              [](TinyModel& m) { m.metadata["lowrank.format"] = "2"; }),
      Weights("FormatMissing", {"lowrank.format: missing"},
              [](TinyModel& m) { m.metadata.erase("lowrank.format"); }),
      Weights("ModulesMissing", {"lowrank.modules: missing"},
              [](TinyModel& m) { m.metadata.erase("lowrank.modules"); }),
      Weights("ModulesNotJson", {field + "not valid JSON"}, modules("{'a': 1}")),
      Weights("ModulesArray", {field + "an array instead of an object"}, modules("[]")),
      Weights("ModulesNestedDeep", {field + "nested deeper"}, modules(std::string(9999, '['))),
      Weights("ModuleTwice", {field + "duplicate key \"m\""},
              modules(R"({"m":{"rank":1,"layout":"full"},"m":{"rank":1,"layout":"full"}})")),
      Weights("ModuleString", {field + "\"m\": a string"}, modules(R"({"m":"full"})")),
      Weights("RankMissing", {field + "\"m\": rank: missing"},
              modules(R"({"m":{"layout":"full"}})")),
      Weights("RankZero", {"\"m\": rank: "}, modules(R"({"m":{"rank":0,"layout":"full"}})")),
      Weights("RankNegative", {"\"m\": rank: "}, modules(R"({"m":{"rank":-1,"layout":"full"}})")),
      Weights("RankString", {"\"m\": rank: "}, modules(R"({"m":{"rank":"1","layout":"full"}})")),
      Weights("RankHuge", {"\"m\": rank: "},
              modules(R"({"m":{"rank":4294967297,"layout":"full"}})")),
      Weights("LayoutUnknown", {"\"m\": layout: \"tucker\""},
              modules(R"({"m":{"rank":1,"layout":"tucker"}})")),
      Weights("LayoutDense", {"\"m\": layout: \"dense\""},
              modules(R"({"m":{"rank":1,"layout":"dense"}})")),
      Weights("MethodNumber", {"\"m\": method: an integer"},
              modules(R"({"m":{"rank":1,"layout":"full","method":1}})")),
      Weights("ModuleWithoutTensors", {"tensor \"bert.m.lowrank.A\": missing"},
              modules(R"({"m":{"rank":1,"layout":"full"}})")),
      Weights("FactorsWithoutModule", {"bert.encoder.layer.0", "that no module uses"},
              modules("{}")),
      Weights("FactorAMissing", {full + ".lowrank.A\": missing"}, erase(full + ".lowrank.A")),
      Weights("FactorBMissing", {full + ".lowrank.B\": missing"}, erase(full + ".lowrank.B")),
      Weights("SharedAMissing", {"layer.1.attention.self.shared.A\": missing"},
              erase("encoder.layer.1.attention.self.shared.A")),
      Weights("RankOfBDiffers", {full + ".lowrank.B\": shape [8, 3]", "rank 2"},
              reshape(full + ".lowrank.B", {8, 3})),
      Weights("RankOfADiffers", {full + ".lowrank.A\": shape [3, 4]", "rank 2"},
              reshape(full + ".lowrank.A", {3, 4})),
      Weights("FullWithThreeDims", {full + ".lowrank.A\": shape [1, 2, 4]"},
              reshape(full + ".lowrank.A", {1, 2, 4})),
      Weights("PerHeadWithTwoDims", {head + ".lowrank.B\": shape [4, 1]"},
              reshape(head + ".lowrank.B", {4, 1})),
      Weights("PerHeadHeadsDiffer", {head + ".lowrank.B\": shape [4, 1, 1] has other heads"},
              reshape(head + ".lowrank.B", {4, 1, 1})),
      Weights("PerHeadHeadsNotOfConfig",
              {head + ".lowrank.A\": shape [4, 1, 4] instead of [2, 1, 4]"},
              [=](TinyModel& m) {
                reshape(head + ".lowrank.A", {4, 1, 4})(m);
                reshape(head + ".lowrank.B", {4, 1, 1})(m);
              }),
      Weights("ZeroSizedFactor", {full + ".lowrank.A\": shape [2, 0]"},
              reshape(full + ".lowrank.A", {2, 0})),
      Weights("DenseAndLowRank", {full + ".weight\": the module has low-rank tensors, too"},
              [=](TinyModel& m) {
                m.tensors["bert." + full + ".weight"] = m.tensor(dense + ".weight");
              }),
      Weights("DenseWeightMissing", {dense + ".weight\": missing"}, erase(dense + ".weight"),
              kMissing),
      Weights("LowRankBiasMissing", {full + ".bias\": missing"}, erase(full + ".bias"), kMissing),
      Weights("DenseTransposed", {dense + ".weight\": shape [8, 4] instead of [4, 8]"},
              reshape(dense + ".weight", {8, 4})),
      Weights("LayerNormTooLong", {"embeddings.LayerNorm.bias\": shape [5] instead of [4]"},
              reshape("embeddings.LayerNorm.bias", {5})),
      Weights("NanInDense", {dense + ".weight\": element 9 is nan"},
              value(dense + ".weight", 9, nan)),
      Weights("InfInHalfFactor", {full + ".lowrank.B\": element 3 is -inf"},
              value(full + ".lowrank.B", 3, -inf)),
      Weights("NanInEmbedding", {"word_embeddings.weight\": element 19 is nan"},
              value("embeddings.word_embeddings.weight", 19, nan)),
      Weights("TwoEncoders", {"two encoders in one file"},
              [](TinyModel& m) {
                m.tensors["t5.embeddings.word_embeddings.weight"] =
                    m.tensor("embeddings.word_embeddings.weight");
              }),
      Header("WeightsAreIntegers",
             R"({"embeddings.word_embeddings.weight":)"
             R"({"dtype":"I8","shape":[5,4],"data_offsets":[0,20]}})",
             20, {"word_embeddings.weight\": dtype \"I8\""}),
      Header("NoEncoderTensors", "{}", 0, {"word_embeddings.weight\": missing"}, kMissing),
  };
}

class HostileFilesTest : public ::testing::TestWithParam<HostileCase> {};

TEST_P(HostileFilesTest, IsRefusedByName) { ExpectRefused(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Framing, HostileFilesTest, ::testing::ValuesIn(FramingCases()),
                         HostileCaseName);
INSTANTIATE_TEST_SUITE_P(Entry, HostileFilesTest, ::testing::ValuesIn(EntryCases()),
                         HostileCaseName);
INSTANTIATE_TEST_SUITE_P(Weights, HostileFilesTest, ::testing::ValuesIn(WeightCases()),
                         HostileCaseName);

}  // namespace
}  // namespace flashsvd
