#include "runtime/wordpiece.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <unordered_map>
#include <utility>

#include "kernels/status_macros.h"
#include "runtime/strict_json.h"
#include "runtime/unicode.h"

namespace flashsvd {
namespace {

using TokenIds = std::unordered_map<std::string, int32_t>;

absl::Status CheckToken(std::string_view name, size_t index, const std::string& token) {
  if (token.size() > WordPieceTables::kMaxTokenBytes) {
    return absl::InvalidArgumentError(
        fmt::format("{}[{}]: a token of {} bytes; at most {} are supported", name, index,
                    token.size(), WordPieceTables::kMaxTokenBytes));
  }
  if (FindInvalidUtf8(token) != std::string_view::npos) {
    return absl::InvalidArgumentError(
        fmt::format("{}[{}]: {} is not UTF-8", name, index, Quoted(token)));
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenIds> NumberTokens(const std::vector<std::string>& vocab) {
  if (vocab.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max() / 2)) {
    return absl::InvalidArgumentError(fmt::format("vocab: {} tokens", vocab.size()));
  }
  TokenIds ids;
  for (size_t i = 0; i < vocab.size(); ++i) {
    FSVD_RETURN_IF_ERROR(CheckToken("vocab", i, vocab[i]));
    const auto [it, is_new] = ids.emplace(vocab[i], i);
    if (!is_new) {
      return absl::InvalidArgumentError(
          fmt::format("vocab: {} has the ids {} and {}", Quoted(vocab[i]), it->second, i));
    }
  }
  return ids;
}

// Checks the added tokens, gives `tokens` and `ids` those that are not in the vocabulary, and lets
// the last of several with the same content stand.
absl::StatusOr<std::vector<AddedToken>> AddTokens(const std::vector<AddedToken>& added,
                                                  std::vector<std::string>* tokens, TokenIds* ids) {
  std::vector<AddedToken> distinct;
  for (size_t i = 0; i < added.size(); ++i) {
    const AddedToken& token = added[i];
    if (token.content.empty()) {
      return absl::InvalidArgumentError(fmt::format("added_tokens[{}].content: empty", i));
    }
    FSVD_RETURN_IF_ERROR(CheckToken("added_tokens", i, token.content));
    const auto [it, is_new] = ids->emplace(token.content, tokens->size());
    if (is_new) tokens->push_back(token.content);
    if (token.id != it->second) {
      return absl::InvalidArgumentError(
          fmt::format("added_tokens[{}].id: {} has id {} and would be {} as {}", i,
                      Quoted(token.content), token.id, it->second,
                      is_new ? "the next token after the vocabulary" : "the vocabulary has it"));
    }
    std::erase_if(distinct, [&](const AddedToken& t) { return t.id == token.id; });
    distinct.push_back(token);
  }
  return distinct;
}

absl::StatusOr<AddedTokenMatcher> MakeMatcher(const std::vector<AddedToken>& added, bool normalized,
                                              const BertNormalizer& normalizer) {
  std::vector<AddedToken> tokens;
  std::vector<std::string> patterns;
  for (const AddedToken& token : added) {
    if (token.normalized != normalized) continue;
    std::string pattern = normalized ? normalizer.Normalize(token.content) : token.content;
    if (pattern.empty() || pattern.size() > WordPieceTables::kMaxTokenBytes) {
      return absl::InvalidArgumentError(fmt::format("added_tokens: {} has {} bytes when normalised",
                                                    Quoted(token.content), pattern.size()));
    }
    // Of tokens that look the same normalised, the reference takes any.
    if (std::find(patterns.begin(), patterns.end(), pattern) != patterns.end()) continue;
    tokens.push_back(token);
    patterns.push_back(std::move(pattern));
  }
  return AddedTokenMatcher(std::move(tokens), patterns);
}

std::vector<std::pair<std::string, int32_t>> Keys(const std::vector<std::string>& vocab,
                                                  const std::string& prefix) {
  std::vector<std::pair<std::string, int32_t>> keys;
  for (size_t i = 0; i < vocab.size(); ++i) {
    if (vocab[i].size() > prefix.size() && vocab[i].starts_with(prefix)) {
      keys.emplace_back(vocab[i].substr(prefix.size()), i);
    }
  }
  return keys;
}

void FillByteActions(WordPieceTables* tables) {
  tables->byte_action.fill(ByteAction::kSlow);
  if (!tables->normalized_added.empty()) return;
  for (unsigned char byte = 0; byte < 0x80; ++byte) {
    if (tables->raw_added.MayStart(byte)) continue;
    const BertNormalizer::Entry entry = tables->normalizer.Lookup(byte);
    const auto chars = tables->normalizer.chars(entry);
    ByteAction& action = tables->byte_action[byte];
    if (entry.kind() == BertNormalizer::Kind::kLetter) {
      action = ByteAction::kLetter;
      tables->letter[byte] = static_cast<char>(byte);
    } else if (entry.kind() == BertNormalizer::Kind::kPunctuation) {
      action = ByteAction::kPunctuation;
    } else if (entry.kind() == BertNormalizer::Kind::kDropped) {
      action = ByteAction::kSkip;
    } else if (chars.size() == 1 && chars[0].char_class == NormalizedChar::Class::kSpace) {
      action = ByteAction::kSpace;
    } else if (chars.size() == 1 && chars[0].size == 1) {
      action = ByteAction::kLetter;
      tables->letter[byte] = chars[0].bytes[0];
    }
  }
}

absl::Status CheckTemplate(std::string_view name, const EncodingTemplate& pieces, size_t num_texts,
                           size_t num_tokens) {
  for (const TemplatePiece& piece : pieces) {
    if (piece.kind == TemplatePiece::Kind::kSecondText && num_texts < 2) {
      return absl::InvalidArgumentError(fmt::format("{}: asks for a second text", name));
    }
    for (const int32_t id : piece.ids) {
      if (id < 0 || static_cast<size_t>(id) >= num_tokens) {
        return absl::InvalidArgumentError(fmt::format(
            "{}: id {} of a special token, but there are {} tokens", name, id, num_tokens));
      }
    }
  }
  return absl::OkStatus();
}

int NumSpecial(const EncodingTemplate& pieces) {
  size_t count = 0;
  for (const TemplatePiece& piece : pieces) count += piece.ids.size();
  return static_cast<int>(count);
}

// Tokens [begin, begin + count) of an Encoding.
struct TokenRange {
  size_t begin = 0;
  size_t count = 0;
};

// Makes the final sequence behind the tokens of the texts in `out`, and moves it to the front.
void ApplyTemplate(const EncodingTemplate& pieces, const TokenRange (&texts)[2],
                   const EncodeOptions& options, Encoding* out) {
  const size_t raw = out->ids.size();
  for (const TemplatePiece& piece : pieces) {
    if (piece.kind == TemplatePiece::Kind::kSpecialTokens) {
      if (!options.add_special_tokens) continue;
      out->ids.insert(out->ids.end(), piece.ids.begin(), piece.ids.end());
      if (options.with_offsets) out->offsets.resize(out->ids.size());
    } else {
      const TokenRange& text = texts[piece.kind == TemplatePiece::Kind::kSecondText];
      const size_t at = out->ids.size();
      out->ids.resize(at + text.count);
      std::copy_n(out->ids.begin() + text.begin, text.count, out->ids.begin() + at);
      if (options.with_offsets) {
        out->offsets.resize(at + text.count);
        std::copy_n(out->offsets.begin() + text.begin, text.count, out->offsets.begin() + at);
      }
    }
    out->type_ids.resize(out->ids.size() - raw, piece.type_id);
  }
  out->ids.erase(out->ids.begin(), out->ids.begin() + raw);
  if (options.with_offsets) out->offsets.erase(out->offsets.begin(), out->offsets.begin() + raw);
}

// What the reference's longest_first leaves of two texts that are too long together.
std::pair<size_t, size_t> LongestFirst(size_t first, size_t second, bool first_is_longer,
                                       size_t limit) {
  const size_t shorter = std::min(first, second);
  size_t kept = shorter;
  size_t kept_longer = limit - std::min(limit, shorter);
  if (kept_longer < kept) {
    kept = limit / 2;
    kept_longer = limit - kept;
  }
  return first_is_longer ? std::pair(kept_longer, kept) : std::pair(kept, kept_longer);
}

}  // namespace

absl::StatusOr<std::unique_ptr<WordPieceTokenizer>> WordPieceTokenizer::Create(
    WordPieceOptions options) {
  FSVD_ASSIGN_OR_RETURN(TokenIds ids, NumberTokens(options.vocab));
  const auto unk = ids.find(options.unk_token);
  if (unk == ids.end()) {
    return absl::InvalidArgumentError(
        fmt::format("unk_token: {} is not in the vocabulary", Quoted(options.unk_token)));
  }
  const int32_t unk_id = unk->second;
  BertNormalizer normalizer(options.normalizer, UnicodeTables());
  std::vector<std::string> tokens = options.vocab;
  FSVD_ASSIGN_OR_RETURN(const std::vector<AddedToken> added,
                        AddTokens(options.added_tokens, &tokens, &ids));
  FSVD_ASSIGN_OR_RETURN(AddedTokenMatcher raw_added, MakeMatcher(added, false, normalizer));
  FSVD_ASSIGN_OR_RETURN(AddedTokenMatcher normalized_added, MakeMatcher(added, true, normalizer));
  FSVD_RETURN_IF_ERROR(CheckTemplate("single", options.single, 1, tokens.size()));
  FSVD_RETURN_IF_ERROR(CheckTemplate("pair", options.pair, 2, tokens.size()));
  WordPieceTables tables = {
      .normalizer = std::move(normalizer),
      .first_pieces = TokenTrie(Keys(options.vocab, "")),
      .following_pieces = TokenTrie(Keys(options.vocab, options.continuing_prefix)),
      .unk_id = unk_id,
      .max_chars_per_word = options.max_chars_per_word,
      .raw_added = std::move(raw_added),
      .normalized_added = std::move(normalized_added)};
  FillByteActions(&tables);
  return std::unique_ptr<WordPieceTokenizer>(new WordPieceTokenizer(
      std::move(tables), std::move(tokens), std::move(options.single), std::move(options.pair)));
}

WordPieceTokenizer::WordPieceTokenizer(WordPieceTables tables, std::vector<std::string> tokens,
                                       EncodingTemplate single, EncodingTemplate pair)
    : tables_(std::move(tables)),
      tokens_(std::move(tokens)),
      single_(std::move(single)),
      pair_(std::move(pair)),
      num_special_single_(NumSpecial(single_)),
      num_special_pair_(NumSpecial(pair_)) {}

absl::Status WordPieceTokenizer::Encode(std::string_view text, const EncodeOptions& options,
                                        Encoding* out) const {
  out->Clear();
  FSVD_ASSIGN_OR_RETURN(const size_t limit, Budget(options, num_special_single_));
  FSVD_ASSIGN_OR_RETURN(const size_t count, AppendText(text, "text", options, limit, out));
  out->truncated = count > limit;
  ApplyTemplate(single_, {{0, out->ids.size()}, {}}, options, out);
  return absl::OkStatus();
}

absl::Status WordPieceTokenizer::EncodePair(std::string_view first, std::string_view second,
                                            const EncodeOptions& options, Encoding* out) const {
  out->Clear();
  FSVD_ASSIGN_OR_RETURN(const size_t limit, Budget(options, num_special_pair_));
  FSVD_ASSIGN_OR_RETURN(const size_t num_first,
                        AppendText(first, "first text", options, limit, out));
  TokenRange texts[2] = {{0, out->ids.size()}, {}};
  const size_t limit_second = options.truncation == Truncation::kNone ? limit - num_first : limit;
  FSVD_ASSIGN_OR_RETURN(const size_t num_second,
                        AppendText(second, "second text", options, limit_second, out));
  texts[1] = {texts[0].count, out->ids.size() - texts[0].count};
  out->truncated = num_first + num_second > limit;
  if (out->truncated) {
    bool first_is_longer = num_first > num_second;
    if (options.truncation == Truncation::kRight && limit % 2 == 1 && num_first > limit &&
        num_second > limit) {
      FSVD_ASSIGN_OR_RETURN(first_is_longer, FirstIsLonger(first, second, out));
    }
    const auto [keep_first, keep_second] =
        LongestFirst(num_first, num_second, first_is_longer, limit);
    const size_t keep[2] = {keep_first, keep_second};
    for (int i = 0; i < 2; ++i) {
      const size_t drop = texts[i].count - std::min(texts[i].count, keep[i]);
      texts[i].count -= drop;
      if (options.truncation == Truncation::kLeft) texts[i].begin += drop;
    }
  }
  ApplyTemplate(pair_, texts, options, out);
  return absl::OkStatus();
}

// Tokens that the texts may have.
absl::StatusOr<size_t> WordPieceTokenizer::Budget(const EncodeOptions& options,
                                                  int num_special) const {
  const int special = options.add_special_tokens ? num_special : 0;
  if (options.max_tokens < special) {
    return absl::InvalidArgumentError(fmt::format(
        "max_tokens is {}, but {} special tokens are added", options.max_tokens, special));
  }
  return static_cast<size_t>(options.max_tokens - special);
}

// Appends at most `limit` tokens, from the end that the truncation keeps. Returns how many the text
// has, or for kRight any number above the limit if there are more.
absl::StatusOr<size_t> WordPieceTokenizer::AppendText(std::string_view text, std::string_view name,
                                                      const EncodeOptions& options, size_t limit,
                                                      Encoding* out) const {
  if (text.size() > std::numeric_limits<uint32_t>::max()) {
    return absl::InvalidArgumentError(fmt::format("{}: {} bytes", name, text.size()));
  }
  const size_t base = out->ids.size();
  WordPieceEncoder encoder(tables_, options.with_offsets, out);
  const auto end = options.truncation == Truncation::kLeft ? WordPieceEncoder::End::kBack
                                                           : WordPieceEncoder::End::kFront;
  const auto [num_tokens, invalid_at] = encoder.Run(text, end, limit);
  if (invalid_at != std::string_view::npos) {
    return absl::InvalidArgumentError(fmt::format("{}: not UTF-8 at byte {}", name, invalid_at));
  }
  if (num_tokens > limit) {
    if (options.truncation == Truncation::kNone) {
      return absl::InvalidArgumentError(
          fmt::format("{}: more than the {} tokens that max_tokens {} leaves it", name, limit,
                      options.max_tokens));
    }
    out->ids.resize(base + limit);
    if (options.with_offsets) out->offsets.resize(base + limit);
  }
  return num_tokens;
}

absl::StatusOr<bool> WordPieceTokenizer::FirstIsLonger(std::string_view first,
                                                       std::string_view second,
                                                       Encoding* out) const {
  EncodeOptions options;
  options.truncation = Truncation::kLeft;  // reads all of the text
  FSVD_ASSIGN_OR_RETURN(const size_t num_first, AppendText(first, "first text", options, 0, out));
  FSVD_ASSIGN_OR_RETURN(const size_t num_second,
                        AppendText(second, "second text", options, 0, out));
  return num_first > num_second;
}

}  // namespace flashsvd
