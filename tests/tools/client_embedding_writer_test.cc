#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/temp_dir.h"
#include "tools/client/embedding_writer.h"

namespace flashsvd {
namespace {

using ::testing::HasSubstr;

class ClientEmbeddingWriterTest : public ::testing::Test {
 protected:
  int FilesInDir() const {
    return static_cast<int>(std::distance(std::filesystem::directory_iterator(dir_.path()), {}));
  }
  testing::TempDir dir_;
};

TEST_F(ClientEmbeddingWriterTest, NpyHoldsShapeAndRowsInOrder) {
  const std::vector<float> first = {1.5f, -2.0f, 3.25f};
  const std::vector<float> second = {0.1f, 0.2f, 0.3f};
  auto writer = EmbeddingWriter::Open(dir_.File("e.npy"), EmbeddingFormat::kNpy);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE((*writer)->Append(first, 3, false).ok());
  ASSERT_TRUE((*writer)->Append(second, 3, false).ok());
  ASSERT_TRUE((*writer)->Finish().ok());

  const std::string file = dir_.Read("e.npy");
  ASSERT_EQ(file.size(), 128 + 6 * sizeof(float));
  EXPECT_EQ(file.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  EXPECT_EQ(static_cast<unsigned char>(file[8]) + 256 * static_cast<unsigned char>(file[9]), 118);
  EXPECT_THAT(file.substr(10, 118),
              HasSubstr("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"));
  EXPECT_EQ(file[127], '\n');
  EXPECT_EQ(std::memcmp(file.data() + 128, first.data(), 12), 0);
  EXPECT_EQ(std::memcmp(file.data() + 140, second.data(), 12), 0);
}

TEST_F(ClientEmbeddingWriterTest, NpyOfNoRowIsStillANpy) {
  auto writer = EmbeddingWriter::Open(dir_.File("e.npy"), EmbeddingFormat::kNpy);
  ASSERT_TRUE((*writer)->Finish().ok());
  EXPECT_THAT(dir_.Read("e.npy"), HasSubstr("'shape': (0, 0)"));
}

TEST_F(ClientEmbeddingWriterTest, RefusesRowsOfDifferentLengths) {
  auto writer = EmbeddingWriter::Open(dir_.File("e.npy"), EmbeddingFormat::kNpy);
  ASSERT_TRUE((*writer)->Append(std::vector<float>{1, 2}, 3, false).ok());
  EXPECT_EQ((*writer)->Append(std::vector<float>{1}, 3, false).code(), absl::StatusCode::kInternal);
}

TEST_F(ClientEmbeddingWriterTest, WithoutFinishTheOldFileStays) {
  dir_.Write("e.npy", "old");
  {
    auto writer = EmbeddingWriter::Open(dir_.File("e.npy"), EmbeddingFormat::kNpy);
    ASSERT_TRUE((*writer)->Append(std::vector<float>{1, 2}, 3, false).ok());
  }
  EXPECT_EQ(dir_.Read("e.npy"), "old");
  EXPECT_EQ(FilesInDir(), 1);
}

TEST_F(ClientEmbeddingWriterTest, JsonLinesReadBackToTheSameFloats) {
  const std::vector<float> row = {0.1f, -1e-30f, 3.4028235e38f, 1.0f};
  auto writer = EmbeddingWriter::Open(dir_.File("e.jsonl"), EmbeddingFormat::kJsonLines);
  ASSERT_TRUE((*writer)->Append(row, 7, true).ok());
  ASSERT_TRUE((*writer)->Append(row, 5, false).ok());
  ASSERT_TRUE((*writer)->Finish().ok());
  std::ifstream in(dir_.File("e.jsonl"));
  std::string line;
  ASSERT_TRUE(std::getline(in, line));
  nlohmann::json json = nlohmann::json::parse(line);
  EXPECT_EQ(json["index"], 0);
  EXPECT_EQ(json["tokens"], 7);
  EXPECT_EQ(json["truncated"], true);
  EXPECT_EQ(json["embedding"].get<std::vector<float>>(), row);
  ASSERT_TRUE(std::getline(in, line));
  EXPECT_EQ(nlohmann::json::parse(line)["index"], 1);
  EXPECT_FALSE(std::getline(in, line));
}

TEST_F(ClientEmbeddingWriterTest, WritesThroughADeviceInsteadOfReplacingIt) {
  auto writer = EmbeddingWriter::Open("/dev/null", EmbeddingFormat::kJsonLines);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE((*writer)->Append(std::vector<float>{1}, 1, false).ok());
  EXPECT_TRUE((*writer)->Finish().ok());
  struct stat info = {};
  ASSERT_EQ(stat("/dev/null", &info), 0);
  EXPECT_TRUE(S_ISCHR(info.st_mode));
}

TEST_F(ClientEmbeddingWriterTest, UnwritablePathNamesItself) {
  const auto writer = EmbeddingWriter::Open(dir_.File("none/e.npy"), EmbeddingFormat::kNpy);
  EXPECT_EQ(writer.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(writer.status().message()), HasSubstr("none/e.npy"));
}

TEST_F(ClientEmbeddingWriterTest, FormatFollowsTheExtension) {
  EXPECT_EQ(FormatOfPath("a.npy").value(), EmbeddingFormat::kNpy);
  EXPECT_EQ(FormatOfPath("a.npy.jsonl").value(), EmbeddingFormat::kJsonLines);
  EXPECT_EQ(FormatOfPath("a.txt").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace flashsvd
