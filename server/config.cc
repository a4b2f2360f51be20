#include "server/config.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "CLI/CLI.hpp"
#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "runtime/strict_json.h"
#include "server/config_keys.h"
#include "server/version.h"
#include "yaml-cpp/yaml.h"

namespace flashsvd {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 20;

struct ByteUnit {
  const char* name;
  int64_t bytes;
};
constexpr ByteUnit kByteUnits[] = {
    {"KiB", int64_t{1} << 10},
    {"MiB", int64_t{1} << 20},
    {"GiB", int64_t{1} << 30},
    {"KB", 1'000},
    {"MB", 1'000'000},
    {"GB", 1'000'000'000},
    {"B", 1},
    {"", 1},
};

constexpr char kFooter[] =
    R"(Every flag but those under "Actions" is also a key of the --config file, with underscores:
  models:
    - name: minilm
      dir: /models/all-MiniLM-L6-v2
  memory_budget: 512MiB
  max_queue_requests: 256
Flags win over the file.

Examples:
  flashsvd-server --model /models/all-MiniLM-L6-v2
  flashsvd-server --model small=/models/a --model large=/models/b --memory-budget 2GiB
  flashsvd-server --config /etc/flashsvd/server.yaml --log-format json
  flashsvd-server --check --config /etc/flashsvd/server.yaml)";

std::string DefaultName(const std::string& dir) {
  std::error_code error;
  std::filesystem::path path = std::filesystem::weakly_canonical(dir, error);
  if (error) path = std::filesystem::path(dir).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

// Names become metric labels and are typed by people.
absl::Status CheckName(const std::string& name) {
  const bool ok = !name.empty() && name.size() <= 128 &&
                  std::all_of(name.begin(), name.end(), [](unsigned char c) {
                    return std::isalnum(c) || std::strchr("._-/", c) != nullptr;
                  });
  if (ok) return absl::OkStatus();
  return absl::InvalidArgumentError(
      fmt::format("{} is not a model name: 1 to 128 of letters, digits and . _ - /", Quoted(name)));
}

absl::StatusOr<ModelSpec> MakeModelSpec(std::string name, std::string dir) {
  if (dir.empty()) return absl::InvalidArgumentError("the directory is empty");
  if (name.empty()) name = DefaultName(dir);
  FSVD_RETURN_IF_ERROR(CheckName(name));
  return ModelSpec{std::move(name), std::move(dir)};
}

// "DIR" or "NAME=DIR"; an equals sign after the first slash belongs to the directory.
absl::StatusOr<ModelSpec> ParseModelFlag(const std::string& value) {
  const size_t equals = value.find('=');
  if (equals == std::string::npos || value.find('/') < equals) return MakeModelSpec("", value);
  if (equals == 0) return absl::InvalidArgumentError("the name before = is empty");
  return MakeModelSpec(value.substr(0, equals), value.substr(equals + 1));
}

absl::Status CheckModels(const std::vector<ModelSpec>& models) {
  std::set<std::string> names;
  for (const ModelSpec& model : models) {
    if (!names.insert(model.name).second) {
      return absl::InvalidArgumentError(fmt::format(
          "models: two are named {}; give one another name with NAME=DIR", Quoted(model.name)));
    }
  }
  return absl::OkStatus();
}

// Errors of one YAML file, with line.
class YamlReader {
 public:
  YamlReader(const std::string& file, ServerConfig* config) : file_(file), config_(config) {}

  absl::Status Read(const YAML::Node& root) {
    if (root.IsNull()) return absl::OkStatus();
    if (!root.IsMap()) return Error(root, "the document is not a mapping of keys to values");
    std::set<std::string> seen;
    for (const auto& entry : root) {
      if (!entry.first.IsScalar()) return Error(entry.first, "a key is not a word");
      const std::string name = entry.first.Scalar();
      if (!seen.insert(name).second) {
        return Error(entry.first, fmt::format("{}: given twice", name));
      }
      FSVD_RETURN_IF_ERROR(ReadEntry(name, entry.first, entry.second));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Error(const YAML::Node& at, std::string_view what) const {
    return absl::InvalidArgumentError(fmt::format("{}:{}: {}", file_, at.Mark().line + 1, what));
  }

  absl::Status ReadEntry(const std::string& name, const YAML::Node& key, const YAML::Node& value) {
    if (name == "models") return ReadModels(value.IsNull() ? key : value);
    const ConfigKey* config_key = FindConfigKey(name);
    if (config_key == nullptr) return Error(key, fmt::format("{}: no such key", Quoted(name)));
    std::string text;
    if (value.IsScalar()) {
      text = value.Scalar();
    } else if (value.IsSequence() && config_key->is_list) {
      for (const YAML::Node& item : value) {
        if (!item.IsScalar()) return Error(key, fmt::format("{}: a list of values", name));
        text += (text.empty() ? "" : ",") + item.Scalar();
      }
    } else {
      return Error(key, fmt::format("{}: must be a {}", name,
                                    config_key->is_list ? "list of values" : "single value"));
    }
    const absl::Status status = config_key->set(text, config_);
    if (status.ok()) return status;
    return Error(value, fmt::format("{}: {}", name, std::string(status.message())));
  }

  absl::Status ReadModels(const YAML::Node& list) {
    if (!list.IsSequence()) {
      return Error(list, "models: must be a list of entries with dir and, optionally, name");
    }
    for (size_t i = 0; i < list.size(); ++i) {
      FSVD_RETURN_IF_ERROR(ReadModel(list[i], fmt::format("models[{}]", i)));
    }
    return absl::OkStatus();
  }

  absl::Status ReadModel(const YAML::Node& entry, const std::string& where) {
    std::map<std::string, std::string> fields;
    if (!entry.IsMap()) return Error(entry, fmt::format("{}: must have the key dir", where));
    for (const auto& field : entry) {
      if (!field.first.IsScalar()) return Error(field.first, where + ": a key is not a word");
      const std::string name = field.first.Scalar();
      if (name != "name" && name != "dir") {
        return Error(field.first, fmt::format("{}.{}: no such key", where, name));
      }
      if (!field.second.IsScalar()) {
        return Error(field.first, fmt::format("{}.{}: must be a single value", where, name));
      }
      if (!fields.emplace(name, field.second.Scalar()).second) {
        return Error(field.first, fmt::format("{}.{}: given twice", where, name));
      }
    }
    if (fields["dir"].empty()) return Error(entry, fmt::format("{}.dir: is missing", where));
    absl::StatusOr<ModelSpec> spec = MakeModelSpec(fields["name"], fields["dir"]);
    if (!spec.ok()) {
      return Error(entry, fmt::format("{}.name: {}", where, std::string(spec.status().message())));
    }
    config_->models.push_back(*std::move(spec));
    return absl::OkStatus();
  }

  const std::string& file_;
  ServerConfig* const config_;
};

absl::Status ApplyFile(const std::string& file, ServerConfig* config) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) {
    return absl::InvalidArgumentError(fmt::format("{}: no such file", file));
  }
  std::ifstream stream(file, std::ios::binary);
  std::string text(static_cast<size_t>(kMaxConfigBytes) + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (stream.bad() || (stream.gcount() == 0 && !stream.eof())) {
    return absl::InvalidArgumentError(fmt::format("{}: cannot be read", file));
  }
  if (stream.gcount() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        fmt::format("{}: larger than {}", file, FormatBytes(kMaxConfigBytes)));
  }
  text.resize(static_cast<size_t>(stream.gcount()));
  return ApplyYaml(text, file, config);
}

std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

// The flags of one command line, still as text.
struct Flags {
  std::string config_file;
  std::vector<std::string> models;
  std::vector<std::string> values;  // parallel to ConfigKeys()
  std::vector<CLI::Option*> options;
  bool check = false;
  bool healthcheck = false;
  bool version = false;
};

void DefineFlags(CLI::App* app, Flags* flags) {
  app->set_help_flag("-h,--help", "print this and leave")->group("Actions");
  app->add_flag("--version", flags->version, "print the version and leave")->group("Actions");
  app->add_flag("--check", flags->check,
                "load everything, compute one token, print the memory plan and leave")
      ->group("Actions");
  app->add_flag("--healthcheck", flags->healthcheck,
                "ask the server that runs with this configuration whether it serves; exit 0 or 1")
      ->group("Actions");
  app->add_option("--config", flags->config_file, "YAML file with any of the keys below")
      ->type_name("FILE")
      ->group("Models");
  app->add_option("--model", flags->models,
                  "model directory to serve; NAME defaults to its last component; repeatable. "
                  "YAML: a list `models` of {name, dir}")
      ->type_name("[NAME=]DIR")
      ->allow_extra_args(false)
      ->group("Models");
  const ServerConfig defaults;
  flags->values.resize(ConfigKeys().size());
  for (size_t i = 0; i < ConfigKeys().size(); ++i) {
    const ConfigKey& key = ConfigKeys()[i];
    flags->options.push_back(app->add_option(key.flag(), flags->values[i], key.help)
                                 ->type_name(key.type)
                                 ->default_str(key.show(defaults))
                                 ->group(key.group));
  }
  app->footer(kFooter);
}

// File first, then the flags that were given.
absl::Status Resolve(const Flags& flags, ServerConfig* config) {
  if (!flags.config_file.empty()) FSVD_RETURN_IF_ERROR(ApplyFile(flags.config_file, config));
  if (!flags.models.empty()) config->models.clear();
  for (const std::string& value : flags.models) {
    absl::StatusOr<ModelSpec> spec = ParseModelFlag(value);
    if (!spec.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("--model: {}", std::string(spec.status().message())));
    }
    config->models.push_back(*std::move(spec));
  }
  for (size_t i = 0; i < flags.options.size(); ++i) {
    if (flags.options[i]->count() == 0) continue;
    const ConfigKey& key = ConfigKeys()[i];
    const absl::Status status = key.set(flags.values[i], config);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("{}: {}", key.flag(), std::string(status.message())));
    }
  }
  return CheckModels(config->models);
}

}  // namespace

