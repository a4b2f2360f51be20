#include "runtime/wordpiece.h"

#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/counting_new.h"
#include "tests/testing/temp_dir.h"

namespace flashsvd {
namespace {

using Json = nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

const std::string kGolden = std::string(FSVD_TEST_DATA) + "/tokenizer/";

std::vector<std::string> Lines(const std::string& file) {
  std::ifstream in(kGolden + file, std::ios::binary);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  EXPECT_THAT(lines, ::testing::Not(::testing::IsEmpty())) << file;
  return lines;
}

Json Golden(const std::string& file) { return Json::parse(testing::ReadFile(kGolden + file)); }

// The tokenizers of variants.json, each loaded once from a tokenizer.json with the real vocabulary.
class Variants {
 public:
  Variants() : variants_(Golden("variants.json")) {
    const std::vector<std::string> lines = Lines("vocab.txt");
    for (size_t i = 0; i < lines.size(); ++i) vocab_[lines[i]] = i;
  }

  const Tokenizer& Get(const std::string& name) {
    std::unique_ptr<Tokenizer>& tokenizer = loaded_[name];
    if (tokenizer == nullptr) {
      Json file = variants_.at(name);
      file["model"]["vocab"] = vocab_;
      const testing::TempDir dir;
      dir.Write("tokenizer.json", file.dump());
      auto result = LoadTokenizer(dir.path());
      if (!result.ok()) throw std::runtime_error(result.status().ToString());
      tokenizer = *std::move(result);
    }
    return *tokenizer;
  }

 private:
  const Json variants_;
  Json vocab_;
  std::map<std::string, std::unique_ptr<Tokenizer>> loaded_;
};

Variants& AllVariants() {
  static Variants& variants = *new Variants;
  return variants;
}

// One line of cases.jsonl.
struct Case {
  explicit Case(const Json& json)
      : variant(json.at("v")),
        first(json.at("a")),
        is_pair(json.contains("b")),
        second(json.value("b", "")),
        ids(json.at("ids")) {
    options.max_tokens = json.value("limit", 1 << 30);
    options.truncation = json.value("keep", "") == "left" ? Truncation::kLeft : Truncation::kRight;
    options.add_special_tokens = json.value("special", true);
    options.with_offsets = true;
    type_ids = is_pair ? json.at("types").get<std::vector<int32_t>>()
                       : std::vector<int32_t>(ids.size(), 0);
    const std::vector<uint32_t> flat = json.at("offsets");
    for (size_t i = 0; i + 1 < flat.size(); i += 2) offsets.push_back({flat[i], flat[i + 1]});
  }

  absl::Status Encode(const Tokenizer& tokenizer, const EncodeOptions& with, Encoding* out) const {
    return is_pair ? tokenizer.EncodePair(first, second, with, out)
                   : tokenizer.Encode(first, with, out);
  }

  std::string variant, first;
  bool is_pair;
  std::string second;
  EncodeOptions options;
  std::vector<int32_t> ids, type_ids;
  std::vector<ByteSpan> offsets;
};

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const std::string& line : Lines("cases.jsonl")) cases.emplace_back(Json::parse(line));
  return cases;
}

std::vector<std::pair<uint32_t, uint32_t>> Pairs(const std::vector<ByteSpan>& spans) {
  std::vector<std::pair<uint32_t, uint32_t>> pairs;
  for (const ByteSpan& span : spans) pairs.emplace_back(span.begin, span.end);
  return pairs;
}

TEST(WordPieceTest, EncodesEveryFixtureTextLikeTheReference) {
  Variants& variants = AllVariants();
  Encoding out;
  int num_uncased = 0;
  for (const Case& c : AllCases()) {
    SCOPED_TRACE(c.variant + ": " + Json(c.first).dump() + " " + Json(c.second).dump());
    const Tokenizer& tokenizer = variants.Get(c.variant);
    num_uncased += c.variant == "uncased";
    ASSERT_EQ(c.Encode(tokenizer, c.options, &out), absl::OkStatus());
    EXPECT_EQ(out.ids, c.ids);
    EXPECT_EQ(out.type_ids, c.type_ids);
    EXPECT_EQ(Pairs(out.offsets), Pairs(c.offsets));

    EncodeOptions plain = c.options;
    plain.with_offsets = false;
    ASSERT_EQ(c.Encode(tokenizer, plain, &out), absl::OkStatus());
    EXPECT_EQ(out.ids, c.ids);
    EXPECT_THAT(out.offsets, SizeIs(0));
    const bool truncated = out.truncated;

    EncodeOptions unlimited = plain;
    unlimited.max_tokens = 1 << 30;
    ASSERT_EQ(c.Encode(tokenizer, unlimited, &out), absl::OkStatus());
    EXPECT_EQ(truncated, out.ids.size() > c.ids.size());
    EncodeOptions refusing = plain;
    refusing.truncation = Truncation::kNone;
    EXPECT_EQ(c.Encode(tokenizer, refusing, &out).code(),
              truncated ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kOk);
    if (HasFailure()) break;
  }
  EXPECT_GE(num_uncased, 3000);
}

