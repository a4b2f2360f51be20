// The operations of the CUDA backend: what is launched, in what order, over which scratch.

#include <algorithm>
#include <cstring>
#include <span>
#include <string>

#include "kernels/arena.h"
#include "kernels/check_args.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/launch.h"
#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

// Rows of a feed-forward whose hidden activation goes through memory: enough to fill the device,
// few enough to stay a fraction of the model's activations.
constexpr int64_t kHiddenRows = 2048;

constexpr int64_t kElementBytes = 2;  // f16 and bf16

const CudaLinear& Cuda(const Linear* linear) { return *static_cast<const CudaLinear*>(linear); }

// Of wide rows a multiple of a cache line, which every kernel reads fastest; narrow ones stay
// small.
int64_t StrideOf(int64_t cols) {
  const int64_t multiple = cols >= 512 ? 64 : 8;
  return (cols + multiple - 1) / multiple * multiple;
}

size_t MatrixBytes(int64_t rows, int64_t cols) {
  return ArenaAlign(rows * StrideOf(cols) * kElementBytes);
}

// Matrices handed out from a scratch, one behind the other.
class ScratchMatrices {
 public:
  explicit ScratchMatrices(Scratch scratch) : scratch_(scratch) {}
  Rows Take(int64_t rows, int64_t cols) {
    return {TakeBytes(MatrixBytes(rows, cols)), rows, cols, StrideOf(cols)};
  }
  void* TakeBytes(size_t bytes) {
    std::byte* taken = static_cast<std::byte*>(scratch_.data) + used_;
    used_ += ArenaAlign(bytes);
    FSVD_CHECK(used_ <= scratch_.bytes, "%zu bytes of scratch used, %zu given", used_,
               scratch_.bytes);
    return taken;
  }

 private:
  Scratch scratch_;
  size_t used_ = 0;
};

Rows ColumnSlice(const Rows& x, int64_t first, int64_t count) {
  return {static_cast<std::byte*>(x.data) + first * kElementBytes, x.rows, count, x.stride};
}

Rows RowSlice(const Rows& x, int64_t first, int64_t count) {
  return {static_cast<std::byte*>(x.data) + first * x.stride * kElementBytes, count, x.cols,
          x.stride};
}

std::string Shape(int64_t rows, int64_t in, int64_t out) {
  return std::to_string(rows) + " rows, " + std::to_string(in) + " to " + std::to_string(out);
}

// Launches the operations of one backend on one stream.
class Launcher {
 public:
  Launcher(const DeviceFacts& facts, DType dtype, const std::string& name, CudaStream& stream)
      : facts_(facts), dtype_(dtype), name_(name), stream_(stream) {}

  absl::Status Gemm(const Rows& x, const PackedMatrix& w, const float* bias, Activation activation,
                    const Rows& y) const {
    if (x.rows == 0) return absl::OkStatus();
    const bool x_settled = stream_.last_write().SettledRows(x) == x.rows;
    const GemmParams params = {x, w, bias, activation, y, x_settled};
    const GemmTile tile = ChooseGemmTile(facts_, x.rows, w.n, w.k, activation != Activation::kNone);
    const cudaError_t error = tile.path == KernelPath::kSm90
                                  ? LaunchGemmSm90(params, dtype_, tile, stream_.ForNext())
                                  : LaunchGemmSm80(params, dtype_, tile, stream_.ForNext());
    return Check(error, "projection", Shape(x.rows, w.k, w.n));
  }

  // y_g = middle_g B_g' + b_g for all groups of a linear map.
  absl::Status GemmHeld(const CudaLinear& linear, const Rows& middle, const Rows& y,
                        const GemmTile& tile) const {
    GemmGroupsParams params = {.x = middle,
                               .groups = linear.groups(),
                               .x_step = linear.first().n / linear.groups(),
                               .y = y};
    for (int group = 0; group < linear.groups(); ++group) {
      params.w[group] = linear.outputs()[group].w;
      params.bias[group] = linear.outputs()[group].bias;
    }
    return Check(LaunchGemmHeldSm90(params, dtype_, tile, stream_.ForNext()), "projection",
                 Shape(y.rows, linear.last().k, static_cast<int>(y.cols)));
  }

