#ifndef FLASHSVD_KERNELS_CPU_ISA_ACTIVATION_H_
#define FLASHSVD_KERNELS_CPU_ISA_ACTIVATION_H_

#include "kernels/cpu/isa/simd.h"
#include "kernels/cpu/kernel_table.h"

namespace flashsvd::FSVD_ISA {

// 2^x. Adding 1.5 * 2^23 rounds x to an integer held in the low mantissa bits, which then shift
// into the exponent of a polynomial that is minimax on [-1/2, 1/2] (fitted by linear programming):
// degree 5 has a relative error below 3e-7, degree 3 of 7.5e-5, a twenty-fifth of bf16's roundoff.
// REQUIRES: x <= 127; below -126 the result is 2^-126.
template <int kDegree>
FSVD_INLINE VecF Exp2AtMost127(VecF x) {
  x = Max(Broadcast(-126.0f), x);
  const VecF magic = Broadcast(12582912.0f);
  const VecF shifted = x + magic;
  const VecF f = x - (shifted - magic);
  VecF p;
  if constexpr (kDegree == 3) {
    p = f * 0.05517167f + 0.24261112f;
    p = p * f + 0.69326099f;
    p = p * f + 0.99992807f;
  } else {
    static_assert(kDegree == 5);
    p = f * 0.00132765f + 0.00967554f;
    p = p * f + 0.05550713f;
    p = p * f + 0.2402212f;
    p = p * f + 0.69314697f;
    p = p * f + 1.00000007f;
  }
  return BitsToFloat(FloatToBits(p) + (FloatToBits(shifted) << 23));
}

FSVD_INLINE VecF Exp2(VecF x) { return Exp2AtMost127<5>(Min(Broadcast(127.0f), x)); }

inline constexpr float kLog2E = 1.44269504f;

struct Identity {
  FSVD_INLINE VecF Of(VecF x) { return x; }
};

// x/2 (1 + erf(x / sqrt 2)) with erf(x / sqrt 2) = x P(x^2) / Q(x^2) up to |x| = 5.2 and +-1
// beyond. The coefficients minimise max |x err|/2 (Lawson iteration on the linearised rational
// fit, fit error 3e-7); absolute error in float below 1.5e-6 everywhere, exact tails.
struct Gelu {
  FSVD_INLINE VecF Of(VecF x) {
    const VecF u = x * x;
    VecF p = u * -3.9115847582343064e-08f + 1.3457428382594566e-05f;
    p = p * u + 0.0010337058354586985f;
    p = p * u + 0.013465798026417293f;
    p = p * u + 0.13976344990649753f;
    p = p * u + 0.7978840583999111f;
    VecF q = u * 0.00017522482453630187f + 0.0038485312612186752f;
    q = q * u + 0.04887503326321389f;
    q = q * u + 0.34182053831214365f;
    q = q * u + 1.0f;
    VecF erf = x * p / q;
    erf = x > 5.2f ? Broadcast(1.0f) : erf;
    erf = x < -5.2f ? Broadcast(-1.0f) : erf;
    const VecF half = x * 0.5f;
    return half + half * erf;
  }
};

// x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3): the same as x/2 (1 + tanh u).
struct GeluTanh {
  FSVD_INLINE VecF Of(VecF x) {
    const VecF u = x * (x * x * (0.044715f * 0.7978845608f) + 0.7978845608f);
    return x / (Exp2(u * (-2 * kLog2E)) + 1.0f);
  }
};

struct Relu {
  FSVD_INLINE VecF Of(VecF x) { return x < 0.0f ? VecF{} : x; }
};

struct Silu {
  FSVD_INLINE VecF Of(VecF x) { return x / (Exp2(x * -kLog2E) + 1.0f); }
};

// Calls visit(A{}) for the activation A.
template <class Visit>
FSVD_INLINE void VisitActivation(int activation, Visit visit) {
  switch (activation) {
    case kCpuGelu:
      return visit(Gelu{});
    case kCpuGeluTanh:
      return visit(GeluTanh{});
    case kCpuRelu:
      return visit(Relu{});
    case kCpuSilu:
      return visit(Silu{});
    default:
      return visit(Identity{});
  }
}

}  // namespace flashsvd::FSVD_ISA

#endif  // FLASHSVD_KERNELS_CPU_ISA_ACTIVATION_H_
