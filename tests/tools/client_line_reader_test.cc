#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/temp_dir.h"
#include "tools/client/line_reader.h"
#include "tools/client/text_source.h"

namespace flashsvd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ClientLineReaderTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& content) {
    dir_.Write("lines.txt", content);
    return dir_.File("lines.txt");
  }

  std::vector<std::string> ReadAll(const std::string& content) {
    absl::StatusOr<LineReader> reader = LineReader::Open(Write(content));
    EXPECT_TRUE(reader.ok()) << reader.status();
    std::vector<std::string> lines;
    std::string line;
    for (;;) {
      const absl::StatusOr<bool> any = reader->Next(&line);
      EXPECT_TRUE(any.ok()) << any.status();
      if (!any.ok() || !*any) return lines;
      lines.push_back(line);
    }
  }

  testing::TempDir dir_;
};

TEST_F(ClientLineReaderTest, SplitsAtNewlinesAndKeepsAnUnterminatedLastLine) {
  EXPECT_THAT(ReadAll(""), ElementsAre());
  EXPECT_THAT(ReadAll("a\nb\n"), ElementsAre("a", "b"));
  EXPECT_THAT(ReadAll("a\n\nb"), ElementsAre("a", "", "b"));
  EXPECT_THAT(ReadAll("\n"), ElementsAre(""));
}

TEST_F(ClientLineReaderTest, DropsCarriageReturnsAndByteOrderMark) {
  EXPECT_THAT(ReadAll("\xEF\xBB\xBF"
                      "a\r\nb\rc\r\n"),
              ElementsAre("a", "b\rc"));
}

TEST_F(ClientLineReaderTest, KeepsLinesLongerThanTheBufferWhole) {
  const std::string longest(LineReader::kMaxLineBytes, 'x');
  EXPECT_THAT(ReadAll("short\n" + longest + "\nend"), ElementsAre("short", longest, "end"));
}

TEST_F(ClientLineReaderTest, RefusesALineOverTheLimitByNumber) {
  absl::StatusOr<LineReader> reader =
      LineReader::Open(Write("ok\n" + std::string(LineReader::kMaxLineBytes + 1, 'x') + "\n"));
  ASSERT_TRUE(reader.ok());
  std::string line;
  ASSERT_TRUE(reader->Next(&line).value());
  const absl::StatusOr<bool> next = reader->Next(&line);
  EXPECT_EQ(next.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(next.status().message()), HasSubstr("lines.txt:2: longer than"));
}

TEST_F(ClientLineReaderTest, NamesLineAndByteOfInvalidUtf8) {
  absl::StatusOr<LineReader> reader = LineReader::Open(Write("caf\xC3\xA9\nab\xC3(\n"));
  ASSERT_TRUE(reader.ok());
  std::string line;
  ASSERT_TRUE(reader->Next(&line).value());
  const absl::StatusOr<bool> next = reader->Next(&line);
  EXPECT_EQ(next.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(next.status().message()),
              HasSubstr("lines.txt:2: not UTF-8 at byte 2 (0xc3)"));
}

TEST_F(ClientLineReaderTest, EmptyLinesAreRefusedByNumberOrSkipped) {
  const std::string path = Write("a\n\n\nb\n\n");
  std::string text;
  absl::StatusOr<LineReader> strict = LineReader::Open(path);
  ASSERT_TRUE(strict.ok());
  ASSERT_TRUE(NextText(*strict, false, &text).value());
  const absl::StatusOr<bool> refused = NextText(*strict, false, &text);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("lines.txt:2: empty line"));

  absl::StatusOr<LineReader> lenient = LineReader::Open(path);
  ASSERT_TRUE(lenient.ok());
  ASSERT_TRUE(NextText(*lenient, true, &text).value());
  ASSERT_TRUE(NextText(*lenient, true, &text).value());
  EXPECT_EQ(text, "b");
  EXPECT_FALSE(NextText(*lenient, true, &text).value());
}

TEST_F(ClientLineReaderTest, MissingFileIsNotFoundWithItsPath) {
  const absl::StatusOr<LineReader> reader = LineReader::Open(dir_.File("none"));
  EXPECT_EQ(reader.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(reader.status().message()), HasSubstr("/none"));
}

TEST_F(ClientLineReaderTest, CountsAnUnterminatedLastLine) {
  EXPECT_EQ(CountLines(Write("")), 0);
  EXPECT_EQ(CountLines(Write("a\nb\n")), 2);
  EXPECT_EQ(CountLines(Write("a\nb")), 2);
  EXPECT_EQ(CountLines(dir_.File("none")), 0);
  EXPECT_EQ(CountLines("/dev/null"), 0);
}

TEST(ClientUtf8Test, FindsTheFirstByteOfAMalformedSequence) {
  EXPECT_EQ(FindInvalidUtf8("plain \xE2\x82\xAC \xF0\x9F\x98\x80"), std::string_view::npos);
  EXPECT_EQ(FindInvalidUtf8("a\x80"), 1u);                // stray continuation
  EXPECT_EQ(FindInvalidUtf8("ab\xE2\x82"), 2u);           // cut short
  EXPECT_EQ(FindInvalidUtf8("\xC0\xAF"), 0u);             // overlong
  EXPECT_EQ(FindInvalidUtf8("x\xED\xA0\x80"), 1u);        // surrogate
  EXPECT_EQ(FindInvalidUtf8("xyz\xF4\x90\x80\x80"), 3u);  // above U+10FFFF
  EXPECT_EQ(FindInvalidUtf8(std::string_view("\0a", 2)), std::string_view::npos);
}

}  // namespace
}  // namespace flashsvd
