#ifndef FLASHSVD_KERNELS_CUDA_WGMMA_CUH_
#define FLASHSVD_KERNELS_CUDA_WGMMA_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace flashsvd {

// Hopper's warpgroup matrix product, D [64, N] += A [64, 16] B [16, N] with float32 D, as plain
// functions of one instruction each (PTX ISA, "wgmma.mma_async"). Thread t of the warpgroup, warp
// w = t / 32, lane l = t % 32, holds of D:
//   d[4 j + 2 i + c] = D[16 w + 8 i + l / 4][8 j + 2 (l % 4) + c],  i, c in {0, 1}
// and of an A in registers the four words
//   a[i + 2 j] = A[16 w + 8 i + l / 4][8 j + 2 (l % 4) + {0, 1}]
// so a D converted to pairs of 16 bits, columns 16 k to 16 k + 15, is the A of k-step k.

// A matrix in shared memory without swizzle: 8 x 16-byte core matrices, each contiguous.
// For a K-major operand (A [rows, k], B [n, k]): `leading` is the distance in bytes of neighbouring
// core matrices along k, `stride` along rows. For MN-major B (k rows of n): leading along k,
// stride along n.
__device__ __forceinline__ uint64_t CoreMatrixDescriptor(const void* shared, int leading,
                                                         int stride) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{static_cast<uint32_t>(leading) >> 4} << 16 |
         uint64_t{static_cast<uint32_t>(stride) >> 4} << 32;
}

// A K-major operand of rows of 64 elements (128 bytes) in TMA's 128-byte swizzle; shared is
// 1024-byte aligned. The next 16 columns are 32 bytes on: add 2 to the descriptor.
__device__ __forceinline__ uint64_t Swizzle128Descriptor(const void* shared) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}

// The descriptor `bytes` further on; a multiple of 16.
__device__ __forceinline__ uint64_t Advance(uint64_t descriptor, int bytes) {
  return descriptor + (static_cast<uint32_t>(bytes) >> 4);
}

