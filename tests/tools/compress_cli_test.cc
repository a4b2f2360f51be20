#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/tools/tiny_bert.h"
#include "tools/compress/cli.h"

namespace flashsvd {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

struct Outcome {
  int code = 0;
  std::string out;
  std::string err;
};

Outcome RunTool(std::vector<std::string> args, const std::atomic<bool>* cancelled = nullptr) {
  std::vector<const char*> argv = {"flashsvd-compress"};
  for (const std::string& arg : args) argv.push_back(arg.c_str());
  char* texts[2] = {nullptr, nullptr};
  size_t sizes[2] = {0, 0};
  std::FILE* files[2] = {open_memstream(&texts[0], &sizes[0]),
                         open_memstream(&texts[1], &sizes[1])};
  Outcome outcome;
  outcome.code =
      RunCompress(static_cast<int>(argv.size()), argv.data(), files[0], files[1], cancelled);
  for (std::FILE* file : files) std::fclose(file);
  outcome.out.assign(texts[0], sizes[0]);
  outcome.err.assign(texts[1], sizes[1]);
  for (char* text : texts) std::free(text);
  return outcome;
}

// The one error line; progress lines before it are dropped.
std::string ErrorLine(const Outcome& outcome) {
  const size_t at = outcome.err.find("flashsvd-compress: ");
  EXPECT_NE(at, std::string::npos) << outcome.err;
  if (at == std::string::npos) return "";
  const std::string line = outcome.err.substr(at);
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1) << line;
  EXPECT_TRUE(line.ends_with('\n')) << line;
  return line;
}

class CompressCliTest : public testing::Test {
 protected:
  CompressCliTest()
      : dir_(fs::path(testing::TempDir()) /
             (std::string("fsvd_cli_") +
              testing::UnitTest::GetInstance()->current_test_info()->name())),
        model_((dir_ / "model").string()),
        out_((dir_ / "out").string()) {
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }
  ~CompressCliTest() override { fs::remove_all(dir_); }

  // Nothing of an unfinished run may stay beside --out.
  void ExpectNoLeftovers() const {
    for (const auto& entry : fs::directory_iterator(dir_)) {
      EXPECT_THAT(entry.path().filename().string(), Not(StartsWith("."))) << "left behind";
    }
  }

  const fs::path dir_;
  const std::string model_;
  const std::string out_;
};

TEST_F(CompressCliTest, HelpExplainsFlagsLayoutsAndShowsExamples) {
  const Outcome help = RunTool({"--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.out, AllOf(HasSubstr("--keep"), HasSubstr("--ranks"), HasSubstr("qkv_shared"),
                              HasSubstr("A = sqrt(S) V'"), HasSubstr("Examples:")));
  EXPECT_EQ(help.err, "");
}

TEST_F(CompressCliTest, WrongCommandLinesExitWith2AndNameTheFlag) {
  TinyBert().Write(model_);
  const struct {
    std::vector<std::string> args;
    const char* message;
  } cases[] = {
      {{}, "exactly one of --keep and --ranks"},
      {{"--keep", "0.5", "--ranks", "2,2,2"}, "--ranks"},
      {{"--keep", "0"}, "--keep: 0 is not in (0, 1]"},
      {{"--keep", "-0.5"}, "--keep: -0.5 is not in"},
      {{"--keep", "1.01"}, "--keep: 1.01 is not in"},
      {{"--keep", "nan"}, "--keep: nan is not in"},
      {{"--keep", "half"}, "--keep"},
      {{"--keep"}, "--keep"},
      {{"--ranks", "2,2"}, "--ranks: 2 numbers, three are needed"},
      {{"--ranks", "2,2,2,2"}, "--ranks: 4 numbers"},
      {{"--ranks", "2,0,2"}, "--ranks: 0 is not a positive rank"},
      {{"--ranks", "2,x,2"}, "--ranks"},
      {{"--keep", "0.5", "--layout", "dense"}, "--layout"},
      {{"--keep", "0.5", "--dtype", "int8"}, "--dtype"},
      {{"--keep", "0.5", "--threads", "0"}, "--threads"},
      {{"--keep", "0.5", "--rank", "3"}, "--rank"},
      {{"--keep", "0.5", "--out", ""}, "--out"},
  };
  for (const auto& c : cases) {
    std::vector<std::string> args = {"--model", model_};
    if (!std::count(c.args.begin(), c.args.end(), "--out")) {
      args.insert(args.end(), {"--out", out_});
    }
    args.insert(args.end(), c.args.begin(), c.args.end());
    SCOPED_TRACE(c.message);
    const Outcome outcome = RunTool(args);
    EXPECT_EQ(outcome.code, 2);
    EXPECT_THAT(ErrorLine(outcome), HasSubstr(c.message));
    EXPECT_EQ(outcome.out, "");
    EXPECT_FALSE(fs::exists(out_));
  }
  EXPECT_THAT(ErrorLine(RunTool({"--out", out_, "--keep", "0.5"})), HasSubstr("--model"));
  EXPECT_THAT(ErrorLine(RunTool({"--model", model_, "--keep", "0.5"})), HasSubstr("--out"));
}

