#include "server/config.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/config_keys.h"
#include "tests/testing/temp_dir.h"

namespace flashsvd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempDir;

absl::StatusOr<CommandLine> Parse(std::vector<const char*> args) {
  args.insert(args.begin(), "flashsvd-server");
  return ParseCommandLine(static_cast<int>(args.size()), args.data());
}

std::string ErrorOf(const std::vector<const char*>& args) {
  const auto parsed = Parse(args);
  EXPECT_FALSE(parsed.ok());
  return std::string(parsed.status().message());
}

TEST(ConfigTest, ModelAloneIsEnough) {
  const auto parsed = Parse({"--model", "/models/all-MiniLM-L6-v2/"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->mode, CommandLine::Mode::kServe);
  ASSERT_EQ(parsed->config.models.size(), 1u);
  EXPECT_EQ(parsed->config.models[0].name, "all-MiniLM-L6-v2");
  EXPECT_EQ(parsed->config.models[0].dir, "/models/all-MiniLM-L6-v2/");
  EXPECT_EQ(parsed->config.port, 50051);
  EXPECT_EQ(parsed->config.metrics_port, 9090);
}

TEST(ConfigTest, SeveralModelsWithNames) {
  const auto parsed = Parse({"--model", "small=/m/a", "--model", "b=/m/odd=name", "--check"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->mode, CommandLine::Mode::kCheck);
  ASSERT_EQ(parsed->config.models.size(), 2u);
  EXPECT_EQ(parsed->config.models[0].name, "small");
  EXPECT_EQ(parsed->config.models[0].dir, "/m/a");
  EXPECT_EQ(parsed->config.models[1].dir, "/m/odd=name");
}

TEST(ConfigTest, RefusesNameThatIsNoName) {
  EXPECT_THAT(ErrorOf({"--model", "/m/odd name"}), HasSubstr("\"odd name\" is not a model name"));
}

constexpr char kYaml[] = R"(# All kinds of values.
models:
  - {name: small, dir: /m/a}
  - dir: /m/b
port: 0
metrics_port: -1
memory_budget: 1.5GiB
max_text_bytes: 2KB
default_deadline: 2m30s
drain_delay: 0
dtype: bf16
devices: [1, 0]
log_format: json
)";

TEST(ConfigTest, ReadsEveryKindOfValueFromYaml) {
  ServerConfig config;
  ASSERT_TRUE(ApplyYaml(kYaml, "s.yaml", &config).ok());
  ASSERT_EQ(config.models.size(), 2u);
  EXPECT_EQ(config.models[0].name, "small");
  EXPECT_EQ(config.models[1].name, "b");
  EXPECT_EQ(config.port, 0);
  EXPECT_EQ(config.metrics_port, -1);
  EXPECT_EQ(config.memory_budget, int64_t{3} << 29);
  EXPECT_EQ(config.max_text_bytes, 2000);
  EXPECT_EQ(config.default_deadline, absl::Seconds(150));
  EXPECT_EQ(config.drain_delay, absl::ZeroDuration());
  EXPECT_EQ(config.dtype, "bf16");
  EXPECT_THAT(config.devices, ElementsAre(1, 0));
  EXPECT_EQ(config.log_format, "json");
}

TEST(ConfigTest, FlagsWinOverFile) {
  const TempDir dir;
  dir.Write("s.yaml", kYaml);
  const std::string file = dir.File("s.yaml");
  const auto parsed = Parse(
      {"--config", file.c_str(), "--port", "7000", "--metrics-port", "-1", "--model", "only=/m/c"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->config.port, 7000);
  EXPECT_EQ(parsed->config.dtype, "bf16");
  ASSERT_EQ(parsed->config.models.size(), 1u);
  EXPECT_EQ(parsed->config.models[0].name, "only");
}

TEST(ConfigTest, EveryKeyIsAFlagWhoseDefaultIsAccepted) {
  for (const ConfigKey& key : ConfigKeys()) {
    const std::string value = key.show(ServerConfig());
    if (value.empty()) continue;  // no port file by default
    const std::string argument = key.flag() + "=" + value;
    const auto parsed = Parse({"--model", "/m/a", argument.c_str()});
    ASSERT_TRUE(parsed.ok()) << argument << ": " << parsed.status();
    EXPECT_EQ(key.show(parsed->config), value) << argument;
    ServerConfig config;
    const absl::Status status = ApplyYaml(key.name + ": " + value, "s.yaml", &config);
    EXPECT_TRUE(status.ok()) << status;
  }
}

struct BadYaml {
  const char* text;
  const char* error;
};

class BadYamlTest : public ::testing::TestWithParam<BadYaml> {};

TEST_P(BadYamlTest, NamesFileLineAndKey) {
  ServerConfig config;
  const absl::Status status = ApplyYaml(GetParam().text, "s.yaml", &config);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().error));
  EXPECT_EQ(std::string(status.message()).find('\n'), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(
    Documents, BadYamlTest,
    ::testing::Values(
        BadYaml{"port: 1\nmax_batch_token: 5\n", "s.yaml:2: \"max_batch_token\": no such key"},
        BadYaml{"port: 1\n\nport: 2\n", "s.yaml:3: port: given twice"},
        BadYaml{"port: 65536", "s.yaml:1: port: 65536 is not within 0 to 65535"},
        BadYaml{"port: 50051.5", "s.yaml:1: port: \"50051.5\" is not an integer"},
        BadYaml{"port: 99999999999999999999", "is not an integer"},
        BadYaml{"port: []", "s.yaml:1: port: must be a single value"},
        BadYaml{"port:", "s.yaml:1: port: must be a single value"},
        BadYaml{"slots: 257", "slots: 257 is not within 0 to 256"},
        BadYaml{"memory_budget: 12 bananas",
                "memory_budget: \"12 bananas\" is not a size such as 512MiB, 2GB or 4096"},
        BadYaml{"memory_budget: -1", "is not a size"},
        BadYaml{"memory_budget: 0.3", "is not a size"},
        BadYaml{"max_message_bytes: 1TB", "is not a size"},
        BadYaml{"max_message_bytes: 2GiB", "max_message_bytes: 2GiB is not within 1KiB to 1GiB"},
        BadYaml{"default_deadline: 30", "default_deadline: \"30\" is not a time such as 30s"},
        BadYaml{"default_deadline: 0s", "default_deadline: 0s is not within 1ms to 24h"},
        BadYaml{"max_delay_us: 2001", "max_delay_us: 2001 is not within 0 to 2000"},
        BadYaml{"devices: [0, x]", "devices: \"0,x\" is not a list of integers such as 0,1"},
        BadYaml{"devices: [[0]]", "devices: a list of values"},
        BadYaml{"devices: {0: 1}", "devices: must be a list of values"},
        BadYaml{"devices: 0,256", "devices: 256 is not within 0 to 255"},
        BadYaml{"port: [1]", "port: must be a single value"},
        BadYaml{"dtype: f64", "dtype: \"f64\" is not one of auto, f32, f16, bf16"},
        BadYaml{"listen: ''", "listen: is empty"},
        BadYaml{"- a\n- b", "s.yaml:1: the document is not a mapping"},
        BadYaml{"port: 1\n? [a]\n: b", "a key is not a word"},
        BadYaml{"port: 1\nlisten: {a\n", "s.yaml:"}, BadYaml{"\tport: 1", "s.yaml:1: "},
        BadYaml{"models: /m/a", "s.yaml:1: models: must be a list"},
        BadYaml{"models:\n  - /m/a", "s.yaml:2: models[0]: must have the key dir"},
        BadYaml{"models:\n  - name: x\n", "s.yaml:2: models[0].dir: is missing"},
        BadYaml{"models:\n  - dir: /m/a\n    slot: 2\n", "s.yaml:3: models[0].slot: no such key"},
        BadYaml{"models:\n  - dir: /m/a\n    name: 'a b'\n", "models[0].name: \"a b\" is not"}));

TEST(ConfigTest, NamesFlagOfBadValue) {
  EXPECT_EQ(ErrorOf({"--model", "/m/a", "--max-batch-tokens", "0"}),
            "--max-batch-tokens: 0 is not within 1 to 16777216");
  EXPECT_THAT(ErrorOf({"--model", "/m/a", "--frobnicate", "1"}), HasSubstr("--frobnicate"));
  EXPECT_THAT(ErrorOf({"--model", "/m/a", "stray"}), HasSubstr("stray"));
  EXPECT_EQ(ErrorOf({"--model", "=/m/a"}), "--model: the name before = is empty");
}

TEST(ConfigTest, RefusesTwoModelsOfOneName) {
  EXPECT_THAT(ErrorOf({"--model", "/m/a", "--model", "/n/a"}),
              HasSubstr("models: two are named \"a\""));
}

TEST(ConfigTest, NeedsAModelUnlessItOnlyProbes) {
  EXPECT_THAT(ErrorOf({}), HasSubstr("--model DIR"));
  EXPECT_THAT(ErrorOf({"--check"}), HasSubstr("--model DIR"));
  const auto parsed = Parse({"--healthcheck", "--port", "1234"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->mode, CommandLine::Mode::kHealthcheck);
}

TEST(ConfigTest, NamesConfigFileThatIsMissing) {
  EXPECT_EQ(ErrorOf({"--config", "/nowhere/s.yaml"}), "/nowhere/s.yaml: no such file");
  EXPECT_EQ(ErrorOf({"--config", "/"}), "/: no such file");
}

TEST(ConfigTest, HelpShowsEveryFlagWithItsDefault) {
  const auto parsed = Parse({"--help"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->mode, CommandLine::Mode::kPrint);
  for (const ConfigKey& key : ConfigKeys()) {
    EXPECT_THAT(parsed->text, HasSubstr(key.flag()));
    EXPECT_THAT(parsed->text, HasSubstr(key.show(ServerConfig())));
  }
  EXPECT_THAT(parsed->text, HasSubstr("Examples:"));
}

TEST(ConfigTest, FormatsBytesSoThatTheyParseBack) {
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{1000}, int64_t{1} << 10,
                              (int64_t{1} << 20) + 1, int64_t{3} << 30}) {
    EXPECT_EQ(*ParseBytes(FormatBytes(bytes)), bytes);
  }
  EXPECT_EQ(FormatBytes(int64_t{512} << 20), "512MiB");
}

}  // namespace
}  // namespace flashsvd
