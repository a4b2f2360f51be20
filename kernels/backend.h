#ifndef FLASHSVD_KERNELS_BACKEND_H_
#define FLASHSVD_KERNELS_BACKEND_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/arena.h"
#include "kernels/tensor.h"

namespace flashsvd {

enum class Activation : uint8_t {
  kNone,
  kGelu,      // x/2 (1 + erf(x / sqrt 2))
  kGeluTanh,  // the tanh approximation
  kRelu,
  kSilu,
};

// A linear map in host memory, float32, borrowed for the call: dense when rank == 0, a factor pair
// y = B (A x) + bias otherwise.
struct LinearSource {
  int in = 0;
  int out = 0;
  int rank = 0;
  const float* weight = nullptr;  // [out, in]   rank == 0
  const float* a = nullptr;       // [rank, in]  rank > 0
  const float* b = nullptr;       // [out, rank] rank > 0
  const float* bias = nullptr;    // [out], or null for zero
};

// A linear map as a backend packed it. Immutable, shared by all slots, usable only with the
// backend that made it, which must outlive it.
class Linear {
 public:
  virtual ~Linear() = default;
  int in() const { return in_; }
  int out() const { return out_; }
  int rank() const { return rank_; }  // 0: dense
  size_t bytes() const { return bytes_; }

 protected:
  Linear(int in, int out, int rank, size_t bytes)
      : in_(in), out_(out), rank_(rank), bytes_(bytes) {}

 private:
  int in_, out_, rank_;
  size_t bytes_;
};

// LayerNorm over d columns: y = (x - mean) / sqrt(var + epsilon) * gamma + beta; float32
// statistics. gamma and beta are float32 [d] in backend memory.
struct LayerNormParams {
  const float* gamma = nullptr;
  const float* beta = nullptr;
  float epsilon = 0;
};

// A packed batch: sequences back to back, no padding. Sequence s is tokens
// [cu_seqlens[s], cu_seqlens[s+1]), cu_seqlens[0] == 0.
struct RaggedBatch {
  const int32_t* ids = nullptr;              // [T] backend memory
  const int32_t* type_ids = nullptr;         // [T] backend memory
  const int32_t* cu_seqlens = nullptr;       // [S+1] backend memory
  const int32_t* host_cu_seqlens = nullptr;  // [S+1] host memory
  int num_tokens = 0;
  int num_sequences = 0;
  int max_seqlen = 0;
};

// x[t] = LayerNorm(word[id_t] + position[t - start of its sequence] + type[type_t])
struct EmbedArgs {
  RaggedBatch batch;
  const void* word = nullptr;      // [vocab, d], backend dtype
  const void* position = nullptr;  // [max positions, d], backend dtype
  const void* type = nullptr;      // [types, d], backend dtype
  LayerNormParams norm;
  Rows x;  // [T, d] out
};

// y = activation(W x + b). A factor pair keeps its [T, r] middle on chip.
struct ProjectArgs {
  const Linear* linear = nullptr;
  Rows x;  // [n, in]
  Rows y;  // [n, out] out; may be a column slice of a wider matrix. Must not overlap x.
  Activation activation = Activation::kNone;
};

// Softmax attention inside each sequence, over rows already projected:
//   o[t, head] = sum_u softmax_u(scale * q[t, head] . k[u, head]) v[u, head]
// Rank-space attention (design.md 2.1) is d_qk = R_k, d_v = R_v with scale still 1/sqrt(h).
struct AttentionArgs {
  // Columns of qkv: Q [H, d_qk], then K [H, d_qk], then V [H, d_v].
  Rows qkv;      // [C, H (2 d_qk + d_v)]
  Rows context;  // [C, H d_v] out
  // Whole sequences: [num_sequences + 1] token offsets, of which the first is qkv's row 0.
  const int32_t* cu_seqlens = nullptr;       // backend memory
  const int32_t* host_cu_seqlens = nullptr;  // host memory
  int num_sequences = 0;
  int max_seqlen = 0;
  int num_heads = 0;
  int d_qk = 0;
  int d_v = 0;
  float scale = 0;
};

// x = LayerNorm(x + W y + b): output projection, residual and norm in one pass.
struct ProjectAddNormArgs {
  const Linear* linear = nullptr;
  Rows y;  // [n, in]
  Rows x;  // [n, out] in, out
  LayerNormParams norm;
};

// x = LayerNorm(x + down(activation(up(x)))), streamed over tiles of F: the [n, F] activation never
// exists (design.md 2.3). up and down may each be dense or a factor pair.
struct FeedForwardArgs {
  const Linear* up = nullptr;    // d -> F
  const Linear* down = nullptr;  // F -> d
  Activation activation = Activation::kGelu;
  Rows x;  // [n, d] in, out
  LayerNormParams norm;
};

enum class Pooling : uint8_t { kMean, kCls, kLast };

// out[s] = pool of the rows of sequence s; then, if normalize, divided by max(its L2 norm, 1e-12).
// An empty sequence pools to zero.
struct PoolArgs {
  RaggedBatch batch;
  Rows x;  // [T, d]
  Pooling pooling = Pooling::kMean;
  bool normalize = false;
  float* out = nullptr;  // [S, d] float32, rows d apart, backend memory
};

// The fused operations an encoder is made of, over one device and one dtype of weights and
// activations. Accumulation, softmax and LayerNorm statistics are float32 or better.
//
// Results depend on a sequence's own tokens alone: batch composition and row blocking change
// nothing.
//
// Thread-safety: all methods are const and may be called from several slots at once; each call gets
// its own Scratch. Operations of one slot are ordered; on an asynchronous device they are enqueued
// and Synchronize waits for them. No operation allocates.
// Errors: shapes that a caller can get wrong are FSVD_CHECKed; a Status reports device failures.
class Backend {
 public:
  virtual ~Backend() = default;

