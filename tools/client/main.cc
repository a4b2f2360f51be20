// flashsvd-client: flags -> one call of a FlashSVD server -> a result on standard output.
//
// Exit codes: 0 done; 1 the server refused or failed; 2 bad flags or a file that cannot be read or
// written; 3 the server cannot be reached or does not serve.

#include <cstdio>
#include <exception>
#include <map>
#include <optional>
#include <string>

#include "CLI/CLI.hpp"
#include "fmt/format.h"
#include "tools/client/commands.h"
#include "tools/client/connection.h"

namespace flashsvd {
namespace {

struct Flags {
  ConnectionOptions connection;
  double timeout_s = absl::ToDoubleSeconds(ConnectionOptions().timeout);
  std::string model;
  v1::Truncation truncation = v1::TRUNCATION_UNSPECIFIED;
  std::optional<bool> normalize;
  uint32_t dimensions = 0;
  double wait_s = 0;
  EmbedFlags embed;
  SimilarityFlags similarity;
  TokenizeFlags tokenize;
  HealthFlags health;
  ModelsFlags models;
};

const std::map<std::string, v1::Truncation> kTruncations = {
    {"none", v1::TRUNCATION_NONE}, {"right", v1::TRUNCATION_RIGHT}, {"left", v1::TRUNCATION_LEFT}};
const std::map<std::string, EmbeddingFormat> kFormats = {{"npy", EmbeddingFormat::kNpy},
                                                         {"jsonl", EmbeddingFormat::kJsonLines}};

void AddTruncation(CLI::App& command, Flags& flags) {
  command.add_option("--truncation", flags.truncation, "Longer texts: none refuses them")
      ->transform(CLI::CheckedTransformer(kTruncations))
      ->option_text("none|right|left");
}

// Flags of an EmbedRequest.
void AddEmbedRequest(CLI::App& command, Flags& flags) {
  command.add_option("-m,--model", flags.model, "Model; needed when the server has several");
  AddTruncation(command, flags);
  CLI::Option* normalize = command.add_flag_callback(
      "--normalize", [&] { flags.normalize = true; }, "L2-normalise; default: as published");
  command
      .add_flag_callback(
          "--no-normalize", [&] { flags.normalize = false; }, "Do not normalise")
      ->excludes(normalize);
  command.add_option("--dimensions", flags.dimensions, "Keep the first N components only");
}

v1::EmbedRequest MakeEmbedRequest(const Flags& flags) {
  v1::EmbedRequest request;
  request.set_model(flags.model);
  request.set_truncation(flags.truncation);
  if (flags.normalize) request.set_normalize(*flags.normalize);
  request.set_dimensions(flags.dimensions);
  request.set_output_dtype(v1::DATA_TYPE_FLOAT32);
  return request;
}

CLI::App* AddEmbed(CLI::App& app, Flags& flags) {
  CLI::App* command = app.add_subcommand("embed", "Embed the lines of a file");
  command->add_option("input", flags.embed.input, "Text file, one text per line; - or none: stdin");
  command->add_option("-o,--output", flags.embed.output,
                      ".npy or .jsonl file; default: JSON lines on stdout");
  command->add_option("--format", flags.embed.format, "Whatever the output's extension")
      ->transform(CLI::CheckedTransformer(kFormats))
      ->option_text("npy|jsonl");
  AddEmbedRequest(*command, flags);
  command->add_option("--batch", flags.embed.batch, "Texts per request")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--window", flags.embed.window, "Requests in flight")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_flag("--skip-empty", flags.embed.skip_empty, "Pass over empty lines");
  command->add_flag_callback(
      "--no-progress", [&] { flags.embed.progress = false; }, "No progress bar");
  command->add_flag_callback(
      "--no-totals", [&] { flags.embed.totals = false; }, "No summary on stderr");
  return command;
}

CLI::App* AddSimilarity(CLI::App& app, Flags& flags) {
  CLI::App* command = app.add_subcommand("similarity", "Print the cosines between lines");
  command->add_option("input", flags.similarity.input, "Text file; - or none: stdin");
  AddEmbedRequest(*command, flags);
  command->add_option("--reference", flags.similarity.reference,
                      "Also compare with this model's embeddings");
  return command;
}

CLI::App* AddTokenize(CLI::App& app, Flags& flags) {
  CLI::App* command = app.add_subcommand("tokenize", "Show lines as the model sees them");
  command->add_option("input", flags.tokenize.input, "Text file; - or none: stdin");
  command->add_option("-m,--model", flags.model, "Model; needed when the server has several");
  AddTruncation(*command, flags);
  command->add_flag("--json", flags.tokenize.json, "One JSON object per line, with byte offsets");
  return command;
}

CLI::App* AddHealth(CLI::App& app, Flags& flags) {
  CLI::App* command = app.add_subcommand("health", "Print the health; exit code 0 if SERVING");
  command->add_option("--service", flags.health.service, "Default: the server as a whole");
  command->add_option("--wait", flags.wait_s, "Ask again for up to so many seconds")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("-q,--quiet", flags.health.quiet, "Exit code only");
  return command;
}

CLI::App* AddModels(CLI::App& app, Flags& flags) {
  CLI::App* command = app.add_subcommand("models", "List the models and their memory");
  command->add_option("model,-m,--model", flags.models.model, "Details of one, with its modules");
  command->add_flag("--json", flags.models.json, "As JSON");
  return command;
}

int ExitCode(const absl::Status& status, const std::string& address) {
  if (status.ok()) return 0;
  // Status messages of calls begin with the address; all others are about flags and local files.
  const bool remote = std::string(status.message()).starts_with(address + ": ");
  fmt::print(stderr, "flashsvd-client: {}: {}\n", absl::StatusCodeToString(status.code()),
             std::string(status.message()));
  if (!remote) return 2;
  return status.code() == absl::StatusCode::kUnavailable ? 3 : 1;
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Client of a FlashSVD server", "flashsvd-client");
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("-a,--address", flags.connection.address, "HOST:PORT of the server")
      ->envname("FLASHSVD_ADDRESS")
      ->capture_default_str();
  app.add_option("--timeout", flags.timeout_s, "Seconds to wait for an answer")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--retries", flags.connection.retries,
                 "Further tries when the server is busy or away")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  const CLI::App* embed = AddEmbed(app, flags);
  const CLI::App* similarity = AddSimilarity(app, flags);
  const CLI::App* tokenize = AddTokenize(app, flags);
  const CLI::App* health = AddHealth(app, flags);
  AddModels(app, flags);
  for (CLI::App* command : app.get_subcommands({})) command->fallthrough();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }

