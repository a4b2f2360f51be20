#include "runtime/tokenizer.h"

#include <fmt/format.h>

#include <utility>

#include "kernels/status_macros.h"
#include "runtime/tokenizer_files.h"
#include "runtime/wordpiece.h"

namespace flashsvd {

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model_dir) {
  std::string file = model_dir + "/tokenizer.json";
  absl::StatusOr<WordPieceOptions> options = ReadTokenizerJson(file);
  if (absl::IsNotFound(options.status())) {
    file = model_dir + "/vocab.txt";
    options = ReadVocabFiles(model_dir);
    if (absl::IsNotFound(options.status())) {
      return absl::NotFoundError(fmt::format("{}: no tokenizer.json, and instead of it: {}",
                                             model_dir, std::string(options.status().message())));
    }
  }
  FSVD_RETURN_IF_ERROR(options.status());
  auto tokenizer = WordPieceTokenizer::Create(*std::move(options));
  if (!tokenizer.ok()) {
    return absl::Status(tokenizer.status().code(),
                        fmt::format("{}: {}", file, std::string(tokenizer.status().message())));
  }
  return *std::move(tokenizer);
}

}  // namespace flashsvd