// Registers and shared memory written before are seen by the products that follow.
__device__ __forceinline__ void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of an accumulator across a wait.
template <int kCount>
__device__ __forceinline__ void PinRegisters(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Shared(d, a, b, accumulate):    A and B from shared memory; accumulate == 0 overwrites d.
// Registers(d, a, b, accumulate): A from registers.
// kTransposeB: B is MN-major.
template <class T, int kN, int kTransposeB = 0>
struct Wgmma;

// clang-format off
#define FSVD_S1 "%0,%1,%2,%3"
#define FSVD_S2 FSVD_S1 ",%4,%5,%6,%7"
#define FSVD_S3 FSVD_S2 ",%8,%9,%10,%11"
#define FSVD_S4 FSVD_S3 ",%12,%13,%14,%15"
#define FSVD_S5 FSVD_S4 ",%16,%17,%18,%19"
#define FSVD_S6 FSVD_S5 ",%20,%21,%22,%23"
#define FSVD_S7 FSVD_S6 ",%24,%25,%26,%27"
#define FSVD_S8 FSVD_S7 ",%28,%29,%30,%31"
#define FSVD_S9 FSVD_S8 ",%32,%33,%34,%35"
#define FSVD_S10 FSVD_S9 ",%36,%37,%38,%39"
#define FSVD_S11 FSVD_S10 ",%40,%41,%42,%43"
#define FSVD_S12 FSVD_S11 ",%44,%45,%46,%47"
#define FSVD_S13 FSVD_S12 ",%48,%49,%50,%51"
#define FSVD_S14 FSVD_S13 ",%52,%53,%54,%55"
#define FSVD_S15 FSVD_S14 ",%56,%57,%58,%59"
#define FSVD_S16 FSVD_S15 ",%60,%61,%62,%63"
#define FSVD_S17 FSVD_S16 ",%64,%65,%66,%67"
#define FSVD_S18 FSVD_S17 ",%68,%69,%70,%71"
#define FSVD_S19 FSVD_S18 ",%72,%73,%74,%75"
#define FSVD_S20 FSVD_S19 ",%76,%77,%78,%79"
#define FSVD_S21 FSVD_S20 ",%80,%81,%82,%83"
#define FSVD_S22 FSVD_S21 ",%84,%85,%86,%87"
#define FSVD_S23 FSVD_S22 ",%88,%89,%90,%91"
#define FSVD_S24 FSVD_S23 ",%92,%93,%94,%95"
#define FSVD_S25 FSVD_S24 ",%96,%97,%98,%99"
#define FSVD_S26 FSVD_S25 ",%100,%101,%102,%103"
#define FSVD_S27 FSVD_S26 ",%104,%105,%106,%107"
#define FSVD_S28 FSVD_S27 ",%108,%109,%110,%111"
#define FSVD_S29 FSVD_S28 ",%112,%113,%114,%115"
#define FSVD_S30 FSVD_S29 ",%116,%117,%118,%119"
#define FSVD_S31 FSVD_S30 ",%120,%121,%122,%123"
#define FSVD_S32 FSVD_S31 ",%124,%125,%126,%127"
#define FSVD_D1 "+f"(d[0]),"+f"(d[1]),"+f"(d[2]),"+f"(d[3])
#define FSVD_D2 FSVD_D1,"+f"(d[4]),"+f"(d[5]),"+f"(d[6]),"+f"(d[7])
#define FSVD_D3 FSVD_D2,"+f"(d[8]),"+f"(d[9]),"+f"(d[10]),"+f"(d[11])
#define FSVD_D4 FSVD_D3,"+f"(d[12]),"+f"(d[13]),"+f"(d[14]),"+f"(d[15])
#define FSVD_D5 FSVD_D4,"+f"(d[16]),"+f"(d[17]),"+f"(d[18]),"+f"(d[19])
#define FSVD_D6 FSVD_D5,"+f"(d[20]),"+f"(d[21]),"+f"(d[22]),"+f"(d[23])
#define FSVD_D7 FSVD_D6,"+f"(d[24]),"+f"(d[25]),"+f"(d[26]),"+f"(d[27])
#define FSVD_D8 FSVD_D7,"+f"(d[28]),"+f"(d[29]),"+f"(d[30]),"+f"(d[31])
#define FSVD_D9 FSVD_D8,"+f"(d[32]),"+f"(d[33]),"+f"(d[34]),"+f"(d[35])
#define FSVD_D10 FSVD_D9,"+f"(d[36]),"+f"(d[37]),"+f"(d[38]),"+f"(d[39])
#define FSVD_D11 FSVD_D10,"+f"(d[40]),"+f"(d[41]),"+f"(d[42]),"+f"(d[43])
#define FSVD_D12 FSVD_D11,"+f"(d[44]),"+f"(d[45]),"+f"(d[46]),"+f"(d[47])
#define FSVD_D13 FSVD_D12,"+f"(d[48]),"+f"(d[49]),"+f"(d[50]),"+f"(d[51])
#define FSVD_D14 FSVD_D13,"+f"(d[52]),"+f"(d[53]),"+f"(d[54]),"+f"(d[55])
#define FSVD_D15 FSVD_D14,"+f"(d[56]),"+f"(d[57]),"+f"(d[58]),"+f"(d[59])
#define FSVD_D16 FSVD_D15,"+f"(d[60]),"+f"(d[61]),"+f"(d[62]),"+f"(d[63])
#define FSVD_D17 FSVD_D16,"+f"(d[64]),"+f"(d[65]),"+f"(d[66]),"+f"(d[67])
#define FSVD_D18 FSVD_D17,"+f"(d[68]),"+f"(d[69]),"+f"(d[70]),"+f"(d[71])
#define FSVD_D19 FSVD_D18,"+f"(d[72]),"+f"(d[73]),"+f"(d[74]),"+f"(d[75])
#define FSVD_D20 FSVD_D19,"+f"(d[76]),"+f"(d[77]),"+f"(d[78]),"+f"(d[79])
#define FSVD_D21 FSVD_D20,"+f"(d[80]),"+f"(d[81]),"+f"(d[82]),"+f"(d[83])
#define FSVD_D22 FSVD_D21,"+f"(d[84]),"+f"(d[85]),"+f"(d[86]),"+f"(d[87])
#define FSVD_D23 FSVD_D22,"+f"(d[88]),"+f"(d[89]),"+f"(d[90]),"+f"(d[91])
#define FSVD_D24 FSVD_D23,"+f"(d[92]),"+f"(d[93]),"+f"(d[94]),"+f"(d[95])
#define FSVD_D25 FSVD_D24,"+f"(d[96]),"+f"(d[97]),"+f"(d[98]),"+f"(d[99])
#define FSVD_D26 FSVD_D25,"+f"(d[100]),"+f"(d[101]),"+f"(d[102]),"+f"(d[103])
#define FSVD_D27 FSVD_D26,"+f"(d[104]),"+f"(d[105]),"+f"(d[106]),"+f"(d[107])
#define FSVD_D28 FSVD_D27,"+f"(d[108]),"+f"(d[109]),"+f"(d[110]),"+f"(d[111])
#define FSVD_D29 FSVD_D28,"+f"(d[112]),"+f"(d[113]),"+f"(d[114]),"+f"(d[115])
#define FSVD_D30 FSVD_D29,"+f"(d[116]),"+f"(d[117]),"+f"(d[118]),"+f"(d[119])
#define FSVD_D31 FSVD_D30,"+f"(d[120]),"+f"(d[121]),"+f"(d[122]),"+f"(d[123])
#define FSVD_D32 FSVD_D31,"+f"(d[124]),"+f"(d[125]),"+f"(d[126]),"+f"(d[127])
#define FSVD_WGMMA_SHARED(N, Q, TYPE, A, B, P, TB)                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n"                              \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" FSVD_S##Q \
               "}, %" #A ", %" #B ", p, 1, 1, 0, %" #TB ";\n}\n"                             \
               : FSVD_D##Q                                                                \
               : "l"(a), "l"(b), "r"(accumulate), "n"(kTransposeB))
