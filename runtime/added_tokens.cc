#include "runtime/added_tokens.h"

#include <utility>

namespace flashsvd {
namespace {

std::vector<std::pair<std::string, int32_t>> Numbered(const std::vector<std::string>& patterns) {
  std::vector<std::pair<std::string, int32_t>> keys;
  for (size_t i = 0; i < patterns.size(); ++i) keys.emplace_back(patterns[i], i);
  return keys;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens,
                                     const std::vector<std::string>& patterns)
    : tokens_(std::move(tokens)), trie_(Numbered(patterns)) {
  for (const std::string& pattern : patterns) {
    may_start_[static_cast<unsigned char>(pattern[0])] = true;
  }
}

}  // namespace flashsvd
