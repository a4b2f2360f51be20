#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_PRODUCTS_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_PRODUCTS_CUH_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/feed_forward_shape.cuh"
#include "kernels/cuda/gelu.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

// What one warpgroup does with its 64 rows of the streamed feed-forward.

namespace flashsvd {

// [64, kRank] in float32, as wgmma leaves it.
template <class Shape>
using RankAccumulator = float[Shape::kParts][Shape::kPartCols / 2];

// s += A [64, 16] B', A and B 16 columns at `a` and at `b`, a chunk [., kRank].
template <class T, class Shape>
__device__ __forceinline__ void RankProduct(RankAccumulator<Shape>& s, uint64_t a, uint64_t b) {
#pragma unroll
  for (int p = 0; p < Shape::kParts; ++p) {
    Wgmma<T, Shape::kPartCols>::Shared(s[p], a, Advance(b, p * Shape::kPartCols * 16));
  }
}

template <class Shape>
__device__ __forceinline__ void PinAccumulator(RankAccumulator<Shape>& s) {
#pragma unroll
  for (int p = 0; p < Shape::kParts; ++p) PinRegisters(s[p]);
}

// Columns 2 m and 2 m + 1 of a thread's accumulator words, as a pair of T.
template <class T, class Shape>
__device__ __forceinline__ uint32_t PackPair(const RankAccumulator<Shape>& s, int m) {
  constexpr int kPairs = Shape::kPartCols / 4;
  return Pack2<T>(s[m / kPairs][2 * (m % kPairs)], s[m / kPairs][2 * (m % kPairs) + 1]);
}

// A load that the compiler does not merge with another of the same place.
__device__ __forceinline__ float2 LoadShared2(const float* shared) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(v.x), "=f"(v.y)
               : "r"(SharedAddress(shared))
               : "memory");
  return v;
}

// Issues h += P B1' for the tile whose chunks are next in the ring, one group a chunk.
//   p_shared: the steps of P that are not in registers
template <class T, class Shape, class Ring>
__device__ __forceinline__ void IssueUp(float (&h)[Shape::kHidden / 2], const uint32_t* p_registers,
                                        uint64_t p_shared, uint64_t slots, Ring& ring,
                                        typename Ring::Position& at) {
  using Product = Wgmma<T, Shape::kHidden>;
#pragma unroll
  for (int chunk = 0; chunk < Shape::kUpChunks; ++chunk) {
    ring.WaitFull(at);
    WgmmaFence();
    const uint64_t slot = Advance(slots, at.slot * Shape::kSlotBytes);
#pragma unroll
    for (int i = 0; i < Shape::kUpSteps; ++i) {
      const int step = chunk * Shape::kUpSteps + i;
      const uint64_t b = Advance(slot, i * Shape::kHidden * 32);
      if (step < Shape::kRegisterSteps) {
        Product::Registers(h, p_registers + 4 * step, b);
      } else if (step < Shape::kRankSteps) {
        Product::Shared(h, Advance(p_shared, (step - Shape::kRegisterSteps) * 2048), b);
      }
    }
    WgmmaCommit();
    at.Next();
  }
}

// Issues s += a A2', likewise.
template <class T, class Shape, class Ring>
__device__ __forceinline__ void IssueDown(RankAccumulator<Shape>& s,
                                          const uint32_t (&a)[Shape::kHidden / 4], uint64_t slots,
                                          Ring& ring, typename Ring::Position& at) {
#pragma unroll
  for (int chunk = 0; chunk < Shape::kDownChunks; ++chunk) {
    ring.WaitFull(at);
    WgmmaFence();
    const uint64_t slot = Advance(slots, at.slot * Shape::kSlotBytes);
#pragma unroll
    for (int p = 0; p < Shape::kParts; ++p) {
#pragma unroll
      for (int i = 0; i < Shape::kDownSteps; ++i) {
        const int offset = i * Shape::kRank * 32 + p * Shape::kPartCols * 16;
        Wgmma<T, Shape::kPartCols>::Registers(s[p], a + 4 * (chunk * Shape::kDownSteps + i),
                                              Advance(slot, offset));
      }
    }
    WgmmaCommit();
    at.Next();
  }
}

// Releases kChunks slots as their groups, followed by kLater more, come to an end.
template <int kChunks, int kLater, class Ring>
__device__ __forceinline__ void ReleaseChunks(Ring& ring, typename Ring::Position& done) {
  if constexpr (kChunks > 0) {
    WgmmaWait<kChunks - 1 + kLater>();
    ring.Release(done);
    ReleaseChunks<kChunks - 1, kLater>(ring, done);
  }
}

// Whether ActivateTile gives twice the GELU, so that the second product's sums are to be halved.
template <class T>
constexpr bool kTwiceGelu = std::is_same_v<T, __nv_bfloat16>;

// Whether the activation of a tile is to be done in a scale of its own (ActivateTile): then P and
// the bias are to be multiplied by it, and the second product's sums divided.
template <class T>
__device__ __forceinline__ float ActivationScale(Activation activation) {
  return kTwiceGelu<T> && activation == Activation::kGelu ? kTwiceGeluScale : 1.0f;
}

template <class T, Activation kActivation>
__device__ __forceinline__ float ActivateRoundedTo(float x) {
  if constexpr (kActivation != Activation::kGelu) return Activate<kActivation>(x);
  if constexpr (kTwiceGelu<T>) return TwiceGeluRoundedToBf16(x);
  return GeluRoundedTo<T>(x);
}
template <class T, Activation kActivation, int kCount>
__device__ __forceinline__ void ActivateTile(const float (&h)[kCount], uint32_t (&a)[kCount / 2]) {
#pragma unroll
  for (int m = 0; m < kCount / 2; ++m) {
    a[m] = Pack2<T>(ActivateRoundedTo<T, kActivation>(h[2 * m]),
                    ActivateRoundedTo<T, kActivation>(h[2 * m + 1]));
  }
}

// a = activation(h), the A operand of the second product. kScaled: both in ActivationScale.
template <class T, bool kScaled = false, int kCount>
__device__ __forceinline__ void ActivateTile(const float (&h)[kCount], uint32_t (&a)[kCount / 2],
                                             Activation activation) {
  if (activation == Activation::kGelu) {
    if constexpr (kScaled && kTwiceGelu<T>) {
#pragma unroll
      for (int m = 0; m < kCount / 2; ++m) {
        a[m] = Pack2<T>(ScaledTwiceGeluRoundedToBf16(h[2 * m]),
                        ScaledTwiceGeluRoundedToBf16(h[2 * m + 1]));
      }
    } else {
      ActivateTile<T, Activation::kGelu>(h, a);
    }
  } else if (activation == Activation::kGeluTanh) {
    ActivateTile<T, Activation::kGeluTanh>(h, a);
  } else if (activation == Activation::kRelu) {
    ActivateTile<T, Activation::kRelu>(h, a);
  } else if (activation == Activation::kSilu) {
    ActivateTile<T, Activation::kSilu>(h, a);
  } else {
    ActivateTile<T, Activation::kNone>(h, a);
  }
}

// h = bias, in all rows: cheaper as what the product starts from than added to its result.
template <int kCount>
__device__ __forceinline__ void StartFromBias(float (&h)[kCount], const float* bias) {
  const float* own = bias + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 b = LoadShared2(own + 8 * j);
      h[4 * j + 2 * i] = b.x;
      h[4 * j + 2 * i + 1] = b.y;
    }
  }
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_PRODUCTS_CUH_