#define FSVD_WGMMA_REGISTERS(N, Q, TYPE, A0, A1, A2, A3, B, P, TB)                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n"                              \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" FSVD_S##Q \
               "}, {%" #A0 ",%" #A1 ",%" #A2 ",%" #A3 "}, %" #B ", p, 1, 1, %" #TB ";\n}\n"   \
               : FSVD_D##Q                                                                \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),     \
                 "n"(kTransposeB))
#define FSVD_WGMMA(N, Q, I0, I1, I2, I3, I4, I5, I6)                                      \
  template <class T, int kTransposeB>                                                     \
  struct Wgmma<T, N, kTransposeB> {                                                       \
    static __device__ __forceinline__ void Shared(float (&d)[N / 2], uint64_t a, uint64_t b, \
                                                  int accumulate = 1) {                   \
      if constexpr (std::is_same_v<T, __half>) {                                          \
        FSVD_WGMMA_SHARED(N, Q, "f16", I0, I1, I2, I3);                                   \
      } else {                                                                            \
        FSVD_WGMMA_SHARED(N, Q, "bf16", I0, I1, I2, I3);                                  \
      }                                                                                   \
    }                                                                                     \
    static __device__ __forceinline__ void Registers(float (&d)[N / 2], const uint32_t* a, \
                                                     uint64_t b, int accumulate = 1) {    \
      if constexpr (std::is_same_v<T, __half>) {                                          \
        FSVD_WGMMA_REGISTERS(N, Q, "f16", I0, I1, I2, I3, I4, I5, I6);                    \
      } else {                                                                            \
        FSVD_WGMMA_REGISTERS(N, Q, "bf16", I0, I1, I2, I3, I4, I5, I6);                   \
      }                                                                                   \
    }                                                                                     \
  };
FSVD_WGMMA(8, 1, 4, 5, 6, 7, 8, 9, 10)
FSVD_WGMMA(16, 2, 8, 9, 10, 11, 12, 13, 14)
FSVD_WGMMA(24, 3, 12, 13, 14, 15, 16, 17, 18)
FSVD_WGMMA(32, 4, 16, 17, 18, 19, 20, 21, 22)
FSVD_WGMMA(40, 5, 20, 21, 22, 23, 24, 25, 26)
FSVD_WGMMA(48, 6, 24, 25, 26, 27, 28, 29, 30)
FSVD_WGMMA(56, 7, 28, 29, 30, 31, 32, 33, 34)
FSVD_WGMMA(64, 8, 32, 33, 34, 35, 36, 37, 38)
FSVD_WGMMA(72, 9, 36, 37, 38, 39, 40, 41, 42)
FSVD_WGMMA(80, 10, 40, 41, 42, 43, 44, 45, 46)
FSVD_WGMMA(88, 11, 44, 45, 46, 47, 48, 49, 50)
FSVD_WGMMA(96, 12, 48, 49, 50, 51, 52, 53, 54)
FSVD_WGMMA(104, 13, 52, 53, 54, 55, 56, 57, 58)
FSVD_WGMMA(112, 14, 56, 57, 58, 59, 60, 61, 62)
FSVD_WGMMA(120, 15, 60, 61, 62, 63, 64, 65, 66)
FSVD_WGMMA(128, 16, 64, 65, 66, 67, 68, 69, 70)
FSVD_WGMMA(136, 17, 68, 69, 70, 71, 72, 73, 74)
FSVD_WGMMA(144, 18, 72, 73, 74, 75, 76, 77, 78)
FSVD_WGMMA(152, 19, 76, 77, 78, 79, 80, 81, 82)
FSVD_WGMMA(160, 20, 80, 81, 82, 83, 84, 85, 86)
FSVD_WGMMA(168, 21, 84, 85, 86, 87, 88, 89, 90)
FSVD_WGMMA(176, 22, 88, 89, 90, 91, 92, 93, 94)
FSVD_WGMMA(184, 23, 92, 93, 94, 95, 96, 97, 98)
FSVD_WGMMA(192, 24, 96, 97, 98, 99, 100, 101, 102)
FSVD_WGMMA(200, 25, 100, 101, 102, 103, 104, 105, 106)
FSVD_WGMMA(208, 26, 104, 105, 106, 107, 108, 109, 110)
FSVD_WGMMA(216, 27, 108, 109, 110, 111, 112, 113, 114)
FSVD_WGMMA(224, 28, 112, 113, 114, 115, 116, 117, 118)
FSVD_WGMMA(232, 29, 116, 117, 118, 119, 120, 121, 122)
FSVD_WGMMA(240, 30, 120, 121, 122, 123, 124, 125, 126)
FSVD_WGMMA(248, 31, 124, 125, 126, 127, 128, 129, 130)
FSVD_WGMMA(256, 32, 128, 129, 130, 131, 132, 133, 134)
// clang-format on
#undef FSVD_WGMMA
#undef FSVD_WGMMA_REGISTERS
#undef FSVD_WGMMA_SHARED

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_WGMMA_CUH_
