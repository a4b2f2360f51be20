#include "tests/testing/counting_new.h"

#include <cstdlib>
#include <new>

namespace {

std::atomic<int64_t> num_allocations{0};

void* CountedAllocateOrNull(size_t bytes, size_t alignment) {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  if (alignment == 0) return std::malloc(bytes > 0 ? bytes : 1);
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

void* CountedAllocate(size_t bytes, size_t alignment) {
  void* memory = CountedAllocateOrNull(bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

int64_t flashsvd::testing::NumAllocations() {
  return num_allocations.load(std::memory_order_relaxed);
}

void* operator new(size_t bytes) { return CountedAllocate(bytes, 0); }
void* operator new[](size_t bytes) { return CountedAllocate(bytes, 0); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return CountedAllocateOrNull(bytes, 0);
}
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept {
  return CountedAllocateOrNull(bytes, 0);
}
void* operator new(size_t bytes, std::align_val_t alignment) {
  return CountedAllocate(bytes, static_cast<size_t>(alignment));
}
void* operator new[](size_t bytes, std::align_val_t alignment) {
  return CountedAllocate(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
