#ifndef FLASHSVD_KERNELS_BACKEND_H_
#define FLASHSVD_KERNELS_BACKEND_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>

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
// y = B (A x) + bias otherwise; or, groups > 1, as many pairs of one size that read the same x:
// group g gives out / groups of the outputs from rank rows of a.
struct LinearSource {
  int in = 0;
  int out = 0;
  int rank = 0;                   // of a pair
  int groups = 1;                 // divides out; 1 when rank == 0
  const float* weight = nullptr;  // [out, in]            rank == 0
  const float* a = nullptr;       // [groups * rank, in]  rank > 0
  const float* b = nullptr;       // [out, rank]          rank > 0
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
  int groups() const { return groups_; }
  int64_t parameters() const {
    return rank_ == 0 ? int64_t{in_} * out_ : int64_t{rank_} * (int64_t{groups_} * in_ + out_);
  }
  size_t bytes() const { return bytes_; }

 protected:
  Linear(int in, int out, int rank, int groups, size_t bytes)
      : in_(in), out_(out), rank_(rank), groups_(groups), bytes_(bytes) {}

 private:
  int in_, out_, rank_, groups_;
  size_t bytes_;
};

// LayerNorm over d columns: y = (x - mean) / sqrt(var + epsilon) * gamma + beta; float32
// statistics. gamma and beta are float32 [d] in backend memory.
struct LayerNormParams {
  const float* gamma = nullptr;
  const float* beta = nullptr;
  float epsilon = 0;
};

// An in-order queue of operations and copies on the device: that of one execution slot. Used by one
// thread at a time; must not outlive its backend.
class Stream {
 public:
  virtual ~Stream() = default;
};

// A recorded sequence of operations with their arguments; replayed at the cost of one launch.
class Graph {
 public:
  virtual ~Graph() = default;
};

// Memory with a side for the host and a side for the device, for what goes in and comes out. Where
// both are one, copying between them does nothing.
class Staging {
 public:
  Staging() = default;
  Staging(Buffer host, Buffer device) : host_(std::move(host)), device_(std::move(device)) {}

  void* host() const { return host_.data(); }
  void* device() const { return device_.data() != nullptr ? device_.data() : host_.data(); }
  size_t bytes() const { return host_.bytes(); }

 private:
  Buffer host_;
  Buffer device_;  // empty: host_ serves as both
};

// A packed batch: sequences back to back, no padding. Sequence s is tokens
// [cu_seqlens[s], cu_seqlens[s+1]), cu_seqlens[0] == 0. Tokens after the last sequence belong to
// none: a recorded batch (Backend::Record) has room for more tokens than it is replayed with.
struct RaggedBatch {
  const int32_t* ids = nullptr;              // [T] backend memory
  const int32_t* type_ids = nullptr;         // [T] backend memory
  const int32_t* positions = nullptr;        // [T] backend memory: of each token in its sequence
  const int32_t* cu_seqlens = nullptr;       // [S+1] backend memory
  const int32_t* host_cu_seqlens = nullptr;  // [S+1] host memory
  // Backend memory: how many of the num_sequences there are; those behind are empty and need not be
  // pooled. Null: all. So a recorded batch does not pool what its replay does not have.
  const int32_t* num_present = nullptr;
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

// y = activation(W x + b). A factor pair keeps its [T, r] middle on chip. The only operation that
// takes a linear map of several groups.
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
  Rows context;  // [C, H d_v] out; see Backend::context_may_replace_query
  // Whole sequences: [num_sequences + 1] token offsets in host memory, of which the first is qkv's
  // row 0.
  const int32_t* host_cu_seqlens = nullptr;
  // What Backend::WriteAttentionSchedule wrote for these sequences; backend memory.
  const void* schedule = nullptr;
  int num_sequences = 0;
  int max_seqlen = 0;
  int num_heads = 0;
  int d_qk = 0;
  int d_v = 0;
  float scale = 0;  // > 0
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
  float* out = nullptr;  // [S, d] float32, rows d apart: backend memory or of AllocateOutput
};

// The fused operations an encoder is made of, over one device and one dtype of weights and
// activations. Accumulation, softmax and LayerNorm statistics are float32 or better.
//
// Results depend on a sequence's own tokens alone. On the CPU not even the rounding depends on the
// rest of the batch; a GPU may split a sum differently for another number of rows. The same batch
// always gives the same bits.
//
// Thread-safety: all methods are const and may be called from several slots at once; each call gets
// its own Scratch and its slot's Stream. Operations of one stream run in order; on an asynchronous
// device they are enqueued and Synchronize waits for them. No operation allocates.
// Errors: shapes that a caller can get wrong are FSVD_CHECKed; a Status reports device failures.
class Backend {
 public:
  virtual ~Backend() = default;

