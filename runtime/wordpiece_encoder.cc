#include "runtime/wordpiece_encoder.h"

#include <algorithm>
#include <cstring>

namespace flashsvd {
namespace {

constexpr size_t kMaxCharBytes = 4;

NormalizedChar Unchanged(std::string_view bytes, NormalizedChar::Class char_class, bool is_word) {
  NormalizedChar c;
  std::memcpy(c.bytes, bytes.data(), bytes.size());
  c.size = static_cast<uint8_t>(bytes.size());
  c.char_class = char_class;
  c.is_word = is_word;
  return c;
}

}  // namespace

// A match of the longest added token and the code point behind it, for single_word, are in the
// window before its first code point is let go.
struct WordPieceEncoder::Window {
  static constexpr size_t kLookAhead = WordPieceTables::kMaxTokenBytes + kMaxCharBytes;
  static constexpr size_t kBytes = 2 * kLookAhead;

  struct Char {
    NormalizedChar c;
    uint32_t begin;
    uint32_t end;
    uint32_t first_byte;
  };
  char bytes[kBytes];
  Char chars[kBytes];
  size_t num_bytes = 0;
  size_t num_chars = 0;
  size_t at = 0;          // index into chars
  size_t match_from = 0;  // no added token starts before this char

  // About the code points before `at`.
  bool after_word_char = false;
  bool after_space = false;
  uint32_t space_begin = 0;        // of the whitespace that ends there, when after_space
  bool token_takes_space = false;  // the last token has rstrip, and only whitespace came since
};

WordPieceEncoder::WordPieceEncoder(const WordPieceTables& tables, bool with_offsets, Encoding* out)
    : tables_(tables), with_offsets_(with_offsets), out_(*out) {}

WordPieceEncoder::Result WordPieceEncoder::Run(std::string_view text, End end, size_t limit) {
  text_ = text;
  end_ = end;
  limit_ = limit;
  base_ = out_.ids.size();
  if (tables_.normalized_added.empty()) {
    EncodeText();
  } else {
    Window window;
    window_ = &window;
    EncodeText();
    window_ = nullptr;
  }
  const size_t kept = out_.ids.size() - base_;
  if (end_ == End::kBack && kept > limit_) DropFront(kept - limit_);
  return {num_dropped_ + out_.ids.size() - base_, invalid_at_};
}

void WordPieceEncoder::EncodeText() {
  size_t pos = 0;
  while (pos < text_.size() && !done_) {
    switch (tables_.byte_action[static_cast<unsigned char>(text_[pos])]) {
      case ByteAction::kLetter:
        pos = EncodeLetters(pos);
        break;
      case ByteAction::kSpace:
        FinishWord();
        ++pos;
        break;
      case ByteAction::kPunctuation:
        FinishWord();
        AppendChar(&text_[pos], 1, pos, pos + 1);
        FinishWord();
        ++pos;
        break;
      case ByteAction::kSkip:
        ++pos;
        break;
      case ByteAction::kSlow:
        pos = EncodeSlow(pos);
        break;
    }
  }
  if (window_ != nullptr) DrainWindow(true);
  if (!done_) FinishWord();
}

size_t WordPieceEncoder::EncodeLetters(size_t pos) {
  const size_t end = std::min(text_.size(), pos + kWordBytes - buffered_);
  const size_t begin = pos;
  size_t at = buffered_;
  do {
    word_[at++] = tables_.letter[static_cast<unsigned char>(text_[pos++])];
  } while (pos < end &&
           tables_.byte_action[static_cast<unsigned char>(text_[pos])] == ByteAction::kLetter);
  if (with_offsets_) {
    for (size_t i = 0; i < pos - begin; ++i) {
      begins_[buffered_ + i] = static_cast<uint32_t>(begin + i);
      ends_[buffered_ + i] = static_cast<uint32_t>(begin + i + 1);
    }
  }
  if (word_chars_ == 0) {
    word_first_token_ = out_.ids.size();
    word_begin_ = static_cast<uint32_t>(begin);
  }
  word_chars_ += pos - begin;
  word_end_ = static_cast<uint32_t>(pos);
  buffered_ = at;
  CharsAppended();
  return pos;
}

size_t WordPieceEncoder::EncodeSlow(size_t pos) {
  if (const AddedTokenMatcher::Match match = FindAddedToken(pos); match.token != nullptr) {
    return EncodeAddedToken(pos, match);
  }
  uint32_t length = 0;
  const BertNormalizer::Entry entry = LookUp(pos, &length);
  if (length == 0) {
    invalid_at_ = pos;
    done_ = true;
    return pos;
  }
  const auto begin = static_cast<uint32_t>(pos);
  const uint32_t end = begin + length;
  if (pos < added_end_) return end;  // whitespace that an added token took
  const auto emit_unchanged = [&](NormalizedChar::Class char_class) {
    Emit(Unchanged(text_.substr(pos, length), char_class, entry.is_word()), begin, end);
  };
  switch (entry.kind()) {
    case BertNormalizer::Kind::kLetter:
      emit_unchanged(NormalizedChar::Class::kLetter);
      break;
    case BertNormalizer::Kind::kPunctuation:
      emit_unchanged(NormalizedChar::Class::kPunctuation);
      break;
    case BertNormalizer::Kind::kIdeograph: {
      const NormalizedChar space = Unchanged(" ", NormalizedChar::Class::kSpace, false);
      Emit(space, begin, end);
      emit_unchanged(NormalizedChar::Class::kLetter);
      Emit(space, begin, end);
      break;
    }
    case BertNormalizer::Kind::kDropped:
      break;
    case BertNormalizer::Kind::kMapped:
      for (const NormalizedChar& c : tables_.normalizer.chars(entry)) Emit(c, begin, end);
      break;
    case BertNormalizer::Kind::kReordered:
      return EncodeRun(pos);
  }
  return end;
}

BertNormalizer::Entry WordPieceEncoder::LookUp(size_t pos, uint32_t* length) const {
  const Utf8Char c = DecodeUtf8(text_, pos);
  *length = c.length;
  return tables_.normalizer.Lookup(c.code_point);
}

// REQUIRES: 0 < pos, and the text before it is UTF-8.
size_t WordPieceEncoder::PreviousPos(size_t pos) const {
  do {
    --pos;
  } while ((static_cast<unsigned char>(text_[pos]) & 0xC0) == 0x80);
  return pos;
}

// Straight to the word, or by way of the window.
void WordPieceEncoder::Emit(const NormalizedChar& c, uint32_t begin, uint32_t end) {
  if (c.size == 0) return;
  if (window_ == nullptr) {
    Split(c, begin, end);
    return;
  }
  Window& w = *window_;
  if (w.num_bytes + kMaxCharBytes > Window::kBytes) DrainWindow(false);
  if (done_) return;
  w.chars[w.num_chars++] = {c, begin, end, static_cast<uint32_t>(w.num_bytes)};
  std::memcpy(&w.bytes[w.num_bytes], c.bytes, c.size);
  w.num_bytes += c.size;
}

// Lets go of the code points that no match can start at any more; of all when `is_last`, at the end
// of a segment.
void WordPieceEncoder::DrainWindow(bool is_last) {
  Window& w = *window_;
  while (w.at < w.num_chars && !done_ &&
         (is_last || w.num_bytes - w.chars[w.at].first_byte >= Window::kLookAhead)) {
    if (w.at >= w.match_from && MatchInWindow()) continue;
    const Window::Char& next = w.chars[w.at++];
    const bool is_space = next.c.char_class == NormalizedChar::Class::kSpace;
    w.token_takes_space = w.token_takes_space && is_space;
    if (w.token_takes_space) {
      if (with_offsets_ && out_.offsets.size() > base_) out_.offsets.back().end = next.end;
    } else if (is_space && !w.after_space) {
      w.space_begin = next.begin;
    }
    w.after_space = is_space && !w.token_takes_space;
    w.after_word_char = next.c.is_word;
    Split(next.c, next.begin, next.end);
  }
  if (is_last) {
    w.num_bytes = w.num_chars = w.at = w.match_from = 0;
    w.after_word_char = w.after_space = w.token_takes_space = false;
    return;
  }
  const uint32_t bytes = w.at < w.num_chars ? w.chars[w.at].first_byte : w.num_bytes;
  std::memmove(w.bytes, w.bytes + bytes, w.num_bytes - bytes);
  std::copy(w.chars + w.at, w.chars + w.num_chars, w.chars);
  w.num_bytes -= bytes;
  w.num_chars -= w.at;
  for (size_t i = 0; i < w.num_chars; ++i) w.chars[i].first_byte -= bytes;
  w.match_from = w.match_from > w.at ? w.match_from - w.at : 0;
  w.at = 0;
}

// Drains the window at the end of a segment. The whitespace from `end` on is not part of it: an
// added token took it.
void WordPieceEncoder::EndWindow(size_t end) {
  Window& w = *window_;
  while (w.num_chars > w.at && w.chars[w.num_chars - 1].begin >= end) {
    w.num_bytes = w.chars[--w.num_chars].first_byte;
  }
  DrainWindow(true);
  if (with_offsets_ && out_.offsets.size() > base_) {
    uint32_t& last_end = out_.offsets.back().end;
    last_end = std::min(last_end, static_cast<uint32_t>(end));
  }
}

// Takes the added token that starts at the window's position, if one does.
bool WordPieceEncoder::MatchInWindow() {
  Window& w = *window_;
  const uint32_t first_byte = w.chars[w.at].first_byte;
  if (!tables_.normalized_added.MayStart(static_cast<unsigned char>(w.bytes[first_byte]))) {
    return false;
  }
  const AddedTokenMatcher::Match match =
      tables_.normalized_added.Longest({w.bytes + first_byte, w.num_bytes - first_byte});
  if (match.token == nullptr) return false;
  size_t end = w.at;
  while (end < w.num_chars && w.chars[end].first_byte < first_byte + match.length) ++end;
  w.match_from = end;
  const bool before_word_char = end < w.num_chars && w.chars[end].c.is_word;
  if (match.token->single_word && (w.after_word_char || before_word_char)) return false;

  FinishWord();
  if (done_) return true;
  const bool takes_space = match.token->lstrip && w.after_space;
  AppendToken(match.token->id,
              {takes_space ? w.space_begin : w.chars[w.at].begin, w.chars[end - 1].end});
  w.token_takes_space = match.token->rstrip;
  w.after_space = false;
  w.after_word_char = w.chars[end - 1].c.is_word;
  w.at = end;
  TokensAppended();
  return true;
}

void WordPieceEncoder::Split(const NormalizedChar& c, uint32_t begin, uint32_t end) {
  if (c.char_class == NormalizedChar::Class::kLetter) {
    AppendChar(c.bytes, c.size, begin, end);
    return;
  }
  FinishWord();
  if (c.char_class == NormalizedChar::Class::kSpace) return;
  AppendChar(c.bytes, c.size, begin, end);
  FinishWord();
}

void WordPieceEncoder::AppendChar(const char* bytes, size_t size, uint32_t begin, uint32_t end) {
  if (word_chars_ == 0) {
    word_first_token_ = out_.ids.size();
    word_begin_ = begin;
  }
  for (size_t i = 0; i < size; ++i) {
    word_[buffered_ + i] = bytes[i];
    begins_[buffered_ + i] = begin;
    ends_[buffered_ + i] = end;
  }
  buffered_ += size;
  ++word_chars_;
  word_end_ = end;
  CharsAppended();
}

// Makes room for the next code point.
void WordPieceEncoder::CharsAppended() {
  if (word_failed_ || word_chars_ > tables_.max_chars_per_word) {
    buffered_ = consumed_ = 0;  // will be unknown, whatever its letters
  } else if (buffered_ + kMaxCharBytes > kWordBytes) {
    word_failed_ = !AppendPieces(false);
    if (word_failed_) buffered_ = consumed_ = 0;
  }
}

void WordPieceEncoder::FinishWord() {
  if (word_chars_ == 0) return;
  const bool is_known =
      !word_failed_ && word_chars_ <= tables_.max_chars_per_word && AppendPieces(true);
  if (!is_known) {
    out_.ids.resize(word_first_token_);
    if (with_offsets_) out_.offsets.resize(word_first_token_);
    AppendToken(tables_.unk_id, {word_begin_, word_end_});
  }
  word_chars_ = 0;
  word_failed_ = false;
  buffered_ = consumed_ = 0;
  TokensAppended();
}

// Turns what is buffered of the word into pieces; of an unfinished word as far as more letters
// cannot change them. False where the word has no piece.
bool WordPieceEncoder::AppendPieces(bool is_whole_word) {
  while (consumed_ < buffered_) {
    const std::string_view rest(word_ + consumed_, buffered_ - consumed_);
    if (!is_whole_word && rest.size() < WordPieceTables::kMaxTokenBytes) break;
    const bool is_first = out_.ids.size() == word_first_token_;
    const TokenTrie::Match piece =
        (is_first ? tables_.first_pieces : tables_.following_pieces).Longest(rest);
    if (piece.value < 0) return false;
    const size_t end = consumed_ + piece.length;
    AppendToken(piece.value,
                with_offsets_ ? ByteSpan{begins_[consumed_], ends_[end - 1]} : ByteSpan{});
    consumed_ = end;
  }
  if (!is_whole_word) {
    std::copy(word_ + consumed_, word_ + buffered_, word_);
    if (with_offsets_) {
      std::copy(begins_ + consumed_, begins_ + buffered_, begins_);
      std::copy(ends_ + consumed_, ends_ + buffered_, ends_);
    }
    buffered_ -= consumed_;
    consumed_ = 0;
  }
  return true;
}

void WordPieceEncoder::AppendToken(int32_t id, ByteSpan span) {
  out_.ids.push_back(id);
  if (with_offsets_) out_.offsets.push_back(span);
}

// After the tokens of a whole word, or an added token.
void WordPieceEncoder::TokensAppended() {
  constexpr size_t kSlack = 1024;  // drops rarely, so that it costs little
  const size_t kept = out_.ids.size() - base_;
  if (end_ == End::kFront) {
    done_ = done_ || kept > limit_;
  } else if (kept > 2 * limit_ + kSlack) {
    DropFront(kept - limit_);
  }
}

void WordPieceEncoder::DropFront(size_t count) {
  const auto erase = [&](auto& tokens) {
    tokens.erase(tokens.begin() + base_, tokens.begin() + base_ + count);
  };
  erase(out_.ids);
  if (with_offsets_) erase(out_.offsets);
  num_dropped_ += count;
}

}  // namespace flashsvd
