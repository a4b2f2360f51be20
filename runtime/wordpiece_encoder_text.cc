// The parts of WordPieceEncoder that look at more than one code point of the text: added tokens,
// and the canonical order of combining marks.

#include <algorithm>

#include "runtime/wordpiece_encoder.h"

namespace flashsvd {
namespace {

// Index of the first char behind the last one of combining class 0.
size_t TailBegin(std::span<const NormalizedChar> chars) {
  size_t i = chars.size();
  while (i > 0 && chars[i - 1].combining_class != 0) --i;
  return i;
}

}  // namespace

// The added token to be taken at `pos`. Its `token` is null where there is none.
AddedTokenMatcher::Match WordPieceEncoder::FindAddedToken(size_t pos) {
  if (pos < match_from_ || !tables_.raw_added.MayStart(static_cast<unsigned char>(text_[pos]))) {
    return {};
  }
  const AddedTokenMatcher::Match match = tables_.raw_added.Longest(text_.substr(pos));
  if (match.token == nullptr || !match.token->single_word ||
      !TouchesWord(pos, pos + match.length)) {
    return match;
  }
  // Refused, but still a match: the search goes on behind it.
  match_from_ = pos + match.length;
  return {};
}

size_t WordPieceEncoder::EncodeAddedToken(size_t pos, const AddedTokenMatcher::Match& match) {
  const size_t begin = match.token->lstrip ? WhitespaceBegin(pos) : pos;
  const size_t end = pos + match.length;
  if (window_ != nullptr) EndWindow(begin);
  if (!done_) FinishWord();
  if (done_) return pos;
  added_end_ = match.token->rstrip ? WhitespaceEnd(end) : end;
  AppendToken(match.token->id, {static_cast<uint32_t>(begin), static_cast<uint32_t>(added_end_)});
  TokensAppended();
  match_from_ = segment_begin_ = end;
  // Not added_end_: another added token may start within the whitespace.
  return end;
}

bool WordPieceEncoder::TouchesWord(size_t begin, size_t end) const {
  uint32_t length = 0;
  if (begin > 0 && LookUp(PreviousPos(begin), &length).is_word()) return true;
  return end < text_.size() && LookUp(end, &length).is_word() && length > 0;
}

// Start of the whitespace that ends at `pos` and that no added token has taken.
size_t WordPieceEncoder::WhitespaceBegin(size_t pos) const {
  uint32_t length = 0;
  while (pos > added_end_) {
    const size_t previous = PreviousPos(pos);
    if (!LookUp(previous, &length).is_whitespace()) break;
    pos = previous;
  }
  return pos;
}

size_t WordPieceEncoder::WhitespaceEnd(size_t pos) const {
  pos = std::max(pos, added_end_);
  uint32_t length = 0;
  while (pos < text_.size() && LookUp(pos, &length).is_whitespace() && length > 0) pos += length;
  return pos;
}

// A run is a maximal stretch of decomposed code points whose combining class is not 0; the last
// ones of a starter's decomposition may begin it. RunBegin returns where the run of the mark at
// `pos` begins, the starter included.
size_t WordPieceEncoder::RunBegin(size_t pos) const {
  size_t begin = pos;
  uint32_t length = 0;
  while (pos > segment_begin_) {
    pos = PreviousPos(pos);
    const BertNormalizer::Entry entry = LookUp(pos, &length);
    if (entry.kind() == BertNormalizer::Kind::kDropped) continue;
    const std::span<const NormalizedChar> chars = tables_.normalizer.chars(entry);
    const size_t tail = TailBegin(chars);
    if (tail == chars.size()) break;
    begin = pos;
    if (tail > 0) break;
  }
  return begin;
}

// Calls visit(pos, marks, whether marks[0] is the code point's first) for the code points that a
// run consists of, up to `end` or to where `visit` returns false; returns that place. Those that
// clean_text drops count, without marks.
template <typename Visit>
size_t WordPieceEncoder::VisitRun(size_t begin, size_t end, Visit visit) const {
  size_t pos = begin;
  while (pos < end) {
    uint32_t length = 0;
    const BertNormalizer::Entry entry = LookUp(pos, &length);
    if (length == 0) break;
    std::span<const NormalizedChar> marks = tables_.normalizer.chars(entry);
    size_t tail = 0;
    if (entry.kind() != BertNormalizer::Kind::kDropped) {
      if (pos == begin) tail = TailBegin(marks);
      marks = marks.subspan(tail);
      if (marks.empty() || marks[0].combining_class == 0) break;
    }
    if (!visit(pos, marks, tail == 0)) break;
    pos += length;
  }
  return pos;
}

// Emits the marks of a run in canonical order: by combining class, else as in the text. Sorted
// without a buffer, by a pass over the run for every class that has marks to emit.
//
// A mark is put down to the bytes that the reference puts it down to: it pairs the sorted marks
// with the code points of the text from the left, one for every mark that is the first of its
// code point.
size_t WordPieceEncoder::EncodeRun(size_t pos) {
  uint32_t length = 0;
  const std::span<const NormalizedChar> chars = tables_.normalizer.chars(LookUp(pos, &length));
  const size_t tail = TailBegin(chars);
  for (size_t i = 0; i < tail; ++i) {
    Emit(chars[i], static_cast<uint32_t>(pos), static_cast<uint32_t>(pos + length));
  }
  const size_t begin = tail > 0 ? pos : RunBegin(pos);

  uint32_t num_first[256] = {};  // by combining class: marks that are the first of a code point
  bool emits[256] = {};
  bool has_starter = false;
  const auto count = [&](size_t at, std::span<const NormalizedChar> marks, bool is_first) {
    if (at > pos && FindAddedToken(at).token != nullptr) return false;
    if (at == begin) has_starter = !is_first;
    if (is_first && !marks.empty()) ++num_first[marks[0].combining_class];
    for (const NormalizedChar& mark : marks) emits[mark.combining_class] |= mark.size > 0;
    return true;
  };
  const size_t end = VisitRun(begin, text_.size(), count);

  size_t num_paired = has_starter ? 1 : 0;  // code points of the run that are paired so far
  size_t source = 0;                        // index and place of the one paired last
  size_t source_pos = begin;
  const auto advance_to = [&](size_t index) {
    BertNormalizer::Entry entry = LookUp(source_pos, &length);
    while (source < index) {
      source_pos += length;
      entry = LookUp(source_pos, &length);
      if (entry.kind() != BertNormalizer::Kind::kDropped) ++source;
    }
  };
  for (int combining_class = 1; combining_class < 256; ++combining_class) {
    if (!emits[combining_class]) {
      num_paired += num_first[combining_class];
      continue;
    }
    const auto emit = [&](size_t, std::span<const NormalizedChar> marks, bool is_first) {
      for (size_t i = 0; i < marks.size(); ++i) {
        if (marks[i].combining_class != combining_class) continue;
        if (is_first && i == 0) ++num_paired;
        if (marks[i].size == 0) continue;
        advance_to(std::max<size_t>(num_paired, 1) - 1);
        Emit(marks[i], static_cast<uint32_t>(source_pos),
             static_cast<uint32_t>(source_pos + length));
      }
      return true;
    };
    VisitRun(begin, end, emit);
  }
  return end;
}

}  // namespace flashsvd