// Joined by full stops, which nothing reaches across, texts keep their tokens. The whole is longer
// than every buffer of the encoder.
TEST(WordPieceTest, EncodesALongTextAsItsParts) {
  Variants& variants = AllVariants();
  for (const char* variant : {"uncased", "added", "added_cased"}) {
    const Tokenizer& tokenizer = variants.Get(variant);
    EncodeOptions options = {.max_tokens = 1 << 30, .add_special_tokens = false};
    options.with_offsets = true;
    std::vector<std::string> pieces;
    for (const Case& c : AllCases()) {
      if (c.variant == variant && !c.is_pair) pieces.push_back(c.first);
    }
    // An added token that is refused, at every position relative to the buffers' ends.
    pieces.insert(pieces.end(), 2000, "xété!");
    std::string text;
    Encoding part, expected, whole;
    for (const std::string& piece : pieces) {
      for (const std::string& encoded : {piece, std::string(".")}) {
        ASSERT_EQ(tokenizer.Encode(encoded, options, &part), absl::OkStatus());
        expected.ids.insert(expected.ids.end(), part.ids.begin(), part.ids.end());
        for (const ByteSpan& span : part.offsets) {
          expected.offsets.push_back({span.begin + static_cast<uint32_t>(text.size()),
                                      span.end + static_cast<uint32_t>(text.size())});
        }
        text += encoded;
      }
    }
    ASSERT_EQ(tokenizer.Encode(text, options, &whole), absl::OkStatus());
    EXPECT_EQ(whole.ids, expected.ids);
    EXPECT_EQ(Pairs(whole.offsets), Pairs(expected.offsets));

    options.max_tokens = 7;
    options.truncation = Truncation::kLeft;
    ASSERT_EQ(tokenizer.Encode(text, options, &whole), absl::OkStatus());
    EXPECT_EQ(whole.ids, std::vector<int32_t>(expected.ids.end() - 7, expected.ids.end()));
    EXPECT_EQ(Pairs(whole.offsets),
              Pairs(std::vector<ByteSpan>(expected.offsets.end() - 7, expected.offsets.end())));
    options.truncation = Truncation::kRight;
    ASSERT_EQ(tokenizer.Encode(text, options, &whole), absl::OkStatus());
    EXPECT_EQ(whole.ids, std::vector<int32_t>(expected.ids.begin(), expected.ids.begin() + 7));
  }
}

// Unlike the fixture's, words as long as the buffer and longer, with pieces as long as supported.
TEST(WordPieceTest, TakesTheLongestPieceOfVeryLongWords) {
  WordPieceOptions options;
  options.max_chars_per_word = 20'000;
  options.vocab = {"[UNK]", "a", "##a", "##b", "##ab", "##bba", "##aab", "c"};
  options.vocab.push_back("##" + std::string(1022, 'a'));
  options.vocab.push_back(std::string(1024, 'a'));
  const auto tokenizer = WordPieceTokenizer::Create(options);
  ASSERT_EQ(tokenizer.status(), absl::OkStatus());

  std::mt19937 rng(5);
  const EncodeOptions encode = {.max_tokens = 1 << 30, .with_offsets = true};
  Encoding out;
  for (int round = 0; round < 60; ++round) {
    std::string word = "a";
    const size_t length = 1 + rng() % 9000;
    while (word.size() < length) {
      word += rng() % 3 == 0 ? std::string(rng() % 1500, 'a') : std::string(rng() % 4, 'b');
    }
    if (round % 4 == 0) word.insert(word.begin() + rng() % word.size(), 'c');  // no following piece
    std::vector<int32_t> expected;
    std::vector<ByteSpan> spans;
    for (size_t at = 0; at < word.size();) {
      std::string rest(at == 0 ? 0 : 2, '#');
      rest.append(word, at);
      size_t longest = 0;  // index into the vocabulary; [UNK] starts no word
      for (size_t i = 1; i < options.vocab.size(); ++i) {
        const bool is_longer =
            longest == 0 || options.vocab[i].size() > options.vocab[longest].size();
        if (is_longer && rest.starts_with(options.vocab[i])) longest = i;
      }
      if (longest == 0) {
        expected = {0};
        spans = {{0, static_cast<uint32_t>(word.size())}};
        break;
      }
      const size_t end = at + options.vocab[longest].size() - (at == 0 ? 0 : 2);
      expected.push_back(static_cast<int32_t>(longest));
      spans.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(end)});
      at = end;
    }
    ASSERT_EQ((*tokenizer)->Encode(word, encode, &out), absl::OkStatus());
    ASSERT_EQ(out.ids, expected) << word;
    ASSERT_EQ(Pairs(out.offsets), Pairs(spans)) << word;
  }
}