  // y = activation(W x + b); of factor pairs all x A' in one product, then a product for each B,
  // where that is faster all in one launch.
  absl::Status Project(const CudaLinear& linear, const Rows& x, Activation activation,
                       const Rows& y, ScratchMatrices& scratch) const {
    if (linear.rank() == 0) return Gemm(x, linear.last(), linear.bias(), activation, y);
    const Rows middle = scratch.Take(x.rows, linear.first().n);
    FSVD_RETURN_IF_ERROR(Gemm(x, linear.first(), nullptr, Activation::kNone, middle));
    if (activation == Activation::kNone) {
      const GemmTile tile =
          ChooseHeldGemmTile(facts_, x.rows, linear.last().n, linear.last().k, linear.groups());
      if (tile.rows > 0) return GemmHeld(linear, middle, y, tile);
    }
    const int64_t group_cols = linear.first().n / linear.groups();
    for (int group = 0; group < linear.groups(); ++group) {
      const OutputMatrix& output = linear.outputs()[group];
      FSVD_RETURN_IF_ERROR(Gemm(ColumnSlice(middle, group * group_cols, output.w.k), output.w,
                                output.bias, activation,
                                ColumnSlice(y, group * output.w.n, output.w.n)));
    }
    return absl::OkStatus();
  }

  // x = LayerNorm(x + y W' + b) for the last matrix of a linear map.
  absl::Status AddNorm(const Rows& y, const PackedMatrix& w, const float* bias, const Rows& x,
                       const LayerNormParams& norm, ScratchMatrices& scratch) const {
    if (x.rows == 0) return absl::OkStatus();
    if (HasFusedAddNorm(facts_, w.n)) {
      const cudaError_t error = LaunchGemmAddNormSm90(
          {y, w, bias, x, norm}, dtype_, ChooseAddNormTile(facts_, x.rows, w.n), stream_.ForNext());
      stream_.last_write().Set(x);
      return Check(error, "projection with norm", Shape(x.rows, w.k, w.n));
    }
    const Rows sum = scratch.Take(x.rows, w.n);
    FSVD_RETURN_IF_ERROR(Gemm(y, w, bias, Activation::kNone, sum));
    return Check(LaunchAddNorm({sum, x, norm}, dtype_, stream_.ForNext()), "norm",
                 Shape(x.rows, w.n, w.n));
  }

  absl::Status ProjectAddNorm(const CudaLinear& linear, const Rows& y, const Rows& x,
                              const LayerNormParams& norm, ScratchMatrices& scratch) const {
    Rows in = y;
    if (linear.rank() > 0) {
      in = scratch.Take(y.rows, linear.rank());
      FSVD_RETURN_IF_ERROR(Gemm(y, linear.first(), nullptr, Activation::kNone, in));
    }
    return AddNorm(in, linear.last(), linear.bias(), x, norm, scratch);
  }

  // Both maps are factor pairs of small enough ranks: the hidden activation stays on chip.
  absl::Status StreamFeedForward(const FeedForwardArgs& args, ScratchMatrices& scratch) const {
    const CudaLinear& up = Cuda(args.up);
    const CudaLinear& down = Cuda(args.down);
    const FeedForwardTile tile = ChooseFeedForwardTile(facts_, args.x.rows, up.in(), up.out(),
                                                       std::max(up.rank(), down.rank()));
    FeedForwardParams params = {.x = args.x,
                                .a1 = up.first(),
                                .b1 = up.last(),
                                .bias = up.bias(),
                                .a2 = down.first(),
                                .activation = args.activation};
    if (tile.add_norm) {
      if (tile.rows < 128) {
        params.exchange = scratch.TakeBytes(FeedForwardExchangeBytes(facts_, args.x.rows));
      }
      params.b2 = down.last();
      params.b2_bias = down.bias();
      params.norm = args.norm;
    } else {
      params.s = scratch.Take(args.x.rows, down.rank());
    }
    const cudaError_t error = LaunchFeedForwardSm90(params, dtype_, tile, stream_.ForNext());
    FSVD_RETURN_IF_ERROR(Check(error, "feed-forward", Shape(args.x.rows, up.in(), up.out())));
    if (tile.add_norm) return absl::OkStatus();
    return AddNorm(params.s, down.last(), down.bias(), args.x, args.norm, scratch);
  }

  absl::Status Check(cudaError_t error, const char* operation, const std::string& shape) const {
    if (error == cudaSuccess) return absl::OkStatus();
    return CudaStatus(error, name_ + ": " + operation + " of " + shape);
  }

 private:
  const DeviceFacts& facts_;
  const DType dtype_;
  const std::string& name_;
  CudaStream& stream_;
};

bool Streams(const DeviceFacts& facts, const FeedForwardArgs& args) {
  return args.up->rank() > 0 && args.down->rank() > 0 &&
         HasStreamedFeedForward(facts, args.up->rank(), args.down->rank());
}

size_t MiddleBytes(const Linear& linear, int64_t rows) {
  return linear.rank() > 0 ? MatrixBytes(rows, linear.rank()) : 0;
}

