#ifndef FLASHSVD_RUNTIME_TOKEN_TRIE_H_
#define FLASHSVD_RUNTIME_TOKEN_TRIE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flashsvd {

// Byte strings with values, for the longest one that starts a text. A double-array trie: one memory
// access per byte. Immutable.
class TokenTrie {
 public:
  // REQUIRES: the keys are distinct and not empty, the values not negative.
  explicit TokenTrie(std::vector<std::pair<std::string, int32_t>> keys);

  struct Match {
    int32_t value = -1;  // -1: no key starts the text
    uint32_t length = 0;
  };
  Match Longest(std::string_view text) const {
    Match best;
    uint32_t node = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      // A base and the 256 units around it are always there, so this needs no bounds check.
      const uint32_t next = units_[node].base ^ static_cast<unsigned char>(text[i]);
      if (units_[next].parent != node) break;
      node = next;
      if (units_[node].value >= 0) {
        best = {units_[node].value, static_cast<uint32_t>(i + 1)};
      }
    }
    return best;
  }

  size_t max_key_bytes() const { return max_key_bytes_; }

 private:
  static constexpr uint32_t kFree = 0xFFFFFFFF;
  static constexpr uint32_t kNoParent = 0xFFFFFFFE;

  struct Unit {
    uint32_t base = 0;  // the child by byte b is units_[base ^ b]
    uint32_t parent = kFree;
    int32_t value = -1;
  };

  // A base whose children by `labels` are all free.
  uint32_t FindBase(const std::vector<uint8_t>& labels);

  std::vector<Unit> units_;  // whole blocks of 256; [0] is the root
  uint32_t first_free_ = 1;
  size_t max_key_bytes_ = 0;
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_TOKEN_TRIE_H_