absl::StatusOr<int64_t> ParseBytes(std::string_view text) {
  const std::string value(text);
  const absl::Status malformed = absl::InvalidArgumentError(
      fmt::format("{} is not a size such as 512MiB, 2GB or 4096", Quoted(text)));
  if (value.empty() || !std::isdigit(static_cast<unsigned char>(value[0]))) return malformed;
  const size_t digits = value.find_first_not_of("0123456789.");
  const std::string number = value.substr(0, digits);
  size_t unit_at = digits == std::string::npos ? value.size() : digits;
  while (unit_at < value.size() && value[unit_at] == ' ') ++unit_at;
  const std::string unit = value.substr(unit_at);
  char* end = nullptr;
  const double count = std::strtod(number.c_str(), &end);
  if (*end != '\0') return malformed;
  for (const ByteUnit& candidate : kByteUnits) {
    if (unit != candidate.name) continue;
    const double bytes = count * static_cast<double>(candidate.bytes);
    // Beyond 2^53 a double is no longer exact, and no machine has that much.
    if (bytes > 9e15 || bytes != std::floor(bytes)) return malformed;
    return static_cast<int64_t>(bytes);
  }
  return malformed;
}

std::string FormatBytes(int64_t bytes) {
  for (const int i : {2, 1, 0}) {
    if (bytes != 0 && bytes % kByteUnits[i].bytes == 0) {
      return fmt::format("{}{}", bytes / kByteUnits[i].bytes, kByteUnits[i].name);
    }
  }
  return fmt::format("{}", bytes);
}

