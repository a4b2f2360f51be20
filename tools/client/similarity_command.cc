#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "tools/client/commands.h"
#include "tools/client/embed_pipeline.h"
#include "tools/client/line_reader.h"
#include "tools/client/similarity.h"
#include "tools/client/text_source.h"

namespace flashsvd {
namespace {

using Rows = std::vector<std::vector<float>>;

absl::StatusOr<Rows> EmbedAll(Connection& connection, const v1::EmbedRequest& request,
                              const std::vector<std::string>& texts) {
  EmbedPipelineOptions options;
  options.request = request;
  options.batch = static_cast<int>(texts.size());
  size_t next = 0;
  Rows rows;
  EmbedPipeline pipeline(
      connection, options,
      [&](std::string* text) -> absl::StatusOr<bool> {
        if (next == texts.size()) return false;
        *text = texts[next++];
        return true;
      },
      [&](const v1::EmbedResponse& response) {
        const auto columns = static_cast<size_t>(response.embeddings().shape(1));
        const char* data = response.embeddings().data().data();
        for (int i = 0; i < response.inputs_size(); ++i, data += columns * sizeof(float)) {
          std::memcpy(rows.emplace_back(columns).data(), data, columns * sizeof(float));
        }
        return absl::OkStatus();
      });
  FSVD_RETURN_IF_ERROR(pipeline.Run().status());
  return rows;
}

absl::StatusOr<std::vector<std::string>> ReadTexts(const std::string& path) {
  FSVD_ASSIGN_OR_RETURN(LineReader reader, LineReader::Open(path));
  std::vector<std::string> texts;
  std::string text;
  for (;;) {
    FSVD_ASSIGN_OR_RETURN(const bool any, NextText(reader, /*skip_empty=*/true, &text));
    if (!any) break;
    if (texts.size() == kMaxSimilarityLines) {
      return absl::InvalidArgumentError(
          fmt::format("{}: more than {} lines", reader.name(), kMaxSimilarityLines));
    }
    texts.push_back(text);
  }
  if (texts.empty()) return absl::InvalidArgumentError(fmt::format("{}: no text", reader.name()));
  return texts;
}

}  // namespace

absl::Status RunSimilarity(Connection& connection, const SimilarityFlags& flags) {
  FSVD_ASSIGN_OR_RETURN(const std::vector<std::string> texts, ReadTexts(flags.input));
  FSVD_ASSIGN_OR_RETURN(const Rows rows, EmbedAll(connection, flags.request, texts));
  if (!flags.reference) {
    fmt::print("{}", RenderSimilarity(texts, rows, {}, ""));
    return absl::OkStatus();
  }
  v1::EmbedRequest reference_request = flags.request;
  reference_request.set_model(*flags.reference);
  FSVD_ASSIGN_OR_RETURN(const Rows reference, EmbedAll(connection, reference_request, texts));
  if (reference[0].size() != rows[0].size()) {
    return absl::InvalidArgumentError(fmt::format("{} embeds into {} dimensions, {} into {}",
                                                  flags.request.model(), rows[0].size(),
                                                  *flags.reference, reference[0].size()));
  }
  std::vector<double> agreement;
  for (size_t i = 0; i < rows.size(); ++i) agreement.push_back(Cosine(rows[i], reference[i]));
  fmt::print("{}", RenderSimilarity(texts, rows, agreement, "to " + *flags.reference));
  const double mean =
      std::accumulate(agreement.begin(), agreement.end(), 0.0) / static_cast<double>(texts.size());
  fmt::print("cosine of each embedding to {}'s: mean {:.4f}, least {:.4f}\n", *flags.reference,
             mean, *std::min_element(agreement.begin(), agreement.end()));
  return absl::OkStatus();
}

}  // namespace flashsvd
