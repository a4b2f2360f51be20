#include "runtime/unicode.h"

#include <fmt/format.h>

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/bert_normalizer.h"
#include "runtime/wordpiece.h"
#include "tests/testing/temp_dir.h"

namespace flashsvd {
namespace {

using Json = nlohmann::json;

struct NamedOptions {
  const char* name;
  BertNormalizerOptions options;
};
constexpr NamedOptions kNormalizers[] = {
    {"uncased", {true, true, true, true}},         {"cased", {true, true, false, false}},
    {"cased_stripped", {true, true, true, false}}, {"lower_unstripped", {true, true, false, true}},
    {"untouched", {false, false, false, false}},
};

const Json& Golden() {
  static const Json& json = *new Json(
      Json::parse(testing::ReadFile(std::string(FSVD_TEST_DATA) + "/tokenizer/code_points.json")));
  return json;
}

std::vector<char32_t> AllCodePoints() {
  std::vector<char32_t> all;
  for (char32_t c = 0; c <= kMaxCodePoint; ++c) {
    if (c < 0xD800 || c >= 0xE000) all.push_back(c);
  }
  return all;
}

std::string Utf8(char32_t c) {
  char bytes[4];
  return std::string(bytes, EncodeUtf8(c, bytes));
}

std::string Between(std::string_view before, char32_t c, std::string_view after) {
  std::string text(before);
  text += Utf8(c);
  text += after;
  return text;
}

// Hash of the normalised texts, a line for every code point of a block of 4096.
std::string BlockHash(const BertNormalizer& normalizer, size_t block, std::string_view before,
                      std::string_view after) {
  uint64_t hash = 0xCBF29CE484222325;  // FNV-1a
  for (char32_t c = block * 4096; c < (block + 1) * 4096; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    for (const char byte : normalizer.Normalize(Between(before, c, after)) + "\n") {
      hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001B3;
    }
  }
  return fmt::format("{:x}", hash);
}

// One value for every code point, from runs [value, length].
template <typename T>
std::vector<T> Expand(const Json& runs) {
  std::vector<T> values;
  for (const Json& run : runs) values.insert(values.end(), run.at(1).get<size_t>(), run.at(0));
  return values;
}

TEST(UnicodeTest, DecodesWhatItEncodes) {
  for (const char32_t c : AllCodePoints()) {
    const std::string text = Utf8(c);
    const Utf8Char decoded = DecodeUtf8(text + "x", 0);
    ASSERT_EQ(decoded.code_point, c);
    ASSERT_EQ(decoded.length, text.size());
    for (size_t cut = 1; cut < text.size(); ++cut) {
      ASSERT_EQ(DecodeUtf8(std::string_view(text).substr(0, cut), 0).length, 0u);
    }
  }
}

constexpr size_t kNumBlocks = (kMaxCodePoint + 1) / 4096;

TEST(UnicodeTest, NormalizesEveryCodePointLikeTheReference) {
  const UnicodeTables unicode;
  for (const auto& [name, options] : kNormalizers) {
    const BertNormalizer normalizer(options, unicode);
    const Json& hashes = Golden().at("normalized_hashes").at(name);
    ASSERT_EQ(hashes.size(), kNumBlocks);
    for (size_t block = 0; block < kNumBlocks; ++block) {
      EXPECT_EQ(BlockHash(normalizer, block, "a", "b"), hashes[block])
          << name << fmt::format(", a code point from {:x} on", block * 4096);
    }
  }
}

TEST(UnicodeTest, ReordersMarksAroundEveryCodePointLikeTheReference) {
  const BertNormalizer normalizer({}, UnicodeTables());
  const Json& hashes = Golden().at("reordered_hashes");
  ASSERT_EQ(hashes.size(), kNumBlocks);
  for (size_t block = 0; block < kNumBlocks; ++block) {
    EXPECT_EQ(BlockHash(normalizer, block, "a\u302E", "\u1B44b"), hashes[block])
        << fmt::format("a code point from {:x} on", block * 4096);
  }
}

// Through the tokenizer: dropped, a space, isolated or part of a word.
TEST(UnicodeTest, SplitsAroundEveryCodePointLikeTheReference) {
  const std::vector<char32_t> all = AllCodePoints();
  for (const auto& [name, normalizer] : kNormalizers) {
    WordPieceOptions options;
    options.normalizer = normalizer;
    options.vocab = {"[UNK]", "a", "b", "ab"};
    const auto tokenizer = WordPieceTokenizer::Create(options);
    ASSERT_EQ(tokenizer.status(), absl::OkStatus());
    const auto expected = Expand<std::string>(Golden().at("classes").at(name));
    ASSERT_EQ(expected.size(), all.size());
    Encoding out;
    int num_wrong = 0;
    for (size_t i = 0; i < all.size() && num_wrong < 10; ++i) {
      ASSERT_EQ((*tokenizer)->Encode(Between("a", all[i], "b"), {}, &out), absl::OkStatus());
      const std::string got = out.ids == std::vector{3}         ? "dropped"
                              : out.ids == std::vector{1, 2}    ? "space"
                              : out.ids == std::vector{1, 0, 2} ? "isolated"
                              : out.ids == std::vector{0}       ? "letter"
                                                                : "?";
      EXPECT_EQ(got, expected[i]) << name << fmt::format(", {:x}", static_cast<uint32_t>(all[i]));
      num_wrong += got != expected[i];
    }
  }
}

TEST(UnicodeTest, KnowsEveryWordCharacterOfTheReference) {
  const UnicodeTables unicode;
  const std::vector<char32_t> all = AllCodePoints();
  const auto expected = Expand<bool>(Golden().at("word"));
  ASSERT_EQ(expected.size(), all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    ASSERT_EQ(unicode.IsWord(all[i]), expected[i]) << std::hex << static_cast<uint32_t>(all[i]);
  }
}

}  // namespace
}  // namespace flashsvd