// A model that cannot be compressed: what is wrong with it, and what the message must name.
struct BadModel {
  const char* name;
  std::function<void(TinyBert&)> spoil;
  std::vector<std::string> flags;
  const char* message;
};

TEST_F(CompressCliTest, BadModelsExitWith1AndNameFileAndTensor) {
  const std::string query = "encoder.layer.1.attention.self.query.weight";
  const auto set = [](RawTensor& tensor, float value) {
    std::vector<float> values = Floats(tensor);
    values[3] = value;
    tensor = RawFloats(tensor.shape, values);
  };
  const std::vector<std::string> half = {"--keep", "0.5"};
  const BadModel cases[] = {
      {"missing tensor", [&](TinyBert& m) { m.tensors.erase(query); }, half, query.c_str()},
      {"wrong shape",
       [&](TinyBert& m) {
         m.tensors[query].shape = {12, 48};
       },
       half, query.c_str()},
      {"not a number", [&](TinyBert& m) { set(m.tensors[query], NAN); }, half, query.c_str()},
      {"infinite embedding",
       [&](TinyBert& m) { set(m.tensors["embeddings.word_embeddings.weight"], INFINITY); }, half,
       "embeddings.word_embeddings.weight"},
      {"too large for f16",
       [&](TinyBert& m) { set(m.tensors["embeddings.word_embeddings.weight"], 7e4F); },
       {"--keep", "0.5", "--dtype", "f16"},
       "embeddings.word_embeddings.weight: the value 70000 does not fit f16"},
      {"float64",
       [](TinyBert& m) {
         m.tensors["extra"] = {"F64", {1}, std::string(8, '\0')};
       },
       half, "extra"},
      {"other architecture", [](TinyBert& m) { m.config["model_type"] = "llama"; }, half,
       "config.json: model_type"},
      {"heads that do not divide", [](TinyBert& m) { m.config["num_attention_heads"] = 5; }, half,
       "config.json: hidden_size"},
      {"rank per head", [](TinyBert&) {}, {"--ranks", "7,4,4"}, "--ranks: R = 7 is not in 1..6"},
      {"share too small", [](TinyBert&) {}, {"--keep", "0.001"}, "--keep: 0.001"},
  };
  for (const BadModel& c : cases) {
    SCOPED_TRACE(c.name);
    fs::remove_all(model_);
    TinyBert model;
    c.spoil(model);
    model.Write(model_);
    std::vector<std::string> args = {"--model", model_, "--out", out_, "--threads", "2"};
    args.insert(args.end(), c.flags.begin(), c.flags.end());
    const Outcome outcome = RunTool(args);
    EXPECT_EQ(outcome.code, 1);
    EXPECT_THAT(ErrorLine(outcome), HasSubstr(c.message));
    EXPECT_EQ(outcome.out, "");
    EXPECT_FALSE(fs::exists(out_));
    ExpectNoLeftovers();
  }
}

TEST_F(CompressCliTest, BrokenFilesExitWith1AndNameTheFile) {
  const auto expect = [&](const char* message) {
    const Outcome outcome = RunTool({"--model", model_, "--out", out_, "--keep", "0.5"});
    EXPECT_EQ(outcome.code, 1);
    EXPECT_THAT(ErrorLine(outcome), HasSubstr(message));
    EXPECT_FALSE(fs::exists(out_));
    ExpectNoLeftovers();
  };
  expect("--model: ");  // no such directory
  TinyBert().Write(model_);
  const std::string weights = ReadText(fs::path(model_) / "model.safetensors");
  for (const size_t size : {size_t{0}, size_t{7}, size_t{100}, weights.size() - 1}) {
    WriteText(fs::path(model_) / "model.safetensors", weights.substr(0, size));
    expect("model.safetensors");
  }
  fs::remove(fs::path(model_) / "model.safetensors");
  expect(model_.c_str());
  WriteText(fs::path(model_) / "model.safetensors", weights);
  WriteText(fs::path(model_) / "config.json", "{");
  expect("config.json");
  fs::remove(fs::path(model_) / "config.json");
  expect("config.json");
}

