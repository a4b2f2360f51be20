#ifndef FLASHSVD_KERNELS_CPU_ISA_SIMD_H_
#define FLASHSVD_KERNELS_CPU_ISA_SIMD_H_

// Vectors of the ISA's native width as GCC vector extensions; multiply-adds become FMA through
// -ffp-contract=fast. Everything in kernels/cpu/isa/ lives in the namespace of its ISA.

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef FSVD_ISA
#error "compile isa_kernels.cc with -DFSVD_ISA=<namespace>"
#endif

namespace flashsvd::FSVD_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
// 24 accumulators, 3 weight vectors and a broadcast of 32 registers.
inline constexpr int kTileRows = 8;
inline constexpr int kTilePanels = 3;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
inline constexpr int kTileRows = 6;
inline constexpr int kTilePanels = 1;
#else
inline constexpr int kLanes = 4;
inline constexpr int kTileRows = 3;
inline constexpr int kTilePanels = 1;
#endif

inline constexpr int kPanel = 16;  // columns of a weight panel
inline constexpr int kPanelVectors = kPanel / kLanes;

typedef float VecF __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecH __attribute__((vector_size(kLanes * 2)));
typedef float UnalignedF __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef uint32_t UnalignedU __attribute__((vector_size(kLanes * 4), aligned(2), may_alias));
typedef uint16_t UnalignedH __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));

#define FSVD_INLINE static inline __attribute__((always_inline))

constexpr int RoundUp(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
constexpr int Min(int a, int b) { return a < b ? a : b; }

FSVD_INLINE VecF Broadcast(float x) { return x - VecF{}; }
FSVD_INLINE VecF BitsToFloat(VecU u) { return reinterpret_cast<VecF>(u); }
FSVD_INLINE VecU FloatToBits(VecF f) { return reinterpret_cast<VecU>(f); }

// The second where either is a NaN. One instruction, which GCC does not make of a > b ? a : b.
FSVD_INLINE VecF Max(VecF a, VecF b) {
#if defined(__AVX512F__)
  // All lanes selected; GCC 12 warns of an uninitialised operand in _mm512_max_ps itself.
  return reinterpret_cast<VecF>(
      _mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<VecF>(
      _mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}
FSVD_INLINE VecF Min(VecF a, VecF b) { return -Max(-a, -b); }

// Activations in memory are float or the bits of a bfloat16; in registers always float.
FSVD_INLINE VecF Load(const float* p) { return *reinterpret_cast<const UnalignedF*>(p); }
FSVD_INLINE VecU LoadBits(const void* p) { return *static_cast<const UnalignedU*>(p); }
FSVD_INLINE VecF Load(const uint16_t* p) {
  const VecH h = *reinterpret_cast<const UnalignedH*>(p);
  return BitsToFloat(__builtin_convertvector(h, VecU) << 16);
}

FSVD_INLINE void StoreBits(void* p, VecU v) { *static_cast<UnalignedU*>(p) = v; }
FSVD_INLINE void Store(float* p, VecF v) { *reinterpret_cast<UnalignedF*>(p) = v; }
FSVD_INLINE void Store(uint16_t* p, VecF v) {
#if defined(__AVX512BF16__)
  *reinterpret_cast<UnalignedH*>(p) =
      reinterpret_cast<VecH>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v)));
#else
  const VecU bits = FloatToBits(v);
  const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecU quiet_nan = (bits >> 16) | 0x40u;
  *reinterpret_cast<UnalignedH*>(p) = __builtin_convertvector(v == v ? rounded : quiet_nan, VecH);
#endif
}

