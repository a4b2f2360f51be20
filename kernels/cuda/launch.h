#ifndef FLASHSVD_KERNELS_CUDA_LAUNCH_H_
#define FLASHSVD_KERNELS_CUDA_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/packed_matrix.h"
#include "kernels/cuda/tile_policy.h"
#include "kernels/tensor.h"

// Launchers of the device kernels: plain pointers and sizes in, one launch enqueued on `stream`,
// the launch's error out. What to launch is decided elsewhere (tile_policy.h, cuda_backend.cc).
//
// REQUIRES, throughout: dtype is kF16 or kBF16; Rows start at a 16-byte aligned address with a
// stride that is a multiple of 8 elements. Elements between cols and stride are neither read into
// results nor written. Rows of weights and bias may be read up to their padding.
// Every kernel waits for its predecessor in the stream (griddepcontrol.wait) before it touches
// activations, so that all may be launched with programmatic stream serialization. (Of rows that
// its parameters call settled, before it writes activations.) GemmAddNormSm90 lets its successor
// start only behind that wait, which is what LastWrite rests on.

namespace flashsvd {

// y = activation(x W' + bias)
//   x: [n, k]   w: [m, k]   bias: float32 [m_padded] or null   y: [n, m]
struct GemmParams {
  Rows x;
  PackedMatrix w;
  const float* bias = nullptr;
  Activation activation = Activation::kNone;
  Rows y;
  bool x_settled = false;  // LastWrite: x may be read before the kernel ahead is done
};
cudaError_t LaunchGemmSm80(const GemmParams& params, DType dtype, const GemmTile& tile,
                           cudaStream_t stream);
cudaError_t LaunchGemmSm90(const GemmParams& params, DType dtype, const GemmTile& tile,
                           cudaStream_t stream);

// y_g = x_g W_g' + bias_g for groups of one shape in one launch, of small k: a block keeps its
// columns of W on chip.
//   x: [n, groups * x_step], of which group g reads k columns from g * x_step on
//   w[g]: [m, k]   bias[g]: float32 [m_padded] or null   y: [n, groups * m]
constexpr int kMaxGemmGroups = 3;
struct GemmGroupsParams {
  Rows x;
  int groups = 1;
  int x_step = 0;
  PackedMatrix w[kMaxGemmGroups];
  const float* bias[kMaxGemmGroups] = {};
  Rows y;
};
cudaError_t LaunchGemmHeldSm90(const GemmGroupsParams& params, DType dtype, const GemmTile& tile,
                               cudaStream_t stream);

// x = LayerNorm(x + y W' + bias), in one kernel: the sum stays on chip in float32.
//   y: [n, k]   w: [d, k]   x: [n, d] in, out
struct GemmAddNormParams {
  Rows y;
  PackedMatrix w;
  const float* bias = nullptr;
  Rows x;
  LayerNormParams norm;
};
cudaError_t LaunchGemmAddNormSm90(const GemmAddNormParams& params, DType dtype,
                                  const AddNormTile& tile, cudaStream_t stream);

// x = LayerNorm(x + y)
//   y: [n, d]   x: [n, d] in, out
struct AddNormParams {
  Rows y;
  Rows x;
  LayerNormParams norm;
};
cudaError_t LaunchAddNorm(const AddNormParams& params, DType dtype, cudaStream_t stream);

// s = activation((x A1') B1' + bias) A2', streamed over tiles of F: neither x A1' nor the [n, F]
// activation leaves the chip (design.md 2.3).
//   x: [n, d]   a1: [r1, d]   b1: [F, r1]   bias: float32 [F_padded] or null   a2: [r2, F]
//   s: [n, r2] out
// With b2 the sum with the residual and its norm follow in the same kernel, and s stays on chip:
//   x = LayerNorm(x + s b2' + b2_bias)
//   x: in, out   b2: [d, r2]   b2_bias: float32 [d_padded] or null   s: not used
struct FeedForwardParams {
  Rows x;
  PackedMatrix a1;
  PackedMatrix b1;
  const float* bias = nullptr;
  PackedMatrix a2;
  Activation activation = Activation::kGelu;
  Rows s;
  PackedMatrix b2;  // b2.data null: s is the result
  const float* b2_bias = nullptr;
  LayerNormParams norm;
  // With tiles of fewer than 128 rows that take the norm along: FeedForwardExchangeBytes, 16-byte
  // aligned, through which the blocks of a cluster send each other P and S.
  void* exchange = nullptr;
};
cudaError_t LaunchFeedForwardSm90(const FeedForwardParams& params, DType dtype,
                                  const FeedForwardTile& tile, cudaStream_t stream);

// One block of query rows of one sequence.
struct AttentionTile {
  int32_t first_row = 0;  // of the sequence, in qkv and context
  int32_t seqlen = 0;
  int32_t query = 0;  // first query row of the tile, within the sequence: a multiple of tile.rows
  int32_t reserved = 0;
};
// What a launch works through: written by the host with the batch (WriteAttentionSchedule), read by
// the kernel. num_tiles may be anything up to max_tiles of the launch, which sizes the grid.
struct AttentionSchedule {
  int32_t num_tiles = 0;
  int32_t reserved[3] = {};
  // Followed by num_tiles AttentionTile, those of a sequence next to each other and ascending.
};

// o[t, head] = sum_u softmax_u(scale * q[t, head] . k[u, head]) v[u, head] within each sequence.
//   qkv: [n, H (2 d_qk + d_v)], columns Q [H, d_qk], K [H, d_qk], V [H, d_v]   context: [n, H d_v]
// context may be the first columns of qkv itself when d_v == d_qk: a tile's Q is read before its
// context is written, and by no other tile.
// Rows of other sequences have no influence, whatever they contain.
// REQUIRES: d_qk and d_v are multiples of 8, at most 256; scale > 0; max_tiles tiles of the
// schedule are readable.
struct AttentionParams {
  Rows qkv;
  Rows context;
  const void* schedule = nullptr;  // device memory: AttentionSchedule and its tiles
  int max_tiles = 0;
  int num_heads = 0;
  int d_qk = 0;
  int d_v = 0;
  float scale = 0;
};
cudaError_t LaunchAttentionSm80(const AttentionParams& params, DType dtype,
                                const AttentionTiling& tile, cudaStream_t stream);
cudaError_t LaunchAttentionSm90(const AttentionParams& params, DType dtype,
                                const AttentionTiling& tile, cudaStream_t stream);

// Whole units of 16 bytes, from or to page-locked host memory; both sides aligned to 16.
cudaError_t LaunchCopy(void* to, const void* from, size_t bytes, cudaStream_t stream);

// x[t] = LayerNorm(word[id_t] + position[p_t] + type[type_t]); tables [*, d] contiguous.
struct EmbedParams {
  const int32_t* ids = nullptr;        // [n]
  const int32_t* type_ids = nullptr;   // [n]
  const int32_t* positions = nullptr;  // [n]
  const void* word = nullptr;
  const void* position = nullptr;
  const void* type = nullptr;
  LayerNormParams norm;
  Rows x;  // [n, d]
};
cudaError_t LaunchEmbed(const EmbedParams& params, DType dtype, cudaStream_t stream);

// As PoolArgs: out[s] float32 [d], rows d apart.
struct PoolParams {
  Rows x;
  const int32_t* cu_seqlens = nullptr;  // [S + 1], from row 0 of x
  int num_sequences = 0;
  const int32_t* num_present =
      nullptr;  // device memory, or null: rows from there on stay as they are
  Pooling pooling = Pooling::kMean;
  bool normalize = false;
  float* out = nullptr;
};
cudaError_t LaunchPool(const PoolParams& params, DType dtype, cudaStream_t stream);

// x = LayerNorm(x + context W' + bias) with the context that LaunchAttentionSm90 makes, in one
// kernel: neither the context nor the sum leaves the chip. Rows of x that belong to no sequence are
// left as they are or hold anything.
struct AttentionNormParams {
  AttentionParams
      attention;             // context is not used; tiles of the schedule may have any rows from 64
  GemmAddNormParams output;  // y is not used
};
cudaError_t LaunchAttentionNormSm90(const AttentionNormParams& params, DType dtype,
                                    cudaStream_t stream);

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_LAUNCH_H_