TEST(WordPieceTest, NamesTheByteAtWhichTextStopsBeingUtf8) {
  Variants& variants = AllVariants();
  const Json cases = Golden("invalid.json");
  ASSERT_GE(cases.size(), 500u);
  for (const char* variant : {"uncased", "added", "untouched"}) {
    const Tokenizer& tokenizer = variants.Get(variant);
    Encoding out;
    for (const Json& c : cases) {
      const std::string hex = c.at("hex");
      std::string text;
      for (size_t i = 0; i < hex.size(); i += 2) {
        text += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
      }
      const std::string where = "not UTF-8 at byte " + c.at("at").dump();
      const absl::Status status = tokenizer.Encode(text, {}, &out);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << hex;
      EXPECT_EQ(status.message(), "text: " + where) << hex;
      EXPECT_EQ(tokenizer.EncodePair("a", text, {}, &out).message(), "second text: " + where);
    }
  }
}

TEST(WordPieceTest, LeavesTextBehindTheTokenLimitAlone) {
  Variants& variants = AllVariants();
  const Tokenizer& tokenizer = variants.Get("uncased");
  EncodeOptions options = {.max_tokens = 4};
  Encoding out;
  EXPECT_EQ(tokenizer.Encode("one two three four \xFF", options, &out), absl::OkStatus());
  EXPECT_THAT(out.ids, SizeIs(4));
  EXPECT_TRUE(out.truncated);
  EXPECT_FALSE(tokenizer.Encode("one two \xFF", options, &out).ok());
  options.truncation = Truncation::kLeft;
  EXPECT_FALSE(tokenizer.Encode("\xFF one two three four", options, &out).ok());
}

TEST(WordPieceTest, RefusesTooManyTokensWhenTruncationIsOff) {
  Variants& variants = AllVariants();
  const Tokenizer& tokenizer = variants.Get("uncased");
  EncodeOptions options = {.max_tokens = 5, .truncation = Truncation::kNone};
  Encoding out;
  EXPECT_EQ(tokenizer.Encode("one two three", options, &out), absl::OkStatus());
  EXPECT_THAT(std::string(tokenizer.Encode("one two three four", options, &out).message()),
              HasSubstr("more than the 3 tokens that max_tokens 5 leaves"));
  EXPECT_EQ(tokenizer.EncodePair("one", "two", options, &out), absl::OkStatus());
  EXPECT_FALSE(tokenizer.EncodePair("one two", "three", options, &out).ok());
  options.max_tokens = 1;
  EXPECT_THAT(std::string(tokenizer.Encode("", options, &out).message()),
              HasSubstr("max_tokens is 1, but 2 special tokens"));
  options.add_special_tokens = false;
  EXPECT_EQ(tokenizer.Encode("one", options, &out), absl::OkStatus());
}