  // Such as "cpu/avx512_bf16"; for logs and metrics.
  virtual std::string_view name() const = 0;
  virtual DType dtype() const = 0;
  virtual int num_threads() const = 0;

  // Load time. Each copies; the source may go. `values` are host float32.
  virtual absl::StatusOr<std::unique_ptr<Linear>> PackLinear(const LinearSource& source) const = 0;
  virtual absl::StatusOr<Buffer> Upload(const float* values, size_t count, DType as) const = 0;
  // Zero-filled, aligned to kArenaAlignment.
  virtual absl::StatusOr<Buffer> Allocate(size_t bytes) const = 0;

  // Bytes of Scratch that the operation needs for these shapes; data pointers are ignored. Never
  // shrinks when rows, sequences or max_seqlen grow.
  virtual size_t ScratchBytes(const ProjectArgs& args) const = 0;
  virtual size_t ScratchBytes(const AttentionArgs& args) const = 0;
  virtual size_t ScratchBytes(const ProjectAddNormArgs& args) const = 0;
  virtual size_t ScratchBytes(const FeedForwardArgs& args) const = 0;

  virtual absl::Status Embed(const EmbedArgs& args) const = 0;
  virtual absl::Status Project(const ProjectArgs& args, Scratch scratch) const = 0;
  virtual absl::Status Attention(const AttentionArgs& args, Scratch scratch) const = 0;
  virtual absl::Status ProjectAddNorm(const ProjectAddNormArgs& args, Scratch scratch) const = 0;
  virtual absl::Status FeedForward(const FeedForwardArgs& args, Scratch scratch) const = 0;
  virtual absl::Status Pool(const PoolArgs& args) const = 0;

  virtual absl::Status Synchronize() const = 0;

  // Device allocations so far. Only the load-time methods make any, so the count stands still while
  // serving.
  int64_t num_allocations() const { return num_allocations_.load(std::memory_order_relaxed); }

 protected:
  void CountAllocation() const { num_allocations_.fetch_add(1, std::memory_order_relaxed); }

 private:
  mutable std::atomic<int64_t> num_allocations_{0};
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_BACKEND_H_
