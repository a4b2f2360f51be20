#ifndef FLASHSVD_RUNTIME_WORDPIECE_H_
#define FLASHSVD_RUNTIME_WORDPIECE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/added_tokens.h"
#include "runtime/bert_normalizer.h"
#include "runtime/tokenizer.h"
#include "runtime/wordpiece_encoder.h"

namespace flashsvd {

// How the tokens of one or two texts and the special tokens make up the result.
struct TemplatePiece {
  enum class Kind : uint8_t { kFirstText, kSecondText, kSpecialTokens };

  Kind kind = Kind::kFirstText;
  int32_t type_id = 0;
  std::vector<int32_t> ids;  // of kSpecialTokens
};
using EncodingTemplate = std::vector<TemplatePiece>;

struct WordPieceOptions {
  BertNormalizerOptions normalizer;
  std::vector<std::string> vocab;  // by id
  std::string unk_token = "[UNK]";
  std::string continuing_prefix = "##";
  uint64_t max_chars_per_word = 100;  // a longer word is unk_token
  // Id: that of the vocabulary, else counting on from its end in the order of the list.
  std::vector<AddedToken> added_tokens;
  EncodingTemplate single = {TemplatePiece{}};
  EncodingTemplate pair = {TemplatePiece{}, {TemplatePiece::Kind::kSecondText, 1, {}}};
};

// WordPiece as Hugging Face's `tokenizers` 0.23.3 does it for BERT: the same ids for every text,
// and the same offsets, in bytes instead of code points.
// - kRight and kNone do not look at, or validate, text behind the token limit; but when the limit
//   leaves two long texts an odd number of tokens, the longer one gets one more, so both are read.
// - An Encode call takes about 20 KiB of stack (75 KiB with normalised added tokens) and allocates
//   nothing once `out` has grown.
class WordPieceTokenizer : public Tokenizer {
 public:
  // InvalidArgument, naming the option: unk_token is not in the vocabulary; a token is empty, not
  // distinct, longer than 1024 bytes or not UTF-8; ids are not as WordPieceOptions demands.
  static absl::StatusOr<std::unique_ptr<WordPieceTokenizer>> Create(WordPieceOptions options);

  absl::Status Encode(std::string_view text, const EncodeOptions& options,
                      Encoding* out) const override;
  absl::Status EncodePair(std::string_view first, std::string_view second,
                          const EncodeOptions& options, Encoding* out) const override;

  int vocab_size() const override { return static_cast<int>(tokens_.size()); }
  std::string_view IdToToken(int32_t id) const override { return tokens_[id]; }
  int num_special_tokens() const override { return num_special_single_; }

 private:
  WordPieceTokenizer(WordPieceTables tables, std::vector<std::string> tokens,
                     EncodingTemplate single, EncodingTemplate pair);

  absl::StatusOr<size_t> Budget(const EncodeOptions& options, int num_special) const;
  absl::StatusOr<size_t> AppendText(std::string_view text, std::string_view name,
                                    const EncodeOptions& options, size_t limit,
                                    Encoding* out) const;
  absl::StatusOr<bool> FirstIsLonger(std::string_view first, std::string_view second,
                                     Encoding* out) const;

  const WordPieceTables tables_;
  const std::vector<std::string> tokens_;  // by id, added ones included
  const EncodingTemplate single_;
  const EncodingTemplate pair_;
  const int num_special_single_;
  const int num_special_pair_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_WORDPIECE_H_
