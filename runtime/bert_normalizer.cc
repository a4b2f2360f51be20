#include "runtime/bert_normalizer.h"

#include <algorithm>
#include <map>

namespace flashsvd {
namespace {

// The blocks that BERT counts as Chinese: not Kana or Hangul, and no later extension than E.
bool IsIdeograph(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
         (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B81F) ||
         (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) ||
         (c >= 0x2F800 && c <= 0x2FA1F);
}

NormalizedChar MakeChar(char32_t c, uint8_t combining_class, const UnicodeTables& unicode) {
  NormalizedChar out;
  out.size = static_cast<uint8_t>(EncodeUtf8(c, out.bytes));
  out.char_class = unicode.IsWhitespace(c)    ? NormalizedChar::Class::kSpace
                   : unicode.IsPunctuation(c) ? NormalizedChar::Class::kPunctuation
                                              : NormalizedChar::Class::kLetter;
  out.combining_class = combining_class;
  out.is_word = unicode.IsWord(c);
  return out;
}

}  // namespace

BertNormalizer::BertNormalizer(const BertNormalizerOptions& options, const UnicodeTables& unicode) {
  std::map<std::vector<Entry>, uint16_t> known;
  std::vector<Entry> page(kPageSize);
  for (char32_t first = 0; first <= kMaxCodePoint; first += kPageSize) {
    for (size_t i = 0; i < kPageSize; ++i) page[i] = MakeEntry(first + i, options, unicode);
    const auto [it, is_new] =
        known.emplace(page, static_cast<uint16_t>(entries_.size() / kPageSize));
    if (is_new) entries_.insert(entries_.end(), page.begin(), page.end());
    pages_.push_back(it->second);
  }
}

BertNormalizer::Entry BertNormalizer::MakeEntry(char32_t c, const BertNormalizerOptions& options,
                                                const UnicodeTables& unicode) {
  const bool is_word = unicode.IsWord(c);
  const bool is_whitespace = unicode.IsWhitespace(c);
  const auto entry = [&](Kind kind, size_t num_chars, size_t first_char) {
    return Entry(kind, is_word, is_whitespace, num_chars, first_char);
  };
  const bool is_space_control = c == '\t' || c == '\n' || c == '\r';
  if (options.clean_text && (c == 0 || c == 0xFFFD || (unicode.IsOther(c) && !is_space_control))) {
    return entry(Kind::kDropped, 0, 0);
  }
  const char32_t cleaned = options.clean_text && is_whitespace ? U' ' : c;
  const bool is_ideograph = options.handle_chinese_chars && IsIdeograph(cleaned);

  char32_t decomposed[UnicodeTables::kMaxDecomposition] = {cleaned};
  const int count = options.strip_accents ? unicode.Decompose(cleaned, decomposed) : 1;
  bool reordered = false;
  bool unchanged = count == 1 && decomposed[0] == c && !is_whitespace;
  const size_t first_char = chars_.size();
  if (is_ideograph) chars_.push_back(MakeChar(U' ', 0, unicode));
  for (int i = 0; i < count; ++i) {
    const char32_t d = decomposed[i];
    const uint8_t combining_class = options.strip_accents ? unicode.CombiningClass(d) : 0;
    if (options.strip_accents && unicode.IsNonspacingMark(d)) {
      NormalizedChar stripped;
      stripped.combining_class = combining_class;
      chars_.push_back(stripped);
      unchanged = false;
      continue;
    }
    char32_t lower[UnicodeTables::kMaxLowerCase] = {d};
    const int num_lower = options.lowercase ? unicode.ToLower(d, lower) : 1;
    for (int k = 0; k < num_lower; ++k) {
      chars_.push_back(MakeChar(lower[k], combining_class, unicode));
    }
    unchanged = unchanged && num_lower == 1 && lower[0] == d && combining_class == 0;
    reordered = reordered || combining_class != 0;
  }
  if (is_ideograph) chars_.push_back(MakeChar(U' ', 0, unicode));
  if (unchanged) {
    chars_.resize(first_char);
    return entry(is_ideograph               ? Kind::kIdeograph
                 : unicode.IsPunctuation(c) ? Kind::kPunctuation
                                            : Kind::kLetter,
                 0, 0);
  }
  return entry(reordered ? Kind::kReordered : Kind::kMapped, chars_.size() - first_char,
               first_char);
}

std::string BertNormalizer::Normalize(std::string_view text) const {
  std::vector<NormalizedChar> all;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text, pos);
    const std::string_view bytes = text.substr(pos, c.length);
    const Entry entry = Lookup(c.code_point);
    if (entry.kind() == Kind::kMapped || entry.kind() == Kind::kReordered) {
      all.insert(all.end(), chars(entry).begin(), chars(entry).end());
    } else if (entry.kind() != Kind::kDropped) {
      NormalizedChar unchanged, space;
      unchanged.size = static_cast<uint8_t>(bytes.copy(unchanged.bytes, bytes.size()));
      space.size = static_cast<uint8_t>(std::string_view(" ").copy(space.bytes, 1));
      if (entry.kind() == Kind::kIdeograph) {
        all.insert(all.end(), {space, unchanged, space});
      } else {
        all.push_back(unchanged);
      }
    }
    pos += c.length;
  }
  const auto is_starter = [](const NormalizedChar& c) { return c.combining_class == 0; };
  const auto in_order = [](const NormalizedChar& a, const NormalizedChar& b) {
    return a.combining_class < b.combining_class;
  };
  for (auto run = all.begin(); run != all.end();) {
    run = std::find_if_not(run, all.end(), is_starter);
    const auto end = std::find_if(run, all.end(), is_starter);
    // Insertion sort: it is stable, and runs are short.
    for (auto it = run; it != end; ++it) {
      std::rotate(std::upper_bound(run, it, *it, in_order), it, it + 1);
    }
    run = end;
  }
  std::string out;
  for (const NormalizedChar& c : all) out += c.text();
  return out;
}

}  // namespace flashsvd