size_t AddNormBytes(const DeviceFacts& facts, const CudaLinear& linear, int64_t rows) {
  const PackedMatrix& w = linear.last();
  return HasFusedAddNorm(facts, w.n) ? 0 : MatrixBytes(rows, w.n);
}

// Tiles of a batch: each sequence may end in one that is not full.
int MaxTiles(int tile_rows, int64_t num_tokens, int64_t num_sequences) {
  return static_cast<int>(num_tokens / tile_rows + std::min(num_sequences, num_tokens));
}

}  // namespace

int64_t CudaBackend::RowStride(int64_t cols) const { return StrideOf(cols); }

size_t CudaBackend::ScratchBytes(const ProjectArgs& args) const {
  const CudaLinear& linear = Cuda(args.linear);
  return linear.rank() > 0 ? MatrixBytes(args.x.rows, linear.first().n) : 0;
}

size_t CudaBackend::ScratchBytes(const AttentionArgs&) const { return 0; }

size_t CudaBackend::ScratchBytes(const ProjectAddNormArgs& args) const {
  const CudaLinear& linear = Cuda(args.linear);
  return MiddleBytes(linear, args.x.rows) + AddNormBytes(facts_, linear, args.x.rows);
}

size_t CudaBackend::ScratchBytes(const FeedForwardArgs& args) const {
  const CudaLinear& down = Cuda(args.down);
  if (Streams(facts_, args)) {
    const int64_t rows = FeedForwardSumRows(facts_, args.x.rows, args.up->in(), args.up->out(),
                                            std::max(args.up->rank(), args.down->rank()));
    return std::max(MiddleBytes(down, rows) + AddNormBytes(facts_, down, rows),
                    ArenaAlign(FeedForwardExchangeBytes(facts_, args.x.rows)));
  }
  const int64_t rows = std::min(args.x.rows, kHiddenRows);
  return MatrixBytes(rows, args.up->out()) + MiddleBytes(*args.up, rows) + MiddleBytes(down, rows) +
         AddNormBytes(facts_, down, rows);
}

size_t CudaBackend::AttentionScheduleBytes(int num_tokens, int num_sequences) const {
  // For the smallest tiles, which fewer tokens may get.
  constexpr int kSmallestTile = 64;
  return ArenaAlign(sizeof(AttentionSchedule) +
                    sizeof(AttentionTile) * MaxTiles(kSmallestTile, num_tokens, num_sequences));
}

void CudaBackend::WriteAttentionSchedule(const int32_t* cu_seqlens, int num_sequences,
                                         int num_tokens, void* host) const {
  const int rows = AttentionTileRows(num_tokens);
  auto* schedule = static_cast<AttentionSchedule*>(host);
  auto* tiles = reinterpret_cast<AttentionTile*>(schedule + 1);
  int count = 0;
  for (int s = 0; s < num_sequences; ++s) {
    const int32_t length = cu_seqlens[s + 1] - cu_seqlens[s];
    for (int32_t query = 0; query < length; query += rows) {
      tiles[count++] = {cu_seqlens[s] - cu_seqlens[0], length, query, 0};
    }
  }
  *schedule = {.num_tiles = count};
}

absl::Status CudaBackend::Embed(const EmbedArgs& args, Stream& stream) const {
  CheckArgs(args);
  if (args.x.rows == 0) return absl::OkStatus();
  FSVD_RETURN_IF_ERROR(UseDevice());
  return CudaStatus(LaunchEmbed({args.batch.ids, args.batch.type_ids, args.batch.positions,
                                 args.word, args.position, args.type, args.norm, args.x},
                                dtype_, StreamOf(stream)),
                    name_ + ": embedding of " + std::to_string(args.x.rows) + " tokens");
}

absl::Status CudaBackend::Project(const ProjectArgs& args, Scratch scratch, Stream& stream) const {
  CheckArgs(args);
  FSVD_RETURN_IF_ERROR(UseDevice());
  ScratchMatrices matrices(scratch);
  return Launcher(facts_, dtype_, name_, CudaStreamOf(stream))
      .Project(Cuda(args.linear), args.x, args.activation, args.y, matrices);
}

namespace {

std::string AttentionShape(const AttentionArgs& args) {
  return std::to_string(args.qkv.rows) + " tokens, " + std::to_string(args.num_heads) +
         " heads, d_qk " + std::to_string(args.d_qk) + ", d_v " + std::to_string(args.d_v);
}

AttentionParams ParamsOf(const AttentionArgs& args, int tile_rows) {
  return {args.qkv,       args.context,
          args.schedule,  MaxTiles(tile_rows, args.qkv.rows, args.num_sequences),
          args.num_heads, args.d_qk,
          args.d_v,       args.scale};
}

}  // namespace

