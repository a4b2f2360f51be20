#include "runtime/model_config.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/temp_dir.h"

namespace flashsvd {
namespace {

using ::flashsvd::testing::TempDir;
using ::testing::HasSubstr;
using Json = nlohmann::json;

class ModelConfigTest : public ::testing::Test {
 protected:
  ModelConfigTest()
      : config_{{"model_type", "bert"},           {"hidden_size", 384},
                {"num_hidden_layers", 6},         {"num_attention_heads", 12},
                {"intermediate_size", 1536},      {"vocab_size", 30522},
                {"max_position_embeddings", 512}, {"type_vocab_size", 2},
                {"layer_norm_eps", 1e-12},        {"hidden_act", "gelu"}} {}

  absl::StatusOr<ModelConfig> Load() {
    dir_.Write("config.json", config_.dump());
    return LoadModelConfig(dir_.path());
  }

  // The values of a load that must succeed.
  ModelConfig Loaded() {
    const auto config = Load();
    EXPECT_TRUE(config.ok()) << config.status();
    return config.ok() ? *config : ModelConfig{};
  }

  void ExpectError(std::initializer_list<const char*> substrings) {
    const auto config = Load();
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
    for (const char* text : substrings) {
      EXPECT_THAT(std::string(config.status().message()), HasSubstr(text));
    }
  }

  void WriteModules(std::initializer_list<std::pair<const char*, const char*>> modules) {
    Json json = Json::array();
    for (const auto& [type, path] : modules) json.push_back({{"type", type}, {"path", path}});
    dir_.Write("modules.json", json.dump());
  }

  void WritePooling(const Json& pooling) {
    WriteModules({{"sentence_transformers.models.Transformer", ""},
                  {"sentence_transformers.models.Pooling", "1_Pooling"}});
    dir_.Write("1_Pooling/config.json", pooling.dump());
  }

  TempDir dir_;
  Json config_;
};

TEST_F(ModelConfigTest, ReadsEveryFieldOfConfig) {
  const ModelConfig config = Loaded();
  EXPECT_EQ(config.model_type, "bert");
  EXPECT_EQ(config.hidden, 384);
  EXPECT_EQ(config.layers, 6);
  EXPECT_EQ(config.heads, 12);
  EXPECT_EQ(config.head_dim(), 32);
  EXPECT_EQ(config.ffn, 1536);
  EXPECT_EQ(config.vocab, 30522);
  EXPECT_EQ(config.max_positions, 512);
  EXPECT_EQ(config.type_vocab, 2);
  EXPECT_EQ(config.layer_norm_eps, 1e-12f);
  EXPECT_EQ(config.activation, Activation::kGelu);
}

TEST_F(ModelConfigTest, PlainDirectoryPoolsByMeanOverAllPositions) {
  const ModelConfig config = Loaded();
  EXPECT_EQ(config.max_seq_length, 512);
  EXPECT_EQ(config.pooling, Pooling::kMean);
  EXPECT_FALSE(config.normalize);
}

TEST_F(ModelConfigTest, MissingConfigIsNotFound) {
  const auto config = LoadModelConfig(dir_.path());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(config.status().message()), HasSubstr(dir_.File("config.json")));
}

TEST_F(ModelConfigTest, EveryFieldIsRequired) {
  const Json whole = config_;
  for (const auto& [field, value] : whole.items()) {
    config_ = whole;
    config_.erase(field);
    ExpectError({"config.json: ", field.c_str(), "missing"});
    config_ = whole;
    config_[field] = Json::array();
    ExpectError({"config.json: ", field.c_str(), "an array is not"});
  }
}

TEST_F(ModelConfigTest, AcceptsClassNameInPlaceOfModelType) {
  config_.erase("model_type");
  config_["architectures"] = {"BertForMaskedLM"};
  EXPECT_EQ(Loaded().model_type, "bert");
  config_["architectures"] = {"RobertaModel"};
  ExpectError({"architectures", "RobertaModel"});
}

TEST_F(ModelConfigTest, KnowsNamesOfActivations) {
  const std::pair<const char*, Activation> names[] = {
      {"gelu", Activation::kGelu},          {"gelu_new", Activation::kGeluTanh},
      {"gelu_fast", Activation::kGeluTanh}, {"gelu_pytorch_tanh", Activation::kGeluTanh},
      {"relu", Activation::kRelu},          {"silu", Activation::kSilu},
      {"swish", Activation::kSilu}};
  for (const auto& [name, activation] : names) {
    config_["hidden_act"] = name;
    EXPECT_EQ(Loaded().activation, activation) << name;
  }
}

TEST_F(ModelConfigTest, HeadsMustDivideHidden) {
  config_["num_attention_heads"] = 7;
  ExpectError({"config.json: hidden_size: 384 is not a multiple of num_attention_heads 7"});
}

TEST_F(ModelConfigTest, SizesHaveBounds) {
  const Json whole = config_;
  for (const char* field :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "vocab_size", "max_position_embeddings", "type_vocab_size"}) {
    for (const Json& value : {Json(0), Json(-1), Json(2147483647), Json(4294967297),
                              Json(UINT64_MAX), Json(INT64_MIN)}) {
      config_ = whole;
      config_[field] = value;
      ExpectError({field, value.dump().c_str(), "is not from"});
    }
    config_ = whole;
    config_[field] = 12.0;
    ExpectError({field, "12.0 is not an integer"});
  }
}