  // Such as "cpu/avx512_bf16" or "cuda:0/sm90"; for logs and metrics.
  virtual std::string_view name() const = 0;
  virtual DType dtype() const = 0;
  virtual int num_threads() const = 0;

  // Strides of Rows, d_qk and d_v must be multiples of this many elements; Rows start at multiples
  // of as many, except the y of Project, which may be any slice of columns.
  virtual int width_multiple() const { return 1; }
  // The stride, a multiple of width_multiple(), at which rows of `cols` elements are best laid out.
  virtual int64_t RowStride(int64_t cols) const { return cols; }
  // Tokens of an attention chunk that use the device well without taking much memory.
  virtual int chunk_tokens() const { return 2048; }
  // Whether backend memory is host memory, so that both sides of a Staging are one.
  virtual bool shares_host_memory() const { return true; }
  // Attention may write its context over the Q columns of qkv when d_v == d_qk.
  virtual bool context_may_replace_query() const { return false; }

  // Load time. Each copies; the source may go. `values` are host float32.
  virtual absl::StatusOr<std::unique_ptr<Linear>> PackLinear(const LinearSource& source) const = 0;
  virtual absl::StatusOr<Buffer> Upload(const float* values, size_t count, DType as) const = 0;
  // Zero-filled, aligned to kArenaAlignment. ResourceExhausted: how much was asked for and, where
  // the device tells, how much is free.
  virtual absl::StatusOr<Buffer> Allocate(size_t bytes) const = 0;
  virtual absl::StatusOr<Staging> AllocateStaging(size_t bytes) const;
  // One memory that operations may write and, after Synchronize, the host reads: for small results.
  virtual absl::StatusOr<Staging> AllocateOutput(size_t bytes) const;
  virtual absl::StatusOr<std::unique_ptr<Stream>> MakeStream() const;

  // Bytes of Scratch that the operation needs for these shapes; data pointers are ignored. Never
  // shrinks when rows, sequences or max_seqlen grow.
  virtual size_t ScratchBytes(const ProjectArgs& args) const = 0;
  virtual size_t ScratchBytes(const AttentionArgs& args) const = 0;
  virtual size_t ScratchBytes(const ProjectAddNormArgs& args) const = 0;
  virtual size_t ScratchBytes(const FeedForwardArgs& args) const = 0;

  // Attention's view of a batch, written by the host into staging memory. `num_tokens` and
  // `num_sequences` of the first are upper bounds; the second gets the rows of `qkv` as
  // `num_tokens`, and the offsets of AttentionArgs::host_cu_seqlens.
  virtual size_t AttentionScheduleBytes(int /*num_tokens*/, int /*num_sequences*/) const {
    return 0;
  }
  virtual void WriteAttentionSchedule(const int32_t* /*cu_seqlens*/, int /*num_sequences*/,
                                      int /*num_tokens*/, void* /*host*/) const {}

  // Copies a range of bytes between the two sides of `staging`.
  virtual absl::Status CopyToDevice(const Staging& staging, size_t offset, size_t bytes,
                                    Stream& stream) const;
  virtual absl::Status CopyToHost(const Staging& staging, size_t offset, size_t bytes,
                                  Stream& stream) const;

  virtual absl::Status Embed(const EmbedArgs& args, Stream& stream) const = 0;
  virtual absl::Status Project(const ProjectArgs& args, Scratch scratch, Stream& stream) const = 0;
  virtual absl::Status Attention(const AttentionArgs& args, Scratch scratch,
                                 Stream& stream) const = 0;
  virtual absl::Status ProjectAddNorm(const ProjectAddNormArgs& args, Scratch scratch,
                                      Stream& stream) const = 0;
  // Both, one after the other: output.y is the attention's context, whose content is not defined
  // afterwards. Needs the larger of their scratches. A backend may do it in one pass.
  virtual absl::Status AttentionAddNorm(const AttentionArgs& attention,
                                        const ProjectAddNormArgs& output, Scratch scratch,
                                        Stream& stream) const;
  virtual absl::Status FeedForward(const FeedForwardArgs& args, Scratch scratch,
                                   Stream& stream) const = 0;
  virtual absl::Status Pool(const PoolArgs& args, Stream& stream) const = 0;

  // Until all that was enqueued is done. A failed device is Internal: nothing works after it.
  virtual absl::Status Synchronize(Stream& stream) const = 0;

  // Load time: what `enqueue` enqueues on `stream` is recorded instead of run. A replay reads
  // device memory as it is then: other ids, sequences and schedules of at most the recorded sizes.
  virtual bool can_record() const { return false; }
  virtual absl::StatusOr<std::unique_ptr<Graph>> Record(
      Stream& stream, const std::function<absl::Status()>& enqueue) const;
  virtual absl::Status Replay(const Graph& graph, Stream& stream) const;

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
