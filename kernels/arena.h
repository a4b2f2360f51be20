#ifndef FLASHSVD_KERNELS_ARENA_H_
#define FLASHSVD_KERNELS_ARENA_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/status_macros.h"
#include "kernels/tensor.h"

namespace flashsvd {

// A byte range of an arena, fixed before the arena exists.
struct ArenaSpan {
  size_t offset = 0;
  size_t bytes = 0;
  size_t end() const { return offset + bytes; }
};

// Working memory of one fused operation. Contents are undefined before and after.
struct Scratch {
  void* data = nullptr;
  size_t bytes = 0;
};

// Alignment of every span: a cache line on the CPU, a TMA box on the GPU.
inline constexpr size_t kArenaAlignment = 256;

constexpr size_t ArenaAlign(size_t bytes) {
  return (bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

// The activation memory of one execution slot: allocated once at load, addressed by planned spans,
// never grown. Records the highest byte handed out, so that plan and use can be compared.
// Not thread-safe: one slot, one thread.
class Arena {
 public:
  explicit Arena(Buffer memory) : memory_(std::move(memory)) {}

  // REQUIRES: span lies within capacity(); spans come from a plan, so anything else is a bug.
  void* At(ArenaSpan span) {
    FSVD_CHECK(span.end() <= memory_.bytes(), "span [%zu, %zu) of an arena of %zu bytes",
               span.offset, span.end(), memory_.bytes());
    high_water_ = std::max(high_water_, span.end());
    return static_cast<std::byte*>(memory_.data()) + span.offset;
  }

  size_t capacity() const { return memory_.bytes(); }
  size_t high_water() const { return high_water_; }
  void ResetHighWater() { high_water_ = 0; }

 private:
  Buffer memory_;
  size_t high_water_ = 0;
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_ARENA_H_
