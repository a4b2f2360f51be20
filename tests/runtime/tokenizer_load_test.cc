#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer.h"
#include "tests/testing/temp_dir.h"

namespace flashsvd {
namespace {

using Json = nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempDir;

const char* const kTokens[] = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "é", "A"};

Json Added(const std::string& content, int id) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

// A small tokenizer.json in the form that the library writes.
Json GoodTokenizerJson() {
  Json json = Json::parse(R"({
    "version": "1.0",
    "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": {"Fixed": 128}, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
    "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                   "strip_accents": null, "lowercase": true},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
      "type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
      "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
               {"Sequence": {"id": "A", "type_id": 0}},
               {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
               {"Sequence": {"id": "B", "type_id": 1}},
               {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
      "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                         "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
              "max_input_chars_per_word": 100}
  })");
  int id = 0;
  for (const char* token : kTokens) json["model"]["vocab"][token] = id++;
  for (int i = 0; i < 5; ++i) json["added_tokens"].push_back(Added(kTokens[i], i));
  return json;
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text) {
  Encoding out;
  EXPECT_EQ(tokenizer.Encode(text, {}, &out), absl::OkStatus());
  return out.ids;
}

std::unique_ptr<Tokenizer> LoadJson(const Json& json) {
  const TempDir dir;
  dir.Write("tokenizer.json", json.dump());
  auto tokenizer = LoadTokenizer(dir.path());
  EXPECT_EQ(tokenizer.status(), absl::OkStatus());
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

TEST(LoadTokenizerTest, ReadsTokenizerJsonButNotItsTruncationAndPadding) {
  const auto tokenizer = LoadJson(GoodTokenizerJson());
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_THAT(Encode(*tokenizer, "a AB c [MASK]"), ElementsAre(2, 5, 5, 6, 1, 4, 3));
  EXPECT_EQ(tokenizer->vocab_size(), 9);
  EXPECT_EQ(tokenizer->IdToToken(7), "é");
  EXPECT_EQ(tokenizer->num_special_tokens(), 2);
}

struct Edit {
  const char* name;
  std::function<void(Json&)> apply;
  const char* field;
  const char* what;
};

const std::vector<Edit>& BadEdits() {
  static const auto& edits = *new std::vector<Edit>{
      {"no model", [](Json& j) { j.erase("model"); }, "model", "missing"},
      {"model is text", [](Json& j) { j["model"] = "x"; }, "model", "is a string"},
      {"BPE", [](Json& j) { j["model"]["type"] = "BPE"; }, "model.type",
       "\"BPE\" is not supported"},
      {"Unigram",
       [](Json& j) {
         j["model"] = {{"type", "Unigram"}, {"vocab", Json::array()}};
       },
       "model.type", "\"Unigram\""},
      {"untyped",
       [](Json& j) {
         j["model"] = {{"merges", Json::array()}};
       },
       "model.type", "missing"},
      {"no unk", [](Json& j) { j["model"].erase("unk_token"); }, "model.unk_token", "missing"},
      {"unk is 1", [](Json& j) { j["model"]["unk_token"] = 1; }, "model.unk_token",
       "is an integer"},
      {"unknown unk", [](Json& j) { j["model"]["unk_token"] = "<unk>"; }, "model.unk_token",
       "\"<unk>\" is not in model.vocab"},
      {"prefix", [](Json& j) { j["model"]["continuing_subword_prefix"] = true; },
       "model.continuing_subword_prefix", "is a boolean"},
      {"chars", [](Json& j) { j["model"]["max_input_chars_per_word"] = "9"; },
       "model.max_input_chars_per_word", "is a string"},
      {"negative chars", [](Json& j) { j["model"]["max_input_chars_per_word"] = -1; },
       "model.max_input_chars_per_word", "-1"},
      {"huge chars", [](Json& j) { j["model"]["max_input_chars_per_word"] = UINT64_MAX; },
       "model.max_input_chars_per_word", "18446744073709551615"},
      {"no vocab", [](Json& j) { j["model"].erase("vocab"); }, "model.vocab", "missing"},
      {"vocab array", [](Json& j) { j["model"]["vocab"] = Json::array(); }, "model.vocab",
       "is an array"},
      {"empty vocab", [](Json& j) { j["model"]["vocab"] = Json::object(); }, "model.unk_token",
       "not in"},
      {"text id", [](Json& j) { j["model"]["vocab"]["a"] = "5"; }, "model.vocab", "\"a\""},
      {"fraction id", [](Json& j) { j["model"]["vocab"]["a"] = 5.0; }, "model.vocab", "\"a\""},
      {"negative id", [](Json& j) { j["model"]["vocab"]["a"] = -5; }, "model.vocab", "-5"},
      {"hole", [](Json& j) { j["model"]["vocab"]["a"] = 9; }, "model.vocab", "holes"},
      {"huge id", [](Json& j) { j["model"]["vocab"]["a"] = UINT64_MAX; }, "model.vocab", "holes"},
      {"duplicate id", [](Json& j) { j["model"]["vocab"]["a"] = 6; }, "model.vocab",
       "both have id 6"},
      {"long token", [](Json& j) { j["model"]["vocab"][std::string(1025, 'x')] = 9; }, "vocab[9]",
       "1025 bytes"},
      {"normalizer is text", [](Json& j) { j["normalizer"] = "x"; }, "normalizer", "is a string"},
      {"NFC",
       [](Json& j) {
         j["normalizer"] = {{"type", "NFC"}};
       },
       "normalizer.type", "\"NFC\""},
      {"lowercase", [](Json& j) { j["normalizer"]["lowercase"] = "yes"; }, "normalizer.lowercase",
       "is a string"},
      {"clean_text", [](Json& j) { j["normalizer"]["clean_text"] = 1; }, "normalizer.clean_text",
       "is an integer"},
      {"cjk", [](Json& j) { j["normalizer"]["handle_chinese_chars"] = Json::array(); },
       "normalizer.handle_chinese_chars", "is an array"},
      {"accents", [](Json& j) { j["normalizer"]["strip_accents"] = 0.5; },
       "normalizer.strip_accents", "fractional"},
      {"no pre_tokenizer", [](Json& j) { j["pre_tokenizer"] = nullptr; }, "pre_tokenizer",
       "missing"},
      {"ByteLevel", [](Json& j) { j["pre_tokenizer"]["type"] = "ByteLevel"; }, "pre_tokenizer.type",
       "\"ByteLevel\""},
      {"added object", [](Json& j) { j["added_tokens"] = Json::object(); }, "added_tokens",
       "is an object"},
      {"added text", [](Json& j) { j["added_tokens"][2] = "x"; }, "added_tokens[2]", "is a string"},
      {"no content", [](Json& j) { j["added_tokens"][2].erase("content"); },
       "added_tokens[2].content", "missing"},
      {"empty content", [](Json& j) { j["added_tokens"].push_back(Added("", 9)); },
       "added_tokens[5].content", "empty"},
      {"long content",
       [](Json& j) { j["added_tokens"].push_back(Added(std::string(2000, 'x'), 9)); },
       "added_tokens[5]", "2000 bytes"},
      {"negative added id", [](Json& j) { j["added_tokens"][2]["id"] = -1; }, "added_tokens[2].id",
       "-1"},
      {"other added id", [](Json& j) { j["added_tokens"][2]["id"] = 3; }, "added_tokens[2].id",
       "has id 3 and would be 2"},
      {"added id with a hole", [](Json& j) { j["added_tokens"].push_back(Added("<x>", 10)); },
       "added_tokens[5].id", "has id 10 and would be 9"},
      {"lstrip", [](Json& j) { j["added_tokens"][0]["lstrip"] = 0; }, "added_tokens[0].lstrip",
       "is an integer"},
      {"normalised to nothing",
       [](Json& j) {
         j["added_tokens"].push_back(Added("\u0301", 9));
         j["added_tokens"][5]["normalized"] = true;
       },
       "added_tokens", "0 bytes when normalised"},
      {"Roberta", [](Json& j) { j["post_processor"]["type"] = "RobertaProcessing"; },
       "post_processor.type", "\"RobertaProcessing\""},
      {"no special_tokens", [](Json& j) { j["post_processor"].erase("special_tokens"); },
       "post_processor.special_tokens", "missing"},
      {"missing [SEP]", [](Json& j) { j["post_processor"]["special_tokens"].erase("[SEP]"); },
       "post_processor.single[2].SpecialToken.id", "\"[SEP]\" is not in"},
      {"special id too large",
       [](Json& j) { j["post_processor"]["special_tokens"]["[SEP]"]["ids"] = {99}; },
       "post_processor.special_tokens.[SEP].ids[0]", "99"},
      {"special id is text",
       [](Json& j) { j["post_processor"]["special_tokens"]["[CLS]"]["ids"] = {"2"}; },
       "post_processor.special_tokens.[CLS].ids[0]", "is a string"},
      {"single is object", [](Json& j) { j["post_processor"]["single"] = Json::object(); },
       "post_processor.single", "is an object"},
      {"single without text", [](Json& j) { j["post_processor"]["single"].erase(1); },
       "post_processor.single", "expected Sequence A"},
      {"single with B", [](Json& j) { j["post_processor"]["single"][1]["Sequence"]["id"] = "B"; },
       "post_processor.single[1].Sequence.id", "\"B\""},
      {"pair without B", [](Json& j) { j["post_processor"]["pair"].erase(3); },
       "post_processor.pair", "expected Sequences A and B"},
      {"type id", [](Json& j) { j["post_processor"]["pair"][3]["Sequence"]["type_id"] = -1; },
       "post_processor.pair[3].Sequence.type_id", "-1"},
      {"empty piece", [](Json& j) { j["post_processor"]["pair"][3] = Json::object(); },
       "post_processor.pair[3]", "expected an object with either"},
      {"BertProcessing without sep",
       [](Json& j) {
         j["post_processor"] = {{"type", "BertProcessing"}, {"cls", {"[CLS]", 2}}};
       },
       "post_processor.sep", "missing"},
      {"BertProcessing with a large id",
       [](Json& j) {
         j["post_processor"] = {
             {"type", "BertProcessing"}, {"cls", {"[CLS]", 2}}, {"sep", {"[SEP]", 900}}};
       },
       "post_processor.sep[1]", "900"},
  };
  return edits;
}

TEST(LoadTokenizerTest, NamesFileAndFieldOfABadTokenizerJson) {
  for (const Edit& edit : BadEdits()) {
    SCOPED_TRACE(edit.name);
    Json json = GoodTokenizerJson();
    edit.apply(json);
    const TempDir dir;
    dir.Write("tokenizer.json", json.dump());
    const absl::Status status = LoadTokenizer(dir.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    const std::string message(status.message());
    EXPECT_THAT(message, HasSubstr(dir.path() + "/tokenizer.json: " + edit.field));
    EXPECT_THAT(message, HasSubstr(edit.what));
  }
}

TEST(LoadTokenizerTest, RefusesATokenizerJsonThatIsNotJson) {
  const std::string good = GoodTokenizerJson().dump();
  for (const std::string& content :
       {std::string(), std::string("{"), std::string("[]"), std::string("7"), good + "x",
        good.substr(0, good.size() / 2), "\xEF\xBB\xBF" + good, std::string("{\"model\":\xFF}"),
        std::string(1'000'000, '['), "{\"model\":" + std::string(1'000'000, '['),
        std::string("{\"a\":1,\"a\":2}")}) {
    const TempDir dir;
    dir.Write("tokenizer.json", content);
    const absl::Status status = LoadTokenizer(dir.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << content.substr(0, 40);
    EXPECT_THAT(std::string(status.message()), HasSubstr(dir.path() + "/tokenizer.json: "));
  }
}

TEST(LoadTokenizerTest, AcceptsWhatTheLibraryAccepts) {
  Json json = GoodTokenizerJson();
  json["post_processor"] = {
      {"type", "BertProcessing"}, {"cls", {"[CLS]", 2}}, {"sep", {"[SEP]", 3}}};
  json["model"].erase("type");
  json["added_tokens"].push_back(Added("<x>", 9));
  auto tokenizer = LoadJson(json);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_THAT(Encode(*tokenizer, "a<x>"), ElementsAre(2, 5, 9, 3));
  EXPECT_EQ(tokenizer->vocab_size(), 10);
  EXPECT_EQ(tokenizer->IdToToken(9), "<x>");

  json["normalizer"] = nullptr;
  json["post_processor"] = nullptr;
  tokenizer = LoadJson(json);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_THAT(Encode(*tokenizer, "A é"), ElementsAre(8, 7))
      << "neither case nor accents are touched";
  EXPECT_EQ(tokenizer->num_special_tokens(), 0);
  Encoding out;
  ASSERT_EQ(tokenizer->EncodePair("a", "A", {}, &out), absl::OkStatus());
  EXPECT_THAT(out.type_ids, ElementsAre(0, 1));
}

class VocabFilesTest : public ::testing::Test {
 protected:
  VocabFilesTest() {
    std::string vocab;
    for (const char* token : kTokens) vocab += std::string(token) + "\n";
    dir_.Write("vocab.txt", vocab);
    dir_.Write("tokenizer_config.json", "{}");
  }

  std::string Error(absl::StatusCode code = absl::StatusCode::kInvalidArgument) const {
    const absl::Status status = LoadTokenizer(dir_.path()).status();
    EXPECT_EQ(status.code(), code);
    return std::string(status.message());
  }
  std::vector<int32_t> LoadAndEncode(std::string_view text) const {
    const auto tokenizer = LoadTokenizer(dir_.path());
    EXPECT_EQ(tokenizer.status(), absl::OkStatus());
    if (!tokenizer.ok()) return {};
    return Encode(**tokenizer, text);
  }

  const TempDir dir_;
};

TEST_F(VocabFilesTest, AreReadWithBertsDefaults) {
  EXPECT_THAT(LoadAndEncode("A É [MASK]"), ElementsAre(2, 5, 1, 4, 3));
  dir_.Write("vocab.txt", dir_.Read("vocab.txt") + "e\r\n\n");
  EXPECT_THAT(LoadAndEncode("É"), ElementsAre(2, 9, 3));
}

TEST_F(VocabFilesTest, FollowTheConfig) {
  dir_.Write("tokenizer_config.json",
             R"({"do_lower_case": false, "tokenizer_class": "BertTokenizerFast",
                 "mask_token": {"content": "a", "lstrip": true}, "sep_token": "A"})");
  EXPECT_THAT(LoadAndEncode("é ab"), ElementsAre(2, 7, 5, 1, 8)) << "a is the mask, b unknown";
  dir_.Write("tokenizer_config.json", R"({"do_lower_case": true, "strip_accents": false})");
  EXPECT_THAT(LoadAndEncode("É"), ElementsAre(2, 7, 3));
  dir_.Write("tokenizer_config.json", R"({"tokenize_chinese_chars": false})");
  EXPECT_THAT(LoadAndEncode("\u4e2d\u4e2d"), ElementsAre(2, 1, 3));
  dir_.Write("special_tokens_map.json", R"({"cls_token": "a", "sep_token": {"content": "A"}})");
  EXPECT_THAT(LoadAndEncode(""), ElementsAre(5, 8));
}

TEST_F(VocabFilesTest, MayAddTokens) {
  dir_.Write("tokenizer_config.json",
             R"({"added_tokens_decoder": {"10": {"content": "Y", "special": false},
                                          "9": {"content": "X", "special": true}}})");
  EXPECT_THAT(LoadAndEncode("X x y"), ElementsAre(2, 9, 1, 10, 3));
  dir_.Write("added_tokens.json", R"({"zz": 11, "X": 9})");
  EXPECT_THAT(LoadAndEncode("azz"), ElementsAre(2, 5, 11, 3));
  dir_.Write("added_tokens.json", R"({"zz": 12})");
  EXPECT_THAT(Error(), HasSubstr("\"zz\" has id 12 and would be 11"));
  dir_.Write("added_tokens.json", R"({"zz": "12"})");
  EXPECT_THAT(Error(), HasSubstr("added_tokens.json: zz: is a string"));
}

TEST_F(VocabFilesTest, AreNamedWhenMissing) {
  std::filesystem::remove(dir_.File("tokenizer_config.json"));
  EXPECT_THAT(Error(absl::StatusCode::kNotFound), HasSubstr("tokenizer_config.json"));
  std::filesystem::remove(dir_.File("vocab.txt"));
  const std::string message = Error(absl::StatusCode::kNotFound);
  EXPECT_THAT(message, HasSubstr("tokenizer.json"));
  EXPECT_THAT(message, HasSubstr(dir_.File("vocab.txt")));
}

TEST_F(VocabFilesTest, NameFileAndFieldWhenBad) {
  const std::string config = "tokenizer_config.json: ";
  for (const auto& [content, expected] : std::vector<std::pair<std::string, std::string>>{
           {"[]", config + "top level: is an array"},
           {"{", config},
           {R"({"do_lower_case": 1})", config + "do_lower_case: is an integer"},
           {R"({"strip_accents": "no"})", config + "strip_accents: is a string"},
           {R"({"tokenize_chinese_chars": []})", config + "tokenize_chinese_chars: is an array"},
           {R"({"tokenizer_class": 1})", config + "tokenizer_class: is an integer"},
           {R"({"tokenizer_class": "XLMRobertaTokenizer"})",
            config + "tokenizer_class: \"XLMRobertaTokenizer\" is not supported"},
           {R"({"unk_token": "<unk>"})", config + "unk_token: \"<unk>\" is not in vocab.txt"},
           {R"({"cls_token": "<s>"})", config + "cls_token: \"<s>\" is not in vocab.txt"},
           {R"({"sep_token": 1})", config + "sep_token: is an integer"},
           {R"({"sep_token": {"text": "a"}})", config + "sep_token.content: missing"},
           {R"({"added_tokens_decoder": []})", config + "added_tokens_decoder: is an array"},
           {R"({"added_tokens_decoder": {"x": {"content": "a"}}})",
            config + "added_tokens_decoder.x: the key is no token id"},
           {R"({"added_tokens_decoder": {"9": {"content": 1}}})",
            config + "added_tokens_decoder.9.content: is an integer"}}) {
    dir_.Write("tokenizer_config.json", content);
    EXPECT_THAT(Error(), HasSubstr(dir_.path() + "/" + expected)) << content;
  }
  dir_.Write("tokenizer_config.json", "{}");
  dir_.Write("special_tokens_map.json", R"({"cls_token": []})");
  EXPECT_THAT(Error(), HasSubstr("special_tokens_map.json: cls_token: is an array"));
  dir_.Write("special_tokens_map.json", "{}");
  dir_.Write("vocab.txt", "[UNK]\n[CLS]\n[SEP]\na\nb\na\n");
  EXPECT_THAT(Error(), HasSubstr("vocab.txt: vocab: \"a\" has the ids 3 and 5"));
  dir_.Write("vocab.txt", "[UNK]\n[CLS]\n[SEP]\n\xFF\n");
  EXPECT_THAT(Error(), HasSubstr("vocab.txt: vocab[3]"));
  dir_.Write("vocab.txt", "[UNK]\n[CLS]\na\n");
  EXPECT_THAT(Error(), HasSubstr("sep_token: \"[SEP]\" is not in vocab.txt"));
  dir_.Write("vocab.txt", "");
  EXPECT_THAT(Error(), HasSubstr("unk_token: \"[UNK]\" is not in vocab.txt"));
}

}  // namespace
}  // namespace flashsvd
