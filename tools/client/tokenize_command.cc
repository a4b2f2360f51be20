#include <string>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "nlohmann/json.hpp"
#include "tools/client/commands.h"
#include "tools/client/line_reader.h"
#include "tools/client/text_source.h"

namespace flashsvd {
namespace {

// Texts per call: enough to hide the round trip, small enough to answer at once.
constexpr int kBatch = 64;

void PrintJson(const v1::TokenizedText& text) {
  const nlohmann::ordered_json line = {
      {"ids", std::vector<int32_t>(text.ids().begin(), text.ids().end())},
      {"tokens", std::vector<std::string>(text.tokens().begin(), text.tokens().end())},
      {"begin", std::vector<uint32_t>(text.begin().begin(), text.begin().end())},
      {"end", std::vector<uint32_t>(text.end().begin(), text.end().end())},
      {"truncated", text.truncated()}};
  fmt::print("{}\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void PrintText(const v1::TokenizedText& text) {
  for (int i = 0; i < text.ids_size(); ++i) {
    fmt::print("{}{}({})", i > 0 ? " " : "", text.tokens(i), text.ids(i));
  }
  fmt::print("{}\n", text.truncated() ? " (truncated)" : "");
}

absl::Status TokenizeBatch(Connection& connection, const TokenizeFlags& flags,
                           const v1::TokenizeRequest& request) {
  v1::TokenizeResponse response;
  FSVD_RETURN_IF_ERROR(connection.Call([&](grpc::ClientContext* context) {
    return connection.stub().Tokenize(context, request, &response);
  }));
  for (const v1::TokenizedText& text : response.texts()) {
    if (text.tokens_size() != text.ids_size() || text.begin_size() != text.ids_size() ||
        text.end_size() != text.ids_size()) {
      return absl::InternalError(fmt::format("{}: an answer of {} ids, {} tokens, {} offsets",
                                             connection.options().address, text.ids_size(),
                                             text.tokens_size(), text.begin_size()));
    }
    flags.json ? PrintJson(text) : PrintText(text);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunTokenize(Connection& connection, const TokenizeFlags& flags) {
  FSVD_ASSIGN_OR_RETURN(LineReader reader, LineReader::Open(flags.input));
  std::string text;
  for (bool more = true; more;) {
    v1::TokenizeRequest request = flags.request;
    while (more && request.texts_size() < kBatch) {
      FSVD_ASSIGN_OR_RETURN(more, NextText(reader, /*skip_empty=*/false, &text));
      if (more) request.add_texts(text);
    }
    if (request.texts_size() > 0) {
      FSVD_RETURN_IF_ERROR(TokenizeBatch(connection, flags, request));
    }
  }
  return absl::OkStatus();
}

}  // namespace flashsvd