TEST_F(CompressCliTest, RefusesAModelThatIsCompressedAlready) {
  TinyBert().Write(model_);
  ASSERT_EQ(RunTool({"--model", model_, "--out", out_, "--keep", "0.5"}).code, 0);
  const Outcome outcome =
      RunTool({"--model", out_, "--out", (dir_ / "twice").string(), "--keep", "0.5"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(ErrorLine(outcome), HasSubstr("is compressed already"));
  EXPECT_FALSE(fs::exists(dir_ / "twice"));
}

TEST_F(CompressCliTest, NeverTouchesTheModelOrForeignDirectories) {
  TinyBert().Write(model_);
  WriteText(dir_ / "files/letter.txt", "dear");
  fs::create_directory_symlink(model_, dir_ / "link");
  const struct {
    std::string out;
    const char* message;
  } cases[] = {
      {model_, "is the --model directory itself"},
      {model_ + "/", "is the --model directory itself"},
      {(dir_ / "link").string(), "is the --model directory itself"},
      {model_ + "/low", "lie inside one another"},
      {(dir_ / "link/low").string(), "lie inside one another"},
      {dir_.string(), "lie inside one another"},
      {(dir_ / "files").string(), "is not a model directory"},
      {(dir_ / "files/letter.txt").string(), "is not a model directory"},
      {(dir_ / "files/letter.txt/out").string(), "--out"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.out);
    const Outcome outcome =
        RunTool({"--model", model_, "--out", c.out, "--keep", "0.5", "--force"});
    EXPECT_EQ(outcome.code, 1);
    EXPECT_THAT(ErrorLine(outcome), HasSubstr(c.message));
    EXPECT_EQ(ReadText(dir_ / "files/letter.txt"), "dear");
    EXPECT_TRUE(fs::exists(fs::path(model_) / "model.safetensors"));
    ExpectNoLeftovers();
  }
}

TEST_F(CompressCliTest, ReplacesAnExistingModelOnlyWithForce) {
  TinyBert().Write(model_);
  TinyBert("", 2).Write(out_);
  WriteText(dir_ / "out/stale.txt", "old");
  const std::vector<std::string> args = {"--model", model_, "--out", out_ + "/", "--keep", "0.5"};
  const Outcome refused = RunTool(args);
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(ErrorLine(refused), HasSubstr("exists; --force replaces it"));
  EXPECT_EQ(ReadText(dir_ / "out/stale.txt"), "old");
  std::vector<std::string> forced = args;
  forced.push_back("--force");
  EXPECT_EQ(RunTool(forced).code, 0);
  EXPECT_FALSE(fs::exists(dir_ / "out/stale.txt"));
  EXPECT_TRUE(fs::exists(dir_ / "out/model.safetensors"));
  ExpectNoLeftovers();
}

TEST_F(CompressCliTest, JsonHoldsWhatTheTableShows) {
  TinyBert().Write(model_);
  const Outcome json_run = RunTool({"--model", model_, "--out", out_, "--keep", "0.5", "--layout",
                                    "qkv_shared", "--dtype", "f16", "--json", "--threads", "1"});
  ASSERT_EQ(json_run.code, 0) << json_run.err;
  EXPECT_THAT(json_run.err, HasSubstr("decompose: 100% (12/12)"));
  const nlohmann::json json = nlohmann::json::parse(json_run.out);
  EXPECT_EQ(json["layout"], "qkv_shared");
  EXPECT_EQ(json["dtype"], "f16");
  EXPECT_EQ(json["keep_requested"], 0.5);
  EXPECT_TRUE(json["ranks"].is_null());
  // Per layer six modules and the row of the shared basis.
  ASSERT_EQ(json["modules"].size(), 14U);
  int64_t params = 0;
  int64_t dense = 0;
  for (const auto& row : json["modules"]) {
    params += row["parameters"].get<int64_t>();
    dense += row["dense_parameters"].get<int64_t>();
    const bool basis = row["name"].get<std::string>().ends_with("shared.A");
    EXPECT_EQ(row["relative_error"].is_null(), basis);
    EXPECT_EQ(row["bytes"], 2 * row["parameters"].get<int64_t>());
  }
  EXPECT_EQ(json["parameters"], params);
  EXPECT_EQ(json["dense_parameters"], dense);
  EXPECT_DOUBLE_EQ(json["keep"], static_cast<double>(params) / static_cast<double>(dense));

  const Outcome table = RunTool({"--model", model_, "--out", out_, "--ranks", "9,8,7", "--layout",
                                 "qkv_shared", "--dtype", "f16", "--force"});
  ASSERT_EQ(table.code, 0) << table.err;
  for (const auto& row : json["modules"]) {
    EXPECT_THAT(table.out, HasSubstr(row["name"].get<std::string>()));
  }
  EXPECT_THAT(table.out, AllOf(HasSubstr("kept (0."), HasSubstr("weight file: "),
                               HasSubstr("embeddings.position_ids (I64) left out")));
}

TEST_F(CompressCliTest, InterruptionExitsWith130) {
  TinyBert().Write(model_);
  const std::atomic<bool> cancelled = true;
  const Outcome outcome = RunTool({"--model", model_, "--out", out_, "--keep", "0.5"}, &cancelled);
  EXPECT_EQ(outcome.code, 130);
  EXPECT_THAT(ErrorLine(outcome), HasSubstr("interrupted"));
  EXPECT_FALSE(fs::exists(out_));
  ExpectNoLeftovers();
}

}  // namespace
}  // namespace flashsvd
