// Every file of a valid model directory, mutated at random from a fixed seed. Whatever comes of
// it, the directory loads or is refused with a status that names the file.

#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace flashsvd {
namespace {

using ::flashsvd::testing::LoadModelDir;
using ::flashsvd::testing::TempDir;
using ::flashsvd::testing::TinyModel;
using ::testing::AnyOf;
using ::testing::HasSubstr;

class Mutator {
 public:
  explicit Mutator(uint32_t seed) : random_(seed) {}

  // One change or two, which may turn out to change nothing.
  std::string Mutate(std::string content) {
    for (size_t i = 0, n = 1 + Below(2); i < n && !content.empty(); ++i) MutateOnce(content);
    return content;
  }

 private:
  size_t Below(size_t limit) {
    return std::uniform_int_distribution<size_t>(0, limit - 1)(random_);
  }

  void MutateOnce(std::string& content) {
    // What JSON is made of, so that many mutants still parse.
    static constexpr std::string_view kTokens[] = {
        "0", "1",  "9", "-",    ".",    "e9",    "\"", "{", "}",  "[",  "]",    ",",  ":",
        " ", "\\", "/", "null", "true", "false", "..", "A", "[]", "{}", "\"\"", "99", "\xff"};
    // Every eighth change hits the length field of a safetensors file.
    const size_t limit = Below(8) == 0 ? std::min<size_t>(8, content.size()) : content.size();
    const size_t at = Below(limit);
    const size_t length = std::min(content.size() - at, 1 + Below(16));
    const std::string_view token = kTokens[Below(std::size(kTokens))];
    switch (Below(7)) {
      case 0:
        content[at] = static_cast<char>(content[at] ^ (1 << Below(8)));
        break;
      case 1:
        content[at] = static_cast<char>(Below(256));
        break;
      case 2:
        content.erase(at, length);
        break;
      case 3:
        content.insert(at, token);
        break;
      case 4:
        content.replace(at, std::min(content.size() - at, token.size()), token);
        break;
      case 5:
        content.insert(Below(content.size()), content.substr(at, length));
        break;
      default:
        content.resize(at);
        break;
    }
  }

  std::mt19937 random_;
};

// Mutates `name` 2,000 times and restores it.
void Hammer(const TempDir& dir, const std::string& name, const std::string& valid) {
  Mutator mutator(static_cast<uint32_t>(name.size()));
  int refused = 0, loaded = 0;
  for (int i = 0; i < 2000; ++i) {
    dir.Write(name, mutator.Mutate(valid));
    const absl::Status status = LoadModelDir(dir.path());
    ++(status.ok() ? loaded : refused);
    if (status.ok()) continue;
    // Where two files disagree, either may be named.
    ASSERT_THAT(std::string(status.message()),
                AnyOf(HasSubstr(dir.File(name)), HasSubstr("model.safetensors"),
                      HasSubstr("hidden_size"), HasSubstr("another shard")))
        << "mutant " << i << " of " << name;
    ASSERT_THAT(std::string(status.message()), HasSubstr(dir.path()));
  }
  // Both must happen, or the mutations are too tame or too wild to show anything.
  EXPECT_GT(refused, 200) << name;
  EXPECT_GT(loaded, 0) << name;
  dir.Write(name, valid);
  EXPECT_TRUE(LoadModelDir(dir.path()).ok());
}

TEST(MutatedFilesTest, ModelDirectoryLoadsOrIsRefusedByName) {
  const TempDir dir;
  const TinyModel model;
  model.WriteTo(dir);
  const std::string weights = dir.Read("model.safetensors");
  for (const auto& [name, content] : model.files) Hammer(dir, name, content);
  Hammer(dir, "model.safetensors", weights);
}

TEST(MutatedFilesTest, ShardedSetLoadsOrIsRefusedByName) {
  const TempDir dir;
  TinyModel model;
  model.Shard();
  model.WriteTo(dir);
  for (const std::string name :
       {"model.safetensors.index.json", "1.safetensors", "2.safetensors"}) {
    Hammer(dir, name, model.files.at(name));
  }
}

}  // namespace
}  // namespace flashsvd
