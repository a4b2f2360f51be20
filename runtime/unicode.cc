#include "runtime/unicode.h"

#include <utf8proc.h>

#include <algorithm>

namespace flashsvd {
namespace {

struct CodePointRange {
  char32_t first;
  char32_t last;
};

struct LowerCaseRange {
  char32_t first;
  char32_t last;
  int32_t delta;
};

#include "runtime/unicode_exceptions.inc"

// White_Space=yes, which utf8proc does not carry.
constexpr CodePointRange kWhiteSpace[] = {
    {0x9, 0xD},       {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680},
    {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000},
};

template <size_t kSize>
void Set(const CodePointRange (&ranges)[kSize], uint8_t flag, std::vector<uint8_t>& flags) {
  for (const CodePointRange& range : ranges) {
    for (char32_t c = range.first; c <= range.last; ++c) flags[c] |= flag;
  }
}

template <size_t kSize>
void Clear(const CodePointRange (&ranges)[kSize], uint8_t flag, std::vector<uint8_t>& flags) {
  for (const CodePointRange& range : ranges) {
    for (char32_t c = range.first; c <= range.last; ++c) flags[c] &= ~flag;
  }
}

}  // namespace

int EncodeUtf8(char32_t c, char out[4]) {
  const auto tail = [c](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) {
    out[0] = static_cast<char>(c);
    return 1;
  }
  if (c < 0x800) {
    out[0] = static_cast<char>(0xC0 | c >> 6);
    out[1] = tail(0);
    return 2;
  }
  if (c < 0x10000) {
    out[0] = static_cast<char>(0xE0 | c >> 12);
    out[1] = tail(6);
    out[2] = tail(0);
    return 3;
  }
  out[0] = static_cast<char>(0xF0 | c >> 18);
  out[1] = tail(12);
  out[2] = tail(6);
  out[3] = tail(0);
  return 4;
}

size_t FindInvalidUtf8(std::string_view text) {
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text, pos);
    if (c.length == 0) return pos;
    pos += c.length;
  }
  return std::string_view::npos;
}

UnicodeTables::UnicodeTables() : flags_(kMaxCodePoint + 1), combining_class_(kMaxCodePoint + 1) {
  for (char32_t c = 0; c <= kMaxCodePoint; ++c) {
    const utf8proc_property_t* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
    combining_class_[c] = static_cast<uint8_t>(property->combining_class);
    switch (property->category) {
      case UTF8PROC_CATEGORY_CC:
      case UTF8PROC_CATEGORY_CF:
      case UTF8PROC_CATEGORY_CO:
        flags_[c] = kOther;
        break;
      case UTF8PROC_CATEGORY_LU:
      case UTF8PROC_CATEGORY_LL:
      case UTF8PROC_CATEGORY_LT:
      case UTF8PROC_CATEGORY_LM:
      case UTF8PROC_CATEGORY_LO:
      case UTF8PROC_CATEGORY_MC:
      case UTF8PROC_CATEGORY_ME:
      case UTF8PROC_CATEGORY_ND:
      case UTF8PROC_CATEGORY_NL:
        flags_[c] = kWord;
        break;
      case UTF8PROC_CATEGORY_MN:
        flags_[c] = kWord | kMark;
        break;
      case UTF8PROC_CATEGORY_PC:
        flags_[c] = kWord | kPunctuation;
        break;
      case UTF8PROC_CATEGORY_PD:
      case UTF8PROC_CATEGORY_PS:
      case UTF8PROC_CATEGORY_PE:
      case UTF8PROC_CATEGORY_PI:
      case UTF8PROC_CATEGORY_PF:
      case UTF8PROC_CATEGORY_PO:
        flags_[c] = kPunctuation;
        break;
      default:
        break;
    }
  }
  constexpr CodePointRange kJoinControl[] = {{0x200C, 0x200D}};
  constexpr CodePointRange kAsciiSymbols[] = {{'!', '/'}, {':', '@'}, {'[', '`'}, {'{', '~'}};
  Set(kWhiteSpace, kWhitespace, flags_);
  Set(kJoinControl, kWord, flags_);
  Set(kExtraWord, kWord, flags_);
  Set(kAsciiSymbols, kPunctuation, flags_);
  Set(kExtraPunctuation, kPunctuation, flags_);
  Clear(kNotPunctuation, kPunctuation, flags_);
  Set(kExtraMarks, kMark, flags_);
  Clear(kNotMark, kMark, flags_);
  Clear(kNotOther, kOther, flags_);
  Clear(kNotReordered, 0xFF, combining_class_);
}

int UnicodeTables::Decompose(char32_t c, char32_t out[kMaxDecomposition]) const {
  out[0] = c;
  for (const CodePointRange& range : kNotDecomposed) {
    if (c >= range.first && c <= range.last) return 1;
  }
  utf8proc_int32_t buffer[kMaxDecomposition];
  int last_boundary = 0;
  const utf8proc_ssize_t count =
      utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), buffer, kMaxDecomposition,
                              UTF8PROC_DECOMPOSE, &last_boundary);
  // No canonical decomposition is longer than 4; surrogates decompose to nothing.
  if (count < 1 || count > kMaxDecomposition) return 1;
  std::copy_n(buffer, count, out);
  return static_cast<int>(count);
}

int UnicodeTables::ToLower(char32_t c, char32_t out[kMaxLowerCase]) const {
  if (c == 0x130) {  // full mapping: dotted capital I becomes i and a combining dot
    out[0] = 'i';
    out[1] = 0x307;
    return 2;
  }
  out[0] = static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
  for (const LowerCaseRange& range : kLowerCase) {
    if (c >= range.first && c <= range.last) out[0] = c + range.delta;
  }
  return 1;
}

}  // namespace flashsvd