absl::Status ApplyYaml(const std::string& text, const std::string& file, ServerConfig* config) {
  try {
    return YamlReader(file, config).Read(YAML::Load(text));
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(
        fmt::format("{}:{}: {}", file, error.mark.line + 1, FirstLine(error.msg)));
  }
}

absl::StatusOr<CommandLine> ParseCommandLine(int argc, const char* const* argv) {
  CLI::App app{"FlashSVD server: low-rank transformer encoders over gRPC.", "flashsvd-server"};
  Flags flags;
  DefineFlags(&app, &flags);
  CommandLine result;
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    result.mode = CommandLine::Mode::kPrint;
    result.text = app.help();
    return result;
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(
        fmt::format("{} (see --help)", FirstLine(std::string(error.what()))));
  }
  if (flags.version) {
    result.mode = CommandLine::Mode::kPrint;
    result.text = fmt::format("flashsvd-server {} (cuda: {})\n", kVersion, kCudaVersion);
    return result;
  }
  if (flags.check && flags.healthcheck) {
    return absl::InvalidArgumentError("--check and --healthcheck exclude each other");
  }
  if (flags.check) result.mode = CommandLine::Mode::kCheck;
  if (flags.healthcheck) result.mode = CommandLine::Mode::kHealthcheck;
  FSVD_RETURN_IF_ERROR(Resolve(flags, &result.config));
  if (!flags.healthcheck && result.config.models.empty()) {
    return absl::InvalidArgumentError("no model: give --model DIR, or models in the --config file");
  }
  return result;
}

}  // namespace flashsvd