TEST_F(ModelConfigTest, MaxSeqLengthOfSentenceTransformersWins) {
  dir_.Write("sentence_bert_config.json", R"({"max_seq_length": 256, "do_lower_case": false})");
  EXPECT_EQ(Loaded().max_seq_length, 256);
}

TEST_F(ModelConfigTest, MaxSeqLengthNeverExceedsPositions) {
  dir_.Write("sentence_bert_config.json", R"({"max_seq_length": 514})");
  EXPECT_EQ(Loaded().max_seq_length, 512);
  dir_.Write("sentence_bert_config.json", R"({"max_seq_length": null})");
  EXPECT_EQ(Loaded().max_seq_length, 512);
  dir_.Write("sentence_bert_config.json", "{}");
  EXPECT_EQ(Loaded().max_seq_length, 512);
}

TEST_F(ModelConfigTest, ReadsPoolingFlags) {
  const std::pair<const char*, Pooling> flags[] = {{"pooling_mode_mean_tokens", Pooling::kMean},
                                                   {"pooling_mode_cls_token", Pooling::kCls},
                                                   {"pooling_mode_lasttoken", Pooling::kLast}};
  for (const auto& [flag, pooling] : flags) {
    WritePooling({{"word_embedding_dimension", 384},
                  {"pooling_mode_max_tokens", false},
                  {"include_prompt", true},
                  {flag, true}});
    EXPECT_EQ(Loaded().pooling, pooling) << flag;
  }
}

TEST_F(ModelConfigTest, ReadsPoolingName) {
  const std::pair<const char*, Pooling> names[] = {
      {"mean", Pooling::kMean}, {"cls", Pooling::kCls}, {"lasttoken", Pooling::kLast}};
  for (const auto& [name, pooling] : names) {
    WritePooling({{"embedding_dimension", 384}, {"pooling_mode", name}});
    EXPECT_EQ(Loaded().pooling, pooling) << name;
  }
}

TEST_F(ModelConfigTest, FindsPoolingByTypeAndItsPath) {
  WriteModules({{"sentence_transformers.base.modules.transformer.Transformer", ""},
                {"sentence_transformers.sentence_transformer.modules.pooling.Pooling", "x/pool"},
                {"sentence_transformers.models.Normalize", "2_Normalize"}});
  dir_.Write("x/pool/config.json", R"({"pooling_mode_cls_token": true})");
  const ModelConfig config = Loaded();
  EXPECT_EQ(config.pooling, Pooling::kCls);
  EXPECT_TRUE(config.normalize);
}

TEST_F(ModelConfigTest, ModulesWithoutPoolingPoolByMean) {
  WriteModules({{"sentence_transformers.models.Transformer", ""},
                {"sentence_transformers.models.Normalize", "1_Normalize"}});
  const ModelConfig config = Loaded();
  EXPECT_EQ(config.pooling, Pooling::kMean);
  EXPECT_TRUE(config.normalize);
}

}  // namespace
}  // namespace flashsvd
