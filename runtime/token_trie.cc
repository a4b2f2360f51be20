#include "runtime/token_trie.h"

#include <algorithm>

namespace flashsvd {
namespace {

constexpr size_t kBlock = 256;

}  // namespace

TokenTrie::TokenTrie(std::vector<std::pair<std::string, int32_t>> keys) : units_(kBlock) {
  std::sort(keys.begin(), keys.end());
  units_[0].parent = kNoParent;

  // Keys [first, last) share their first `depth` bytes, which lead to `node`.
  struct Subtree {
    size_t first;
    size_t last;
    size_t depth;
    uint32_t node;
  };
  std::vector<Subtree> queue = {{0, keys.size(), 0, 0}};  // breadth first: a work list, not a stack
  std::vector<uint8_t> labels;
  std::vector<size_t> starts;
  for (size_t at = 0; at < queue.size(); ++at) {
    const Subtree tree = queue[at];
    labels.clear();
    starts.clear();
    for (size_t i = tree.first; i < tree.last; ++i) {
      const auto& [key, value] = keys[i];
      if (key.size() == tree.depth) {
        units_[tree.node].value = value;
        max_key_bytes_ = std::max(max_key_bytes_, key.size());
        continue;
      }
      const auto label = static_cast<uint8_t>(key[tree.depth]);
      if (labels.empty() || labels.back() != label) {
        labels.push_back(label);
        starts.push_back(i);
      }
    }
    if (labels.empty()) continue;
    starts.push_back(tree.last);
    const uint32_t base = FindBase(labels);
    units_[tree.node].base = base;
    for (size_t k = 0; k < labels.size(); ++k) {
      const uint32_t child = base ^ labels[k];
      units_[child].parent = tree.node;
      queue.push_back({starts[k], starts[k + 1], tree.depth + 1, child});
    }
  }
}

uint32_t TokenTrie::FindBase(const std::vector<uint8_t>& labels) {
  const auto is_free = [&](uint32_t slot) { return units_[slot].parent == kFree; };
  const auto size = static_cast<uint32_t>(units_.size());
  if (labels.size() == 1) {
    while (first_free_ < size && !is_free(first_free_)) ++first_free_;
    if (first_free_ < size) return first_free_ ^ labels[0];
  } else {
    // In the newest block only, which bounds the time to build. What stays free in older ones goes
    // to nodes of one child, which fit anywhere: a real vocabulary leaves no holes.
    for (uint32_t slot = size - kBlock; slot < size; ++slot) {
      const uint32_t base = slot ^ labels[0];
      const auto fits = [&](uint8_t label) { return is_free(base ^ label); };
      if (std::all_of(labels.begin(), labels.end(), fits)) return base;
    }
  }
  units_.resize(size + kBlock);
  return size;
}

}  // namespace flashsvd
