#ifndef FLASHSVD_RUNTIME_UNICODE_H_
#define FLASHSVD_RUNTIME_UNICODE_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace flashsvd {

inline constexpr char32_t kMaxCodePoint = 0x10FFFF;

// Length (1 to 4) and code point of the UTF-8 sequence at text[pos]; length 0 where there is none:
// stray or missing continuation bytes, overlong forms, surrogates, above U+10FFFF.
struct Utf8Char {
  char32_t code_point = 0;
  uint32_t length = 0;
};

// REQUIRES: pos < text.size().
inline Utf8Char DecodeUtf8(std::string_view text, size_t pos) {
  const auto byte = [&](size_t i) -> uint32_t { return static_cast<unsigned char>(text[pos + i]); };
  const auto continues = [&](size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const size_t left = text.size() - pos;
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) {
    if (lead < 0xC2 || left < 2 || !continues(1)) return {};
    return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  }
  if (lead < 0xF0) {
    if (left < 3 || !continues(1) || !continues(2)) return {};
    const char32_t c = (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    if (c < 0x800 || (c >= 0xD800 && c < 0xE000)) return {};
    return {c, 3};
  }
  if (lead > 0xF4 || left < 4 || !continues(1) || !continues(2) || !continues(3)) return {};
  const char32_t c =
      (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
  if (c < 0x10000 || c > kMaxCodePoint) return {};
  return {c, 4};
}

// Writes the 1 to 4 bytes of `c`; returns how many. REQUIRES: `c` is no surrogate.
int EncodeUtf8(char32_t c, char out[4]);

// Where the first ill-formed sequence starts, or npos in well-formed text.
size_t FindInvalidUtf8(std::string_view text);

// The Unicode properties that BERT tokenization turns on, equal for every code point to those of
// Hugging Face's `tokenizers`, which carries the tables of several Unicode versions. utf8proc's
// tables with the differences applied. Takes 2 MiB and some milliseconds to build: for use while
// loading. Immutable.
class UnicodeTables {
 public:
  UnicodeTables();

  // Cc, Cf or Co. The reference counts unassigned code points as letters.
  bool IsOther(char32_t c) const { return flags_[c] & kOther; }
  bool IsWhitespace(char32_t c) const { return flags_[c] & kWhitespace; }
  // P, or one of the 32 printable ASCII characters that are neither letter nor digit.
  bool IsPunctuation(char32_t c) const { return flags_[c] & kPunctuation; }
  bool IsNonspacingMark(char32_t c) const { return flags_[c] & kMark; }
  // Matches \w.
  bool IsWord(char32_t c) const { return flags_[c] & kWord; }
  uint8_t CombiningClass(char32_t c) const { return combining_class_[c]; }

  static constexpr int kMaxDecomposition = 4;
  // Full canonical decomposition, `c` itself where there is none; returns the number written.
  int Decompose(char32_t c, char32_t out[kMaxDecomposition]) const;
  static constexpr int kMaxLowerCase = 2;
  int ToLower(char32_t c, char32_t out[kMaxLowerCase]) const;

 private:
  static constexpr uint8_t kOther = 1;
  static constexpr uint8_t kWhitespace = 2;
  static constexpr uint8_t kPunctuation = 4;
  static constexpr uint8_t kMark = 8;
  static constexpr uint8_t kWord = 16;

  std::vector<uint8_t> flags_;  // by code point
  std::vector<uint8_t> combining_class_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_UNICODE_H_
