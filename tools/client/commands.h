#ifndef FLASHSVD_TOOLS_CLIENT_COMMANDS_H_
#define FLASHSVD_TOOLS_CLIENT_COMMANDS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "flashsvd/v1/encoder.pb.h"
#include "tools/client/connection.h"
#include "tools/client/embedding_writer.h"

namespace flashsvd {

// The subcommands of flashsvd-client. Each prints its result on standard output and progress on
// standard error; errors name the file and line, or the server's address, and are the caller's to
// print.

struct EmbedFlags {
  std::string input = "-";
  std::string output = "-";
  std::optional<EmbeddingFormat> format;  // by the output's extension; JSON lines on stdout
  v1::EmbedRequest request;               // all but the texts
  int batch = 32;
  int window = 8;
  bool skip_empty = false;
  bool progress = true;
  bool totals = true;
};
absl::Status RunEmbed(Connection& connection, const EmbedFlags& flags);

struct SimilarityFlags {
  std::string input = "-";
  v1::EmbedRequest request;
  // Also embed with this model and print how far the two agree.
  std::optional<std::string> reference;
};
// The cosine of each pair of lines, at most kMaxSimilarityLines of them.
absl::Status RunSimilarity(Connection& connection, const SimilarityFlags& flags);
inline constexpr int kMaxSimilarityLines = 40;

struct TokenizeFlags {
  std::string input = "-";
  v1::TokenizeRequest request;
  bool json = false;
};
absl::Status RunTokenize(Connection& connection, const TokenizeFlags& flags);

struct HealthFlags {
  std::string service;  // "": the server as a whole
  absl::Duration wait;  // ask again for so long until it serves
  bool quiet = false;
};
// Prints the state; OK if it is SERVING, else Unavailable, or the error of the call.
absl::Status RunHealth(Connection& connection, const HealthFlags& flags);

struct ModelsFlags {
  std::string model;  // details of one; "": a table of all
  bool json = false;
};
absl::Status RunModels(Connection& connection, const ModelsFlags& flags);

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_CLIENT_COMMANDS_H_
