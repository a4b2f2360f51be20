#ifndef FLASHSVD_KERNELS_CPU_KERNEL_TABLE_H_
#define FLASHSVD_KERNELS_CPU_KERNEL_TABLE_H_

// Plain data shared by the backend and the files compiled once per instruction set. Those include C
// headers only (an inline std:: function compiled with AVX-512 could be the copy the linker keeps),
// so this header does too.

#include <stddef.h>
#include <stdint.h>

namespace flashsvd {

// A matrix [out, in] packed in panels of 16 outputs, `panel_stride` elements apart:
//   f32   [out/16][in][16]
//   bf16  [out/16][in/32][16 pairs of inputs][16 outputs][2]; the layout AMX wants as well
// zero-padded: outputs to 16, bf16 inputs to 32.
struct PackedMatrix {
  const void* panels;
  int64_t panel_stride;
  int in;
  int out;
};

// y = first x + bias, or y = second (first x) + bias when rank > 0.
struct PackedLinear {
  PackedMatrix first;
  PackedMatrix second;
  const float* bias;  // zero-padded to 16
  int in;
  int out;
  int rank;
};

struct NormTask {
  const float* gamma;
  const float* beta;
  float epsilon;
};

// Activation and pooling values equal those of kernels/backend.h (cpu_backend.cc asserts it).
enum CpuActivation { kCpuNone, kCpuGelu, kCpuGeluTanh, kCpuRelu, kCpuSilu };
enum CpuPooling { kCpuMean, kCpuCls, kCpuLast };

struct ProjectTask {
  const PackedLinear* linear;
  const void* x;
  int64_t x_stride;
  void* y;
  int64_t y_stride;
  int rows;
  int activation;
};

struct ProjectAddNormTask {
  const PackedLinear* linear;
  const void* y;
  int64_t y_stride;
  void* x;
  int64_t x_stride;
  int rows;
  NormTask norm;
};

struct FeedForwardTask {
  const PackedLinear* up;
  const PackedLinear* down;
  void* x;
  int64_t x_stride;
  int rows;
  int activation;
  NormTask norm;
};

// One head of one sequence, queries [query_begin, query_end).
struct AttentionTask {
  const void* q;  // this head's columns of the sequence's first row; likewise k, v, context
  const void* k;
  const void* v;
  int64_t stride;
  void* context;
  int64_t context_stride;
  int length;
  int query_begin;
  int query_end;
  int d_qk;
  int d_v;
  float scale;
};

struct EmbedTask {
  const int32_t* ids;  // of the rows of this task
  const int32_t* type_ids;
  const void* word;
  const void* position;
  const void* type;
  void* x;
  int64_t x_stride;
  int first_position;  // of row 0; the rows are of one sequence
  int rows;
  int d;
  NormTask norm;
};

struct PoolTask {
  const void* x;  // row 0 of the sequence
  int64_t x_stride;
  int length;
  int d;
  int pooling;
  bool normalize;
  float* out;
};

// The kernels of one (instruction set, dtype). Each runs one task on the calling thread with a
// workspace of its *_workspace bytes, aligned to 64; pointers inside the task do not matter to the
// sizes, which never shrink when rows or length grow.
struct KernelTable {
  // Rows of the register tile: blocks of rows are cut at multiples of it.
  int tile_rows;
  size_t (*project_workspace)(const ProjectTask&);
  size_t (*project_add_norm_workspace)(const ProjectAddNormTask&);
  size_t (*feed_forward_workspace)(const FeedForwardTask&);
  size_t (*attention_workspace)(const AttentionTask&);
  void (*project)(const ProjectTask&, void* workspace);
  void (*project_add_norm)(const ProjectAddNormTask&, void* workspace);
  void (*feed_forward)(const FeedForwardTask&, void* workspace);
  void (*attention)(const AttentionTask&, void* workspace);
  void (*embed)(const EmbedTask&);
  void (*pool)(const PoolTask&);
  // out[i] = activation(in[i]); n is a multiple of 16. For tests of the approximations.
  void (*activate)(int activation, const float* in, float* out, int n);
  // Runs `iterations` rounds of the dtype's multiply-accumulate on registers alone; returns the
  // floating-point operations done.
  double (*peak)(int64_t iterations);
};

// One per ISA namespace; defined by isa_kernels.cc.
#define FSVD_DECLARE_ISA(isa)            \
  namespace isa {                        \
  extern const KernelTable kF32Kernels;  \
  extern const KernelTable kBf16Kernels; \
  }
FSVD_DECLARE_ISA(portable)
FSVD_DECLARE_ISA(avx2)
FSVD_DECLARE_ISA(avx512)
FSVD_DECLARE_ISA(avx512_bf16)
#undef FSVD_DECLARE_ISA

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CPU_KERNEL_TABLE_H_
