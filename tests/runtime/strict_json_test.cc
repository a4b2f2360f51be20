#include "runtime/strict_json.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/temp_dir.h"

namespace flashsvd {
namespace {

using ::testing::HasSubstr;

TEST(StrictJsonTest, ParsesWhatNlohmannParses) {
  const std::string text =
      R"({"a":[1,-2,3.5,true,false,null,"x\u00e9",[],{}],"b":{"a":{"a":18446744073709551615}}})";
  const auto value = ParseStrictJson(text);
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ(*value, nlohmann::json::parse(text));
}

TEST(StrictJsonTest, RefusesWhatNlohmannLetsPass) {
  using namespace std::string_literals;
  const std::string deep(100000, '[');
  const std::pair<std::string, const char*> cases[] = {
      {R"({"a":1,"b":2,"a":3})", "duplicate key \"a\""},
      {R"({"x":{"a":{},"\u0061":{}}})", "duplicate key \"a\""},
      {R"([{"k\n":1,"k\n":1}])", "duplicate key \"k\\u000a\""},
      {"{}\0{"s, "byte 3"},
      {"\xef\xbb\xbf{}", "byte order mark"},
      {deep, "nested deeper than 64"},
      {deep + std::string(100000, ']'), "nested deeper than 64"},
  };
  for (const auto& [text, message] : cases) {
    const auto value = ParseStrictJson(text);
    EXPECT_EQ(value.status().code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(value.status().message()), HasSubstr(message));
  }
}

TEST(StrictJsonTest, RefusesMalformedText) {
  for (const std::string text : {"", " ", "{", "{\"a\":}", "[1,]", "01", "1e999", "nul", "{} {}",
                                 "\"\xff\"", "\"\n\"", "{'a':1}", "// x\n1", "\"\\ud800\""}) {
    const auto value = ParseStrictJson(text);
    EXPECT_EQ(value.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(value.status().message()), HasSubstr("not valid JSON")) << text;
  }
}

TEST(StrictJsonTest, AcceptsSixtyFourLevels) {
  EXPECT_TRUE(ParseStrictJson(std::string(64, '[') + std::string(64, ']')).ok());
  EXPECT_FALSE(ParseStrictJson(std::string(65, '[') + std::string(65, ']')).ok());
}

TEST(StrictJsonTest, FileErrorsNameTheFile) {
  const testing::TempDir dir;
  dir.Write("number.json", "1");
  dir.Write("bad.json", "{\n\"a\" 1}");
  const auto number = ReadJsonFile(dir.File("number.json"));
  EXPECT_THAT(std::string(number.status().message()), HasSubstr("number.json: holds an integer"));
  const auto bad = ReadJsonFile(dir.File("bad.json"));
  EXPECT_THAT(std::string(bad.status().message()), HasSubstr("bad.json: not valid JSON: "));
  EXPECT_THAT(std::string(bad.status().message()), HasSubstr("line 2"));
  EXPECT_EQ(ReadJsonFile(dir.File("none.json")).status().code(), absl::StatusCode::kNotFound);
}

TEST(StrictJsonTest, QuotedTextFitsOneLogLine) {
  EXPECT_EQ(Quoted("h\u00e9\n\x7f\xff"), "\"h\u00e9\\u000a\\u007f\\xff\"");
  EXPECT_EQ(Escaped(std::string(1000, 'a')), std::string(100, 'a') + "...");
}

}  // namespace
}  // namespace flashsvd
