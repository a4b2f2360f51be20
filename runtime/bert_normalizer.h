#ifndef FLASHSVD_RUNTIME_BERT_NORMALIZER_H_
#define FLASHSVD_RUNTIME_BERT_NORMALIZER_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/unicode.h"

namespace flashsvd {

// The steps of Hugging Face's BertNormalizer, in their order.
struct BertNormalizerOptions {
  bool clean_text = true;            // drop controls, make every whitespace a space
  bool handle_chinese_chars = true;  // spaces around every CJK ideograph
  bool strip_accents = true;         // canonical decomposition (NFD) without nonspacing marks
  bool lowercase = true;
};

// One code point of the normalised text.
struct NormalizedChar {
  enum class Class : uint8_t { kLetter, kSpace, kPunctuation };

  char bytes[4] = {};
  uint8_t size = 0;  // 0: a mark that was stripped
  Class char_class = Class::kLetter;
  uint8_t combining_class = 0;  // 0 when nothing is decomposed
  bool is_word = false;         // matches \w

  std::string_view text() const { return {bytes, size}; }
};

// What normalisation makes of every code point by itself. The one thing that depends on neighbours,
// the canonical order of combining marks, is left to the caller: see Kind::kReordered.
// Immutable.
class BertNormalizer {
 public:
  enum class Kind : uint8_t {
    kLetter,       // unchanged
    kPunctuation,  // unchanged
    kIdeograph,    // unchanged, between two spaces
    kDropped,      // by clean_text, before any other step
    kMapped,       // to chars(); those of combining class other than 0 are all stripped marks
    kReordered,    // to chars(); at least one mark stays and has to be put in canonical order
  };

  class Entry {
   public:
    Entry() = default;
    Entry(Kind kind, bool is_word, bool is_whitespace, size_t num_chars, size_t first_char)
        : bits_(static_cast<uint32_t>(kind) | uint32_t{is_word} << 3 |
                uint32_t{is_whitespace} << 4 | static_cast<uint32_t>(num_chars) << 5 |
                static_cast<uint32_t>(first_char) << 9) {}

    Kind kind() const { return static_cast<Kind>(bits_ & 7); }
    // Of the code point before normalisation.
    bool is_word() const { return bits_ & 8; }
    bool is_whitespace() const { return bits_ & 16; }
    size_t num_chars() const { return bits_ >> 5 & 15; }
    size_t first_char() const { return bits_ >> 9; }
    bool operator<(const Entry& other) const { return bits_ < other.bits_; }

   private:
    uint32_t bits_ = 0;
  };

  BertNormalizer(const BertNormalizerOptions& options, const UnicodeTables& unicode);

  Entry Lookup(char32_t c) const {
    return entries_[size_t{pages_[c >> kPageBits]} << kPageBits | (c & (kPageSize - 1))];
  }
  // Empty for the kinds that leave the code point unchanged, and for kDropped.
  std::span<const NormalizedChar> chars(Entry entry) const {
    return {chars_.data() + entry.first_char(), entry.num_chars()};
  }

  // The whole of a text, the canonical order included. Allocates: for use while loading.
  // REQUIRES: UTF-8.
  std::string Normalize(std::string_view text) const;

 private:
  static constexpr int kPageBits = 8;
  static constexpr size_t kPageSize = size_t{1} << kPageBits;

  Entry MakeEntry(char32_t c, const BertNormalizerOptions& options, const UnicodeTables& unicode);

  std::vector<uint16_t> pages_;  // of entries_, by code point / kPageSize; equal pages are shared
  std::vector<Entry> entries_;
  std::vector<NormalizedChar> chars_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_BERT_NORMALIZER_H_