TEST(WordPieceTest, EncodesAMebibyteOfAnything) {
  Variants& variants = AllVariants();
  const auto repeat = [](std::string_view s) {
    std::string text;
    while (text.size() < 1 << 20) text += s;
    return text;
  };
  const uint32_t size = 1 << 20;
  EncodeOptions options = {.max_tokens = 100, .truncation = Truncation::kLeft};
  options.with_offsets = true;
  Encoding out;
  for (const char* variant : {"uncased", "added", "long_words"}) {
    const Tokenizer& tokenizer = variants.Get(variant);
    ASSERT_EQ(tokenizer.Encode(repeat("z"), options, &out), absl::OkStatus());
    EXPECT_THAT(out.ids, ElementsAre(101, 100, 102)) << "one word, unknown for its length";
    EXPECT_EQ(out.offsets[1], (ByteSpan{0, size}));
    ASSERT_EQ(tokenizer.Encode(repeat("\xCC\x81\xCC\xA3"), options, &out), absl::OkStatus());
    EXPECT_THAT(out.ids, ElementsAre(101, 102)) << "marks that are all stripped";
    // U+302E and U+1B44 stay, the latter first; U+0301 goes.
    ASSERT_EQ(tokenizer.Encode(repeat("\xE3\x80\xAE\xCC\x81\xE1\xAD\x84"), options, &out),
              absl::OkStatus());
    EXPECT_THAT(out.ids, ElementsAre(101, 100, 102));
    ASSERT_EQ(tokenizer.Encode(repeat("[SEP]"), options, &out), absl::OkStatus());
    EXPECT_THAT(out.ids, SizeIs(100));
    ASSERT_EQ(tokenizer.Encode(repeat("\xE4\xB8\xAD"), options, &out), absl::OkStatus());
    EXPECT_THAT(out.ids, SizeIs(100));
  }
}

TEST(WordPieceTest, SurvivesRandomBytes) {
  Variants& variants = AllVariants();
  std::mt19937 rng(11);
  Encoding out;
  int num_encoded = 0;
  for (const char* variant : {"uncased", "added", "added_cased"}) {
    const Tokenizer& tokenizer = variants.Get(variant);
    for (int round = 0; round < 20'000; ++round) {
      std::string text(rng() % 24, '\0');
      const unsigned mask = round % 2 == 0 ? 0xFF : 0x7F;
      for (char& byte : text) byte = static_cast<char>(rng() & mask);
      EncodeOptions options = {.max_tokens = static_cast<int>(2 + rng() % 20)};
      options.truncation = rng() % 2 == 0 ? Truncation::kRight : Truncation::kLeft;
      options.with_offsets = true;
      const absl::Status status = tokenizer.Encode(text, options, &out);
      if (!status.ok()) {
        ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
        continue;
      }
      ++num_encoded;
      ASSERT_LE(out.ids.size(), static_cast<size_t>(options.max_tokens));
      ASSERT_EQ(out.offsets.size(), out.ids.size());
      for (size_t i = 0; i < out.ids.size(); ++i) {
        ASSERT_GE(out.ids[i], 0);
        ASSERT_LT(out.ids[i], tokenizer.vocab_size());
        ASSERT_LE(out.offsets[i].begin, out.offsets[i].end);
        ASSERT_LE(out.offsets[i].end, text.size());
      }
    }
  }
  EXPECT_GT(num_encoded, 10'000);
}

TEST(WordPieceTest, AllocatesNothingForAReusedEncoding) {
  Variants& variants = AllVariants();
  const std::vector<Case> cases = AllCases();
  for (const Case& c : cases) variants.Get(c.variant);
  Encoding out;
  const auto encode_all = [&] {
    int num_failed = 0;
    for (const Case& c : cases) {
      num_failed += !c.Encode(variants.Get(c.variant), c.options, &out).ok();
    }
    return num_failed;
  };
  EXPECT_EQ(encode_all(), 0);
  const int64_t before = testing::NumAllocations();
  EXPECT_GT(before, 0);
  EXPECT_EQ(encode_all(), 0);
  EXPECT_EQ(testing::NumAllocations(), before);
}

TEST(WordPieceTest, ServesSeveralThreadsAtOnce) {
  Variants& variants = AllVariants();
  const Tokenizer& tokenizer = variants.Get("added");
  const std::vector<Case> cases = AllCases();
  std::vector<std::thread> threads;
  std::vector<int> num_wrong(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Encoding out;
      for (size_t i = t; i < cases.size(); ++i) {
        if (cases[i].variant != "added") continue;
        const absl::Status status = cases[i].Encode(tokenizer, cases[i].options, &out);
        num_wrong[t] += !status.ok() || out.ids != cases[i].ids;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(num_wrong, ElementsAre(0, 0, 0, 0));
}

}  // namespace
}  // namespace flashsvd
