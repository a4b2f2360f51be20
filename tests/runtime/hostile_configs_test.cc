// Model directories whose JSON files have one thing wrong in them: each must be refused with the
// right code and a message that names the file and the field.

#include "gtest/gtest.h"
#include "tests/testing/hostile_case.h"
#include "tests/testing/tiny_model.h"

namespace flashsvd {
namespace {

using ::flashsvd::testing::Edit;
using ::flashsvd::testing::ExpectRefused;
using ::flashsvd::testing::File;
using ::flashsvd::testing::HostileCase;
using ::flashsvd::testing::HostileCaseName;
using ::flashsvd::testing::kInvalid;
using ::flashsvd::testing::kLost;
using ::flashsvd::testing::kMissing;
using ::flashsvd::testing::TinyModel;

const std::string kIndex = "model.safetensors.index.json";

std::vector<HostileCase> ConfigCases() {
  const std::string f = "config.json";
  const auto set = [&](std::string name, const std::string& old, const std::string& now,
                       std::vector<std::string> message) {
    return Edit(std::move(name), f, old, now, std::move(message));
  };
  return {
      {"ConfigMissing",
       kMissing,
       {"config.json: no such file"},
       [=](TinyModel& m) { m.files.erase(f); }},
      {"ConfigIsDirectory",
       kInvalid,
       {"config.json: a directory"},
       [=](TinyModel& m) {
         m.files.erase(f);
         m.files["config.json/x"] = "";
       }},
      File("ConfigEmpty", f, "", {"not valid JSON"}),
      File("ConfigArray", f, "[]", {"the root is an array instead of an object"}),
      File("ConfigNestedDeep", f, std::string(100000, '['), {"nested deeper than 64"}),
      File("ConfigUtf16", f, std::string("\xff\xfe{\0}\0", 6), {"not valid JSON"}),
      set("ConfigUnquoted", "\"gelu\"", "gelu", {"not valid JSON", "line 3"}),
      set("ConfigDuplicateKey", "\"hidden_size\": 4", "\"hidden_size\": 4, \"hidden_size\": 8",
          {"duplicate key \"hidden_size\""}),
      set("ModelTypeOther", "\"bert\"", "\"llama\"", {"model_type: \"llama\" is not supported"}),
      set("ModelTypeNumber", "\"bert\"", "7", {"model_type: 7 is not a string"}),
      set("ModelTypeAbsent", "model_type", "x", {"model_type: missing"}),
      set("ArchitectureOther", "\"model_type\": \"bert\"", "\"architectures\": [\"T5Model\"]",
          {"architectures: \"T5Model\""}),
      set("ArchitecturesEmpty", "\"model_type\": \"bert\"", "\"architectures\": []",
          {"architectures: "}),
      set("HiddenMissing", "hidden_size", "hidden", {"hidden_size: missing"}),
      set("HiddenString", "\"hidden_size\": 4", "\"hidden_size\": \"4\"",
          {"hidden_size: \"4\" is not an integer"}),
      set("HiddenZero", "\"hidden_size\": 4", "\"hidden_size\": 0",
          {"hidden_size: 0 is not from 1"}),
      set("HiddenHuge", "\"hidden_size\": 4", "\"hidden_size\": 1000000000",
          {"hidden_size: 1000000000 is not from 1"}),
      set("HiddenNotOfHeads", "heads\": 2", "heads\": 3",
          {"hidden_size: 4 is not a multiple of num_attention_heads 3"}),
      set("LayersNegative", "layers\": 2", "layers\": -2", {"num_hidden_layers: -2"}),
      set("LayersHuge", "layers\": 2", "layers\": 99999999999999999999", {"num_hidden_layers: "}),
      set("HeadsNull", "heads\": 2", "heads\": null", {"num_attention_heads: null"}),
      set("FfnFraction", "\"intermediate_size\": 8", "\"intermediate_size\": 8.5",
          {"intermediate_size: 8.5 is not an integer"}),
      set("VocabHuge", "\"vocab_size\": 5", "\"vocab_size\": 4294967301",
          {"vocab_size: 4294967301"}),
      set("PositionsOne", "embeddings\": 6", "embeddings\": 1", {"max_position_embeddings: 1"}),
      set("TypesZero", "\"type_vocab_size\": 2", "\"type_vocab_size\": 0", {"type_vocab_size: 0"}),
      set("EpsilonZero", "1e-12", "0", {"layer_norm_eps: 0 is not from"}),
      set("EpsilonNegative", "1e-12", "-1e-12", {"layer_norm_eps: -1e-12 is not from"}),
      set("EpsilonOverflows", "1e-12", "1e999", {"not valid JSON"}),
      set("EpsilonString", "1e-12", "\"1e-12\"", {"layer_norm_eps: \"1e-12\" is not a number"}),
      set("ActivationUnknown", "\"gelu\"", "\"mish\"", {"hidden_act: \"mish\" is not supported"}),
      set("PositionsRelative", "absolute", "relative_key",
          {"position_embedding_type: \"relative_key\""}),
      set("PositionsNull", "\"absolute\"", "null", {"position_embedding_type: null"}),
      set("Decoder", "\"hidden_act\"", "\"is_decoder\": true, \"hidden_act\"",
          {"is_decoder: true"}),
      set("DecoderNumber", "\"hidden_act\"", "\"is_decoder\": 1, \"hidden_act\"",
          {"is_decoder: 1"}),
  };
}

std::vector<HostileCase> SentenceTransformersCases() {
  const std::string s = "sentence_bert_config.json", m = "modules.json",
                    p = "1_Pooling/config.json";
  return {
      File("SentenceConfigArray", s, "[1]", {"the root is an array"}),
      Edit("MaxLengthZero", s, "5", "0", {"max_seq_length: 0 is not from 2"}),
      Edit("MaxLengthString", s, "5", "\"5\"", {"max_seq_length: \"5\" is not an integer"}),
      Edit("MaxLengthHuge", s, "5", "1e300", {"max_seq_length: 1e+300 is not an integer"}),
      File("ModulesObject", m, "{}", {"the root is an object instead of an array"}),
      File("ModulesEmpty", m, "[]", {"no modules"}),
      File("ModulesOfStrings", m, "[\"Transformer\"]", {"[0]: a string instead of an object"}),
      Edit("ModuleDense", m, "models.Normalize", "models.Dense",
           {"[2].type: \"sentence_transformers.models.Dense\" is not supported"}),
      Edit("ModuleTypeMissing", m, "\"type\"", "\"kind\"", {"[0].type: missing"}),
      Edit("ModulePathMissing", m, "\"path\"", "\"dir\"", {"[0].path: missing"}),
      Edit("ModulePathNumber", m, "\"1_Pooling\"", "1", {"[1].path: 1 is not a string"}),
      Edit("ModulePathAbsolute", m, "1_Pooling", "/etc", {"[1].path: \"/etc\" is not inside"}),
      Edit("ModulePathClimbs", m, "1_Pooling", "1_Pooling/../..",
           {"[1].path: \"1_Pooling/../..\" is not inside"}),
      Edit("ModulePathNul", m, "1_Pooling", "1_Pooling\\u0000", {"[1].path: ", "is not inside"}),
      Edit("PoolingPathEmpty", m, "1_Pooling", "", {"[1].path: \"\""}),
      Edit("TransformerElsewhere", m, "\"path\": \"\"", "\"path\": \"0_Transformer\"",
           {"[0].path: \"0_Transformer\""}),
      Edit("TransformerTwice", m, "models.Pooling", "models.Transformer",
           {"[1].type: ", "out of order"}),
      Edit("NoTransformer", m, "models.Transformer", "models.Pooling",
           {"[0].type: ", "out of order"}),
      {"PoolingMissing",
       kInvalid,
       {"modules.json: [1].path: ", "1_Pooling/config.json: no such file"},
       [=](TinyModel& model) { model.files.erase(p); }},
      File("PoolingNotJson", p, "mean", {"not valid JSON"}),
      Edit("PoolingTwo", p, "\"pooling_mode_cls_token\": false", "\"pooling_mode_cls_token\": true",
           {"pooling_mode_mean_tokens: true beside pooling_mode_cls_token"}),
      Edit("PoolingNone", p, "true", "false", {"pooling_mode_mean_tokens: missing or false"}),
      Edit("PoolingMax", p, "\"pooling_mode_max_tokens\": false",
           "\"pooling_mode_max_tokens\": true", {"pooling_mode_max_tokens: true is not supported"}),
      Edit("PoolingWeighted", p, "pooling_mode_mean_tokens", "pooling_mode_weightedmean_tokens",
           {"pooling_mode_weightedmean_tokens: true is not supported"}),
      Edit("PoolingFlagString", p, "true", "\"true\"",
           {"pooling_mode_mean_tokens: \"true\" is not true or false"}),
      Edit("PoolingNamedMax", p, "\"include_prompt\"", "\"pooling_mode\": \"max\", \"x\"",
           {"pooling_mode: \"max\" is not supported"}),
      Edit("PoolingNamedTwo", p, "\"include_prompt\"",
           "\"pooling_mode\": [\"cls\", \"mean\"], \"x\"",
           {"pooling_mode: an array is not a string"}),
      Edit("PoolingWidth", p, "dimension\": 4", "dimension\": 8",
           {"word_embedding_dimension: 8, but hidden_size is 4"}),
  };
}

// The first `from` in the index of a sharded model becomes `to`.
HostileCase Sharded(std::string name, const std::string& from, const std::string& to,
                    std::vector<std::string> message) {
  HostileCase edit = Edit(std::move(name), kIndex, from, to, std::move(message));
  edit.spoil = [spoil = edit.spoil](TinyModel& model) {
    model.Shard();
    spoil(model);
  };
  return edit;
}

std::vector<HostileCase> IndexCases() {
  const std::string word = "\"bert.embeddings.word_embeddings.weight\": \"1.safetensors\"";
  const std::string name = "bert.embeddings.word_embeddings.weight";
  const auto shard = [&](const std::string& file) { return "\"" + name + "\": \"" + file + "\""; };
  const auto no_single_file = [](TinyModel& m) { m.without_single_file = true; };
  const auto cut_off = [](TinyModel& m) {
    m.Shard();
    m.files["1.safetensors"].resize(60);
  };
  const auto conflict = [](TinyModel& m) {
    m.metadata["format"] = "np";
    m.Shard();
  };
  return {
      {"NoCheckpoint",
       kMissing,
       {"no model.safetensors and no model.safetensors.index.json"},
       no_single_file},
      {"ShardCutOff", kLost, {"1.safetensors: header length"}, cut_off},
      {"ShardsDisagree",
       kInvalid,
       {"2.safetensors: __metadata__: \"format\": \"np\", but another shard says \"pt\""},
       conflict},
      Sharded("IndexNotJson", "{", "(", {"not valid JSON"}),
      Sharded("IndexWithoutMap", "weight_map", "weights", {"weight_map: missing"}),
      Sharded("IndexMapEmpty", "{\"weight_map\": {", "{\"weight_map\": {}, \"x\": {",
              {"weight_map: an empty object"}),
      Sharded("IndexMapArray", "{\"weight_map\": {", "{\"weight_map\": [], \"x\": {",
              {"weight_map: an array"}),
      Sharded("IndexDuplicate", word, word + "," + word, {"duplicate key \"" + name}),
      Sharded("ShardNumber", word, "\"" + name + "\": 1",
              {name, "an integer instead of a file name"}),
      Sharded("ShardEmpty", word, shard(""), {name, "\"\" is not a plain file name"}),
      Sharded("ShardParent", word, shard(".."), {name, "\"..\" is not a plain file name"}),
      Sharded("ShardClimbs", word, shard("../1.safetensors"), {name, "is not a plain file name"}),
      Sharded("ShardAbsolute", word, shard("/etc/passwd"), {name, "is not a plain file name"}),
      Sharded("ShardNul", word, shard("1.safetensors\\u0000"), {name, "is not a plain file name"}),
      Sharded("ShardMissing", word, shard("3.safetensors"),
              {"weight_map: shard \"3.safetensors\" does not exist"}),
      Sharded("TensorInOtherShard", word, shard("2.safetensors"),
              {"weight_map: tensor \"" + name + "\" is not in shard \"2.safetensors\""}),
      Sharded("TensorInNoShard", word, word + ", \"ghost\": \"1.safetensors\"",
              {"weight_map: tensor \"ghost\" is not in shard \"1.safetensors\""}),
      Sharded("TensorNotInIndex", word, "\"ghost\": \"1.safetensors\"",
              {"weight_map: tensor \"" + name + "\" of shard \"1.safetensors\" is missing"}),
  };
}

class HostileConfigsTest : public ::testing::TestWithParam<HostileCase> {};

TEST_P(HostileConfigsTest, IsRefusedByName) { ExpectRefused(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Config, HostileConfigsTest, ::testing::ValuesIn(ConfigCases()),
                         HostileCaseName);
INSTANTIATE_TEST_SUITE_P(SentenceTransformers, HostileConfigsTest,
                         ::testing::ValuesIn(SentenceTransformersCases()), HostileCaseName);
INSTANTIATE_TEST_SUITE_P(Index, HostileConfigsTest, ::testing::ValuesIn(IndexCases()),
                         HostileCaseName);

}  // namespace
}  // namespace flashsvd
