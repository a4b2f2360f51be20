#ifndef FLASHSVD_RUNTIME_WORDPIECE_ENCODER_H_
#define FLASHSVD_RUNTIME_WORDPIECE_ENCODER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "runtime/added_tokens.h"
#include "runtime/bert_normalizer.h"
#include "runtime/token_trie.h"
#include "runtime/tokenizer.h"

namespace flashsvd {

// What the encoder does with a byte of the text, when no more than the byte is needed to know it.
enum class ByteAction : uint8_t { kSlow, kLetter, kSpace, kPunctuation, kSkip };

// Everything about a WordPiece tokenizer that does not change from text to text.
struct WordPieceTables {
  BertNormalizer normalizer;
  TokenTrie first_pieces;      // all tokens
  TokenTrie following_pieces;  // those with the continuing prefix, without it
  int32_t unk_id = 0;
  uint64_t max_chars_per_word = 100;
  AddedTokenMatcher raw_added;
  AddedTokenMatcher normalized_added;
  std::array<ByteAction, 256> byte_action = {};
  std::array<char, 256> letter = {};  // what a byte of action kLetter becomes

  // REQUIRES: no longer key in the tries and no longer pattern in normalized_added. The encoder's
  // fixed buffers hold twice that.
  static constexpr size_t kMaxTokenBytes = 1024;
};

// Turns one text into tokens in a single pass and constant memory besides the tokens. The stages
// (added tokens, normalisation, splitting into words, longest pieces) hand over one code point at a
// time. Tens of KiB of stack. For one text.
class WordPieceEncoder {
 public:
  // Appends to out->ids and, when asked for, out->offsets. Both arguments outlive the encoder.
  WordPieceEncoder(const WordPieceTables& tables, bool with_offsets, Encoding* out);

  struct Result {
    size_t num_tokens = 0;  // in the whole text, unless kFront stopped above its limit
    size_t invalid_at = std::string_view::npos;  // byte that is not UTF-8; then nothing else holds
  };
  // kFront stops once there are more than `limit` tokens, and may append some too many.
  // kBack reads all of the text and appends its last `limit` tokens.
  enum class End { kFront, kBack };
  // REQUIRES: text.size() < 2^32.
  Result Run(std::string_view text, End end, size_t limit);

 private:
  // Normalised text that is still to be searched for added tokens.
  struct Window;

  void EncodeText();
  size_t EncodeLetters(size_t pos);
  size_t EncodeSlow(size_t pos);

  BertNormalizer::Entry LookUp(size_t pos, uint32_t* length) const;
  size_t PreviousPos(size_t pos) const;

  size_t EncodeRun(size_t pos);
  size_t RunBegin(size_t pos) const;
  template <typename Visit>
  size_t VisitRun(size_t begin, size_t end, Visit visit) const;

  AddedTokenMatcher::Match FindAddedToken(size_t pos);
  size_t EncodeAddedToken(size_t pos, const AddedTokenMatcher::Match& match);
  bool TouchesWord(size_t begin, size_t end) const;
  size_t WhitespaceBegin(size_t pos) const;
  size_t WhitespaceEnd(size_t pos) const;

  void Emit(const NormalizedChar& c, uint32_t begin, uint32_t end);
  void DrainWindow(bool is_last);
  void EndWindow(size_t end);
  bool MatchInWindow();

  void Split(const NormalizedChar& c, uint32_t begin, uint32_t end);
  void AppendChar(const char* bytes, size_t size, uint32_t begin, uint32_t end);
  void CharsAppended();
  void FinishWord();
  bool AppendPieces(bool is_whole_word);
  void AppendToken(int32_t id, ByteSpan span);
  void TokensAppended();
  void DropFront(size_t count);

  const WordPieceTables& tables_;
  const bool with_offsets_;
  Encoding& out_;

  std::string_view text_;
  End end_ = End::kFront;
  size_t limit_ = 0;
  size_t base_ = 0;         // tokens that were in out_ before
  size_t num_dropped_ = 0;  // tokens of the text that are no longer in out_
  size_t invalid_at_ = std::string_view::npos;
  bool done_ = false;

  size_t match_from_ = 0;     // no added token starts before this position
  size_t segment_begin_ = 0;  // end of the last added token: normalisation starts afresh
  size_t added_end_ = 0;      // the same with the whitespace that the token took
  Window* window_ = nullptr;  // null: no added tokens to be found in normalised text

  // The word being collected: its normalised bytes, and for each the bytes of the text it is from.
  static constexpr size_t kWordBytes = 2 * WordPieceTables::kMaxTokenBytes;
  uint64_t word_chars_ = 0;  // 0: between words
  bool word_failed_ = false;
  size_t word_first_token_ = 0;  // index into out_.ids
  uint32_t word_begin_ = 0;
  uint32_t word_end_ = 0;
  size_t buffered_ = 0;  // bytes in the buffers; room for one more code point is always left
  size_t consumed_ = 0;  // of these already turned into pieces
  char word_[kWordBytes];
  uint32_t begins_[kWordBytes];
  uint32_t ends_[kWordBytes];
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_WORDPIECE_ENCODER_H_
