#include <cstring>
#include <memory>
#include <vector>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "tools/client/commands.h"
#include "tools/client/embed_pipeline.h"
#include "tools/client/line_reader.h"
#include "tools/client/text_source.h"
#include "tools/progress_bar.h"

namespace flashsvd {
namespace {

absl::Status AppendRows(const v1::EmbedResponse& response, EmbeddingWriter& writer) {
  const auto columns = static_cast<size_t>(response.embeddings().shape(1));
  const char* data = response.embeddings().data().data();
  std::vector<float> row(columns);
  for (const v1::InputInfo& input : response.inputs()) {
    std::memcpy(row.data(), data, columns * sizeof(float));
    data += columns * sizeof(float);
    FSVD_RETURN_IF_ERROR(writer.Append(row, input.tokens(), input.truncated()));
  }
  return absl::OkStatus();
}

void PrintTotals(const EmbedTotals& totals) {
  const double seconds = absl::ToDoubleSeconds(totals.elapsed);
  fmt::print(stderr, "{} texts, {} tokens", totals.texts, totals.tokens);
  if (seconds > 0) {
    fmt::print(stderr, " in {:.2f} s: {:.0f} tokens/s, {:.0f} texts/s", seconds,
               static_cast<double>(totals.tokens) / seconds,
               static_cast<double>(totals.texts) / seconds);
  }
  fmt::print(stderr, "; activations of the largest batch {:.2f} MiB",
             static_cast<double>(totals.activation_bytes) / (1 << 20));
  if (totals.truncated > 0) fmt::print(stderr, "; {} truncated", totals.truncated);
  if (totals.retries > 0) fmt::print(stderr, "; {} sent again", totals.retries);
  fmt::print(stderr, "\n");
}

}  // namespace

absl::Status RunEmbed(Connection& connection, const EmbedFlags& flags) {
  EmbeddingFormat format = EmbeddingFormat::kJsonLines;
  if (flags.format) {
    format = *flags.format;
  } else if (flags.output != "-") {
    FSVD_ASSIGN_OR_RETURN(format, FormatOfPath(flags.output));
  }
  FSVD_ASSIGN_OR_RETURN(LineReader reader, LineReader::Open(flags.input));
  FSVD_ASSIGN_OR_RETURN(std::unique_ptr<EmbeddingWriter> writer,
                        EmbeddingWriter::Open(flags.output, format));
  ProgressBar bar("embed", CountLines(flags.input), flags.progress ? stderr : nullptr);

  EmbedPipelineOptions options;
  options.request = flags.request;
  options.batch = flags.batch;
  options.window = flags.window;
  EmbedPipeline pipeline(
      connection, options,
      [&](std::string* text) { return NextText(reader, flags.skip_empty, text); },
      [&](const v1::EmbedResponse& response) {
        bar.Advance(response.inputs_size());
        return AppendRows(response, *writer);
      });
  const absl::StatusOr<EmbedTotals> totals = pipeline.Run();
  bar.Finish();
  FSVD_RETURN_IF_ERROR(totals.status());
  FSVD_RETURN_IF_ERROR(writer->Finish());
  if (flags.totals) PrintTotals(*totals);
  return absl::OkStatus();
}

}  // namespace flashsvd