  flags.connection.timeout = absl::Seconds(flags.timeout_s);
  Connection connection(flags.connection);
  absl::Status status;
  if (embed->parsed()) {
    flags.embed.request = MakeEmbedRequest(flags);
    status = RunEmbed(connection, flags.embed);
  } else if (similarity->parsed()) {
    flags.similarity.request = MakeEmbedRequest(flags);
    status = RunSimilarity(connection, flags.similarity);
  } else if (tokenize->parsed()) {
    flags.tokenize.request.set_model(flags.model);
    flags.tokenize.request.set_truncation(flags.truncation);
    status = RunTokenize(connection, flags.tokenize);
  } else if (health->parsed()) {
    flags.health.wait = absl::Seconds(flags.wait_s);
    status = RunHealth(connection, flags.health);
  } else {
    status = RunModels(connection, flags.models);
  }
  return ExitCode(status, flags.connection.address);
}

}  // namespace
}  // namespace flashsvd

int main(int argc, char** argv) {
  try {
    const int code = flashsvd::Main(argc, argv);
    if (std::fflush(stdout) == 0 || code != 0) return code;
    std::perror("flashsvd-client: standard output");
  } catch (const std::exception& error) {
    // fmt::print throws when standard output is full or closed.
    std::fprintf(stderr, "flashsvd-client: %s\n", error.what());
  }
  return 2;
}
