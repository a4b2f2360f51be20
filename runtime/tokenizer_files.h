#ifndef FLASHSVD_RUNTIME_TOKENIZER_FILES_H_
#define FLASHSVD_RUNTIME_TOKENIZER_FILES_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/wordpiece.h"

namespace flashsvd {

// The two ways in which a model directory describes its WordPiece tokenizer. NotFound: a file is
// missing. InvalidArgument: malformed, or a kind of tokenizer that is not supported. Every error
// names file and field.

// `path`: a tokenizer.json, as Hugging Face's `tokenizers` writes it. Its truncation and padding
// are ignored.
absl::StatusOr<WordPieceOptions> ReadTokenizerJson(const std::string& path);

// vocab.txt and tokenizer_config.json, and where they are there special_tokens_map.json and
// added_tokens.json.
absl::StatusOr<WordPieceOptions> ReadVocabFiles(const std::string& model_dir);

// [CLS] a [SEP] and [CLS] a [SEP] b [SEP], with type id 1 from b on.
void SetBertTemplates(int32_t cls_id, int32_t sep_id, WordPieceOptions* options);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_TOKENIZER_FILES_H_
