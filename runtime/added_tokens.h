#ifndef FLASHSVD_RUNTIME_ADDED_TOKENS_H_
#define FLASHSVD_RUNTIME_ADDED_TOKENS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/token_trie.h"

namespace flashsvd {

// A token that is recognised in the text itself and never split, such as "[SEP]".
struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool single_word = false;  // not where it touches a word character (\w)
  bool lstrip = false;       // takes the whitespace before it, too
  bool rstrip = false;       // and that behind it
  bool normalized = false;   // looked for in the normalised text instead of the original
  bool operator==(const AddedToken&) const = default;
};

// Finds the longest of a set of added tokens at a position. Immutable.
class AddedTokenMatcher {
 public:
  // `patterns[i]` is what tokens[i] looks like in the text. REQUIRES: distinct, not empty.
  AddedTokenMatcher(std::vector<AddedToken> tokens, const std::vector<std::string>& patterns);

  bool empty() const { return tokens_.empty(); }
  // Whether a match may start with `byte`.
  bool MayStart(unsigned char byte) const { return may_start_[byte]; }
  size_t max_pattern_bytes() const { return trie_.max_key_bytes(); }

  struct Match {
    const AddedToken* token = nullptr;  // null: none starts the text
    size_t length = 0;
  };
  Match Longest(std::string_view text) const {
    const TokenTrie::Match match = trie_.Longest(text);
    if (match.value < 0) return {};
    return {&tokens_[match.value], match.length};
  }

 private:
  std::vector<AddedToken> tokens_;
  TokenTrie trie_;  // values are indices into tokens_
  std::array<bool, 256> may_start_ = {};
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_ADDED_TOKENS_H_