absl::Status CudaBackend::Attention(const AttentionArgs& args, Scratch, Stream& stream) const {
  CheckArgs(args);
  FSVD_CHECK(args.d_qk % 8 == 0 && args.d_v % 8 == 0, "d_qk %d, d_v %d: not multiples of 8",
             args.d_qk, args.d_v);
  if (args.qkv.rows == 0 || args.num_sequences == 0) return absl::OkStatus();
  FSVD_RETURN_IF_ERROR(UseDevice());
  const AttentionTiling tile =
      ChooseAttentionTiling(facts_, static_cast<int>(args.qkv.rows), args.d_qk, args.d_v);
  const AttentionParams params = ParamsOf(args, tile.rows);
  const cudaError_t error = tile.path == KernelPath::kSm90
                                ? LaunchAttentionSm90(params, dtype_, tile, StreamOf(stream))
                                : LaunchAttentionSm80(params, dtype_, tile, StreamOf(stream));
  return CudaStatus(error, name_ + ": attention of " + AttentionShape(args));
}

absl::Status CudaBackend::AttentionAddNorm(const AttentionArgs& attention,
                                           const ProjectAddNormArgs& output, Scratch scratch,
                                           Stream& stream) const {
  const CudaLinear& linear = Cuda(output.linear);
  const std::span cu_seqlens(attention.host_cu_seqlens, attention.num_sequences + 1);
  if (linear.rank() > 0 ||
      !FusesAttentionNorm(facts_, cu_seqlens, attention.num_heads, attention.d_qk, attention.d_v,
                          static_cast<int>(output.x.cols))) {
    return Backend::AttentionAddNorm(attention, output, scratch, stream);
  }
  CheckArgs(attention);
  CheckArgs(output);
  FSVD_RETURN_IF_ERROR(UseDevice());
  const int tile_rows = AttentionTileRows(static_cast<int>(attention.qkv.rows));
  const cudaError_t error =
      LaunchAttentionNormSm90({ParamsOf(attention, tile_rows),
                               {output.y, linear.last(), linear.bias(), output.x, output.norm}},
                              dtype_, StreamOf(stream));
  CudaStreamOf(stream).last_write().Set(output.x);
  return CudaStatus(error, name_ + ": attention with norm of " + AttentionShape(attention));
}

absl::Status CudaBackend::ProjectAddNorm(const ProjectAddNormArgs& args, Scratch scratch,
                                         Stream& stream) const {
  CheckArgs(args);
  FSVD_RETURN_IF_ERROR(UseDevice());
  ScratchMatrices matrices(scratch);
  return Launcher(facts_, dtype_, name_, CudaStreamOf(stream))
      .ProjectAddNorm(Cuda(args.linear), args.y, args.x, args.norm, matrices);
}

absl::Status CudaBackend::FeedForward(const FeedForwardArgs& args, Scratch scratch,
                                      Stream& stream) const {
  CheckArgs(args);
  if (args.x.rows == 0) return absl::OkStatus();
  FSVD_RETURN_IF_ERROR(UseDevice());
  const Launcher launcher(facts_, dtype_, name_, CudaStreamOf(stream));
  if (Streams(facts_, args)) {
    ScratchMatrices matrices(scratch);
    return launcher.StreamFeedForward(args, matrices);
  }
  for (int64_t first = 0; first < args.x.rows; first += kHiddenRows) {
    ScratchMatrices matrices(scratch);
    const Rows x = RowSlice(args.x, first, std::min(kHiddenRows, args.x.rows - first));
    const Rows hidden = matrices.Take(x.rows, args.up->out());
    FSVD_RETURN_IF_ERROR(launcher.Project(Cuda(args.up), x, args.activation, hidden, matrices));
    FSVD_RETURN_IF_ERROR(launcher.ProjectAddNorm(Cuda(args.down), hidden, x, args.norm, matrices));
  }
  return absl::OkStatus();
}

absl::Status CudaBackend::Pool(const PoolArgs& args, Stream& stream) const {
  CheckArgs(args);
  if (args.batch.num_sequences == 0) return absl::OkStatus();
  FSVD_RETURN_IF_ERROR(UseDevice());
  return CudaStatus(
      LaunchPool({args.x, args.batch.cu_seqlens, args.batch.num_sequences, args.batch.num_present,
                  args.pooling, args.normalize, args.out},
                 dtype_, StreamOf(stream)),
      name_ + ": pooling of " + std::to_string(args.batch.num_sequences) + " sequences");
}

}  // namespace flashsvd
