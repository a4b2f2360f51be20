#ifndef FLASHSVD_KERNELS_CUDA_RING_POSITION_CUH_
#define FLASHSVD_KERNELS_CUDA_RING_POSITION_CUH_

#include <cstdint>

namespace flashsvd {

// A place in a ring of kSlots buffers: the slot, and the parity of its current lap.
template <int kSlots>
struct RingPosition {
  int slot = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void Next() {
    if (++slot == kSlots) {
      slot = 0;
      phase ^= 1;
    }
  }
  __device__ __forceinline__ void Advance(int steps) {
    const int to = slot + steps;
    slot = to % kSlots;
    phase ^= to / kSlots & 1;
  }
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_RING_POSITION_CUH_
