#ifndef FLASHSVD_KERNELS_CUDA_TILE_POLICY_H_
#define FLASHSVD_KERNELS_CUDA_TILE_POLICY_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace flashsvd {

// The kernels' two families: mma.sync and cp.async (Ampere and newer), TMA and wgmma (Hopper).
enum class KernelPath : uint8_t { kSm80, kSm90 };

// What a choice depends on, read from the device once.
struct DeviceFacts {
  int num_sms = 0;
  int compute_capability = 0;           // 80, 90, ...
  size_t shared_bytes_per_block = 0;    // opt-in limit
  KernelPath path = KernelPath::kSm80;  // the newest family that may be used
};

// y = x W': a block computes `rows` x `cols` of y, `depth` of k at a time through `stages` buffers
// (on Hopper the kernel sets the last two itself).
struct GemmTile {
  KernelPath path = KernelPath::kSm80;
  int rows = 0;
  int cols = 0;
  int depth = 0;
  int stages = 0;
};

// x = LayerNorm(x + y W' + b): a cluster of `cluster` blocks computes `rows` whole rows of x, each
// block `cols` columns of them.
struct AddNormTile {
  int rows = 0;
  int cols = 0;
  int cluster = 0;
};

// The streamed feed-forward: a block, or a cluster of `splits` blocks that share F and add up their
// S, owns `rows` rows; both ranks are padded to at least `rank`. add_norm: the same kernel goes on
// to the sum with the residual and its norm.
struct FeedForwardTile {
  int rows = 0;
  int rank = 0;
  int splits = 1;
  bool add_norm = false;
};

// A block attends with `rows` query rows to all keys of their sequence.
struct AttentionTiling {
  KernelPath path = KernelPath::kSm80;
  int rows = 0;
};

// The choices. Pure functions of their arguments, so that a batch always runs the same kernels.

// y [rows, n] = activation(x [rows, k] W' + b); `activation`: there is one.
GemmTile ChooseGemmTile(const DeviceFacts& device, int64_t rows, int n, int k, bool activation);

// The tile of products y_g [rows, n] = x_g [rows, k] W_g' side by side, in one launch that keeps W
// on chip (LaunchGemmHeldSm90). rows == 0: one after the other they are faster, or do not fit.
GemmTile ChooseHeldGemmTile(const DeviceFacts& device, int64_t rows, int n, int k, int groups);

// Whether x = LayerNorm(x + y W' + b) over d columns has a kernel of its own, for any number of
// rows; else it is a product and a pass over the sum.
bool HasFusedAddNorm(const DeviceFacts& device, int d);
// REQUIRES: HasFusedAddNorm(device, d).
AddNormTile ChooseAddNormTile(const DeviceFacts& device, int64_t rows, int d);

// Whether a factor pair of these ranks is streamed on chip; else the hidden activation of a bounded
// number of rows goes through memory.
bool HasStreamedFeedForward(const DeviceFacts& device, int up_rank, int down_rank);
// `rank`: the larger one; d: the width of x. REQUIRES: HasStreamedFeedForward.
FeedForwardTile ChooseFeedForwardTile(const DeviceFacts& device, int64_t rows, int d, int hidden,
                                      int rank);
// Bytes of FeedForwardParams::exchange for up to `rows` rows, or none.
int64_t FeedForwardExchangeBytes(const DeviceFacts& device, int64_t rows);
// The most rows, up to `rows`, of which S [rows, down rank] goes through memory: more rows may need
// fewer.
int64_t FeedForwardSumRows(const DeviceFacts& device, int64_t rows, int d, int hidden, int rank);

// Query rows of an attention tile, the same for all layers of a batch of `num_tokens` tokens: its
// schedule is written once.
int AttentionTileRows(int num_tokens);
AttentionTiling ChooseAttentionTiling(const DeviceFacts& device, int num_tokens, int d_qk, int d_v);

// Whether attention and the projection and norm behind it are one kernel (LaunchAttentionNormSm90):
// such widths fit, and its row tiles, which are not balanced, take the device no longer than units
// of attention that are. cu_seqlens: [S + 1], on the host.
bool FusesAttentionNorm(const DeviceFacts& device, std::span<const int32_t> cu_seqlens,
                        int num_heads, int d_qk, int d_v, int d);

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_TILE_POLICY_H_