// The first n < kLanes elements; the other lanes read as zero and are not written.
#if defined(__AVX512F__)
FSVD_INLINE VecF LoadPartial(const float* p, int n) {
  return reinterpret_cast<VecF>(_mm512_maskz_loadu_ps((1u << n) - 1, p));
}
FSVD_INLINE VecF LoadPartial(const uint16_t* p, int n) {
  const VecH h = reinterpret_cast<VecH>(_mm256_maskz_loadu_epi16((1u << n) - 1, p));
  return BitsToFloat(__builtin_convertvector(h, VecU) << 16);
}
FSVD_INLINE void StorePartial(float* p, VecF v, int n) {
  _mm512_mask_storeu_ps(p, (1u << n) - 1, reinterpret_cast<__m512>(v));
}
FSVD_INLINE void StorePartial(uint16_t* p, VecF v, int n) {
  uint16_t lanes[kLanes];
  Store(lanes, v);
  _mm256_mask_storeu_epi16(p, (1u << n) - 1, *reinterpret_cast<__m256i_u*>(lanes));
}
// The first n < 2 kLanes halves of a vector of bits, the others zero.
FSVD_INLINE VecU LoadPartialBits(const uint16_t* p, int n) {
  return reinterpret_cast<VecU>(_mm512_maskz_loadu_epi16((1u << n) - 1, p));
}
#else
template <class T>
FSVD_INLINE VecF LoadPartial(const T* p, int n) {
  T lanes[kLanes] = {};
  memcpy(lanes, p, n * sizeof(T));
  return Load(lanes);
}
template <class T>
FSVD_INLINE void StorePartial(T* p, VecF v, int n) {
  T lanes[kLanes];
  Store(lanes, v);
  memcpy(p, lanes, n * sizeof(T));
}
FSVD_INLINE VecU LoadPartialBits(const uint16_t* p, int n) {
  uint16_t halves[2 * kLanes] = {};
  memcpy(halves, p, n * sizeof(uint16_t));
  return LoadBits(halves);
}
#endif

template <class T>
FSVD_INLINE VecF LoadUpTo(const T* p, int remaining) {
  return remaining >= kLanes ? Load(p) : LoadPartial(p, remaining);
}
template <class T>
FSVD_INLINE void StoreUpTo(T* p, VecF v, int remaining) {
  if (remaining >= kLanes) {
    Store(p, v);
  } else {
    StorePartial(p, v, remaining);
  }
}

FSVD_INLINE VecI LaneIndex() {
  VecI index;
  for (int i = 0; i < kLanes; ++i) index[i] = i;
  return index;
}

// Lanes < n of v, zero elsewhere.
FSVD_INLINE VecF KeepFirst(VecF v, int n) { return LaneIndex() < n ? v : VecF{}; }

FSVD_INLINE float ReduceAdd(VecF v) {
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) v += __builtin_shuffle(v, LaneIndex() ^ step);
  return v[0];
}
FSVD_INLINE float ReduceMax(VecF v) {
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) {
    v = Max(v, __builtin_shuffle(v, LaneIndex() ^ step));
  }
  return v[0];
}

// What a kernel of a dtype reads and writes.
//   Storage: activations outside, and weights   Operand: activations inside, feeding a product
//   kStep: inputs consumed by one multiply-accumulate
//   Attention: the types of the attention products, whose K and V are packed on the fly
struct F32 {
  using Storage = float;
  using Operand = float;
  static constexpr int kStep = 1;
  static constexpr bool kExpand = false;
  using Attention = F32;
};
// bf16 weights expanded to float in registers; activations are expanded before a product.
struct Bf16Expand {
  using Storage = uint16_t;
  using Operand = float;
  static constexpr int kStep = 2;
  static constexpr bool kExpand = true;
  using Attention = F32;
};
// Products of bf16 pairs accumulated in float (vdpbf16ps).
struct Bf16Dot {
  using Storage = uint16_t;
  using Operand = uint16_t;
  static constexpr int kStep = 2;
  static constexpr bool kExpand = false;
  using Attention = Bf16Dot;
};

#if defined(__AVX512BF16__)
using Bf16 = Bf16Dot;
#else
using Bf16 = Bf16Expand;
#endif

}  // namespace flashsvd::FSVD_ISA

#endif  // FLASHSVD_KERNELS_CPU_ISA_SIMD_H_
