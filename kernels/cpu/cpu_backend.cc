#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "kernels/check_args.h"
#include "kernels/cpu/cpu_count.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/pack.h"
#include "kernels/host_buffer.h"

namespace flashsvd {
namespace {

static_assert(static_cast<int>(Activation::kNone) == kCpuNone &&
              static_cast<int>(Activation::kGelu) == kCpuGelu &&
              static_cast<int>(Activation::kGeluTanh) == kCpuGeluTanh &&
              static_cast<int>(Activation::kRelu) == kCpuRelu &&
              static_cast<int>(Activation::kSilu) == kCpuSilu);
static_assert(static_cast<int>(Pooling::kMean) == kCpuMean &&
              static_cast<int>(Pooling::kCls) == kCpuCls &&
              static_cast<int>(Pooling::kLast) == kCpuLast);

// Tokens of a block: a strip of weights in L1 is used by 64 rows before the next is fetched from
// L2, and the workspace stays within L2. 16 to 256 are within 3 %.
constexpr int64_t kBlockRows = 64;
// Attention tasks of a long sequence hold at least this many queries, as each packs K and V.
constexpr int kMinTaskQueries = 64;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

NormTask ToTask(const LayerNormParams& norm) { return {norm.gamma, norm.beta, norm.epsilon}; }

const std::vector<PackedLinear>& Parts(const Linear* linear) {
  return static_cast<const CpuLinear*>(linear)->parts();
}
// Of a linear map of one group; of several, their common shape.
const PackedLinear* Packed(const Linear* linear) { return &Parts(linear).front(); }

void CheckScratch(Scratch scratch, size_t needed, const char* operation) {
  FSVD_CHECK(scratch.bytes >= needed && (needed == 0 || scratch.data != nullptr),
             "%s needs %zu bytes of scratch, got %zu", operation, needed, scratch.bytes);
}

AttentionTask LongestAttention(const AttentionArgs& args) {
  AttentionTask task = {};
  task.length = args.max_seqlen;
  task.d_qk = args.d_qk;
  task.d_v = args.d_v;
  return task;
}

// Query ranges per (sequence, head), so that there is work for every thread.
int QuerySplits(const AttentionArgs& args, int threads) {
  const int64_t heads = int64_t{args.num_sequences} * args.num_heads;
  if (threads == 1 || heads >= 2 * threads || heads == 0) return 1;
  return static_cast<int>(std::min(CeilDiv(2 * threads, heads),
                                   std::max<int64_t>(1, args.max_seqlen / kMinTaskQueries)));
}

// Begin of the i-th of `splits` query ranges: whole register tiles.
int SplitBegin(int length, int i, int splits, int tile_rows) {
  const int64_t tiles = CeilDiv(length, tile_rows);
  return static_cast<int>(std::min<int64_t>(length, tiles * i / splits * tile_rows));
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuBackend>> CpuBackend::Create(DType dtype, int num_threads,
                                                               std::string_view isa) {
  if (dtype == DType::kF16) {
    return absl::InvalidArgumentError("the CPU backend computes in f32 and bf16, not f16");
  }
  if (num_threads < 0 || num_threads > ThreadPool::kMaxThreads) {
    return absl::InvalidArgumentError("num_threads is " + std::to_string(num_threads) +
                                      "; the CPU backend takes 0 to " +
                                      std::to_string(ThreadPool::kMaxThreads));
  }
  if (num_threads == 0) num_threads = std::min(AvailableCpus(), ThreadPool::kMaxThreads);
  FSVD_ASSIGN_OR_RETURN(const std::string selected, SelectIsa(isa));
  return std::unique_ptr<CpuBackend>(new CpuBackend(dtype, num_threads, selected));
}

CpuBackend::CpuBackend(DType dtype, int num_threads, const std::string& isa)
    : name_("cpu/" + isa),
      dtype_(dtype),
      kernels_(KernelsFor(isa, dtype)),
      pool_(std::make_unique<ThreadPool>(num_threads)) {}

absl::StatusOr<std::unique_ptr<Linear>> CpuBackend::PackLinear(const LinearSource& source) const {
  CountAllocation();
  return CpuLinear::Pack(source, dtype_);
}

absl::StatusOr<Buffer> CpuBackend::Upload(const float* values, size_t count, DType as) const {
  CountAllocation();
  return UploadToHost(values, count, as);
}

absl::StatusOr<Buffer> CpuBackend::Allocate(size_t bytes) const {
  CountAllocation();
  return AllocateHostBuffer(bytes);
}

const std::byte* CpuBackend::At(const Rows& rows, int64_t row, int64_t col) const {
  return MutableAt(rows, row, col);
}

std::byte* CpuBackend::MutableAt(const Rows& rows, int64_t row, int64_t col) const {
  return static_cast<std::byte*>(rows.data) + (row * rows.stride + col) * DTypeBytes(dtype_);
}

int64_t CpuBackend::RowsPerBlock(int64_t rows) const {
  // As many blocks as fill every thread evenly, cut at whole register tiles.
  const int64_t threads = pool_->num_threads();
  const int64_t blocks = CeilDiv(rows, kBlockRows * threads) * threads;
  const int64_t tile = kernels_.tile_rows;
  return std::max(tile, CeilDiv(CeilDiv(rows, blocks), tile) * tile);
}

int CpuBackend::MaxBlockRows(int64_t rows) const {
  return static_cast<int>(std::min(kBlockRows + kernels_.tile_rows - 1, rows));
}

size_t CpuBackend::RowScratchBytes(int64_t rows, size_t workspace_bytes) const {
  const int64_t threads =
      std::min<int64_t>(pool_->num_threads(), CeilDiv(rows, kernels_.tile_rows));
  return threads * ArenaAlign(workspace_bytes);
}

template <class Run>
void CpuBackend::ForRowBlocks(int64_t rows, size_t workspace_bytes, Scratch scratch,
                              const Run& run) const {
  if (rows == 0) return;
  const int64_t block = RowsPerBlock(rows);
  const size_t stride = ArenaAlign(workspace_bytes);
  pool_->Run(static_cast<int>(CeilDiv(rows, block)), [&](int index, int thread) {
    const int64_t first = index * block;
    run(first, static_cast<int>(std::min(block, rows - first)),
        static_cast<std::byte*>(scratch.data) + thread * stride);
  });
}

size_t CpuBackend::ScratchBytes(const ProjectArgs& args) const {
  ProjectTask task = {};
  task.linear = Packed(args.linear);
  task.rows = MaxBlockRows(args.x.rows);
  return RowScratchBytes(args.x.rows, kernels_.project_workspace(task));
}

absl::Status CpuBackend::Project(const ProjectArgs& args, Scratch scratch, Stream&) const {
  CheckArgs(args);
  CheckScratch(scratch, ScratchBytes(args), "Project");
  ProjectTask task = {};
  task.linear = Packed(args.linear);
  task.x_stride = args.x.stride;
  task.y_stride = args.y.stride;
  task.activation = static_cast<int>(args.activation);
  task.rows = MaxBlockRows(args.x.rows);
  ForRowBlocks(args.x.rows, kernels_.project_workspace(task), scratch,
               [&](int64_t first, int rows, void* workspace) {
                 ProjectTask block = task;
                 block.x = At(args.x, first);
                 block.rows = rows;
                 int64_t column = 0;
                 for (const PackedLinear& part : Parts(args.linear)) {
                   block.linear = &part;
                   block.y = MutableAt(args.y, first, column);
                   kernels_.project(block, workspace);
                   column += part.out;
                 }
               });
  return absl::OkStatus();
}

size_t CpuBackend::ScratchBytes(const ProjectAddNormArgs& args) const {
  ProjectAddNormTask task = {};
  task.linear = Packed(args.linear);
  task.rows = MaxBlockRows(args.x.rows);
  return RowScratchBytes(args.x.rows, kernels_.project_add_norm_workspace(task));
}

absl::Status CpuBackend::ProjectAddNorm(const ProjectAddNormArgs& args, Scratch scratch,
                                        Stream&) const {
  CheckArgs(args);
  CheckScratch(scratch, ScratchBytes(args), "ProjectAddNorm");
  ProjectAddNormTask task = {};
  task.linear = Packed(args.linear);
  task.y_stride = args.y.stride;
  task.x_stride = args.x.stride;
  task.norm = ToTask(args.norm);
  task.rows = MaxBlockRows(args.x.rows);
  ForRowBlocks(args.x.rows, kernels_.project_add_norm_workspace(task), scratch,
               [&](int64_t first, int rows, void* workspace) {
                 ProjectAddNormTask block = task;
                 block.y = At(args.y, first);
                 block.x = MutableAt(args.x, first);
                 block.rows = rows;
                 kernels_.project_add_norm(block, workspace);
               });
  return absl::OkStatus();
}

size_t CpuBackend::ScratchBytes(const FeedForwardArgs& args) const {
  FeedForwardTask task = {};
  task.up = Packed(args.up);
  task.down = Packed(args.down);
  task.rows = MaxBlockRows(args.x.rows);
  return RowScratchBytes(args.x.rows, kernels_.feed_forward_workspace(task));
}

absl::Status CpuBackend::FeedForward(const FeedForwardArgs& args, Scratch scratch, Stream&) const {
  CheckArgs(args);
  CheckScratch(scratch, ScratchBytes(args), "FeedForward");
  FeedForwardTask task = {};
  task.up = Packed(args.up);
  task.down = Packed(args.down);
  task.x_stride = args.x.stride;
  task.activation = static_cast<int>(args.activation);
  task.norm = ToTask(args.norm);
  task.rows = MaxBlockRows(args.x.rows);
  ForRowBlocks(args.x.rows, kernels_.feed_forward_workspace(task), scratch,
               [&](int64_t first, int rows, void* workspace) {
                 FeedForwardTask block = task;
                 block.x = MutableAt(args.x, first);
                 block.rows = rows;
                 kernels_.feed_forward(block, workspace);
               });
  return absl::OkStatus();
}

size_t CpuBackend::ScratchBytes(const AttentionArgs& args) const {
  const int64_t tasks = int64_t{args.num_sequences} * args.num_heads *
                        std::max<int64_t>(1, args.max_seqlen / kMinTaskQueries);
  return std::min<int64_t>(pool_->num_threads(), tasks) *
         ArenaAlign(kernels_.attention_workspace(LongestAttention(args)));
}

absl::Status CpuBackend::Attention(const AttentionArgs& args, Scratch scratch, Stream&) const {
  CheckArgs(args);
  CheckScratch(scratch, ScratchBytes(args), "Attention");
  const size_t stride = ArenaAlign(kernels_.attention_workspace(LongestAttention(args)));
  const int splits = QuerySplits(args, pool_->num_threads());
  const int heads = args.num_heads;
  pool_->Run(args.num_sequences * heads * splits, [&](int index, int thread) {
    const int split = index % splits;
    const int64_t head = index / splits % heads;
    const int sequence = index / splits / heads;
    // Offsets count from the first token of the batch, rows from the first of this chunk.
    const int32_t begin = args.host_cu_seqlens[sequence] - args.host_cu_seqlens[0];
    AttentionTask task = LongestAttention(args);
    task.length = args.host_cu_seqlens[sequence + 1] - args.host_cu_seqlens[sequence];
    FSVD_CHECK(task.length >= 0 && task.length <= args.max_seqlen,
               "sequence %d has %d tokens, max_seqlen is %d", sequence, task.length,
               args.max_seqlen);
    task.query_begin = SplitBegin(task.length, split, splits, kernels_.tile_rows);
    task.query_end = SplitBegin(task.length, split + 1, splits, kernels_.tile_rows);
    if (task.query_begin == task.query_end) return;
    task.q = At(args.qkv, begin, head * args.d_qk);
    task.k = At(args.qkv, begin, (heads + head) * args.d_qk);
    task.v = At(args.qkv, begin, int64_t{2} * heads * args.d_qk + head * args.d_v);
    task.stride = args.qkv.stride;
    task.context = MutableAt(args.context, begin, head * args.d_v);
    task.context_stride = args.context.stride;
    task.scale = args.scale;
    kernels_.attention(task, static_cast<std::byte*>(scratch.data) + thread * stride);
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::Embed(const EmbedArgs& args, Stream&) const {
  CheckArgs(args);
  const RaggedBatch& batch = args.batch;
  ForRowBlocks(args.x.rows, 0, Scratch{}, [&](int64_t first, int rows, void*) {
    EmbedTask task = {};
    task.word = args.word;
    task.position = args.position;
    task.type = args.type;
    task.x_stride = args.x.stride;
    task.d = static_cast<int>(args.x.cols);
    task.norm = ToTask(args.norm);
    // One task for each run of rows with ascending positions.
    for (int64_t row = first, end; row < first + rows; row = end) {
      end = row + 1;
      while (end < first + rows && batch.positions[end] == batch.positions[end - 1] + 1) ++end;
      task.ids = batch.ids + row;
      task.type_ids = batch.type_ids + row;
      task.first_position = batch.positions[row];
      task.rows = static_cast<int>(end - row);
      task.x = MutableAt(args.x, row);
      kernels_.embed(task);
    }
  });
  return absl::OkStatus();
}

absl::Status CpuBackend::Pool(const PoolArgs& args, Stream&) const {
  CheckArgs(args);
  const int32_t* cu = args.batch.host_cu_seqlens;
  pool_->Run(args.batch.num_sequences, [&](int sequence, int) {
    PoolTask task = {};
    task.x = At(args.x, cu[sequence]);
    task.x_stride = args.x.stride;
    task.length = cu[sequence + 1] - cu[sequence];
    task.d = static_cast<int>(args.x.cols);
    task.pooling = static_cast<int>(args.pooling);
    task.normalize = args.normalize;
    task.out = args.out + sequence * args.x.cols;
    kernels_.pool(task);
  });
  return absl::OkStatus();
}

}  // namespace flashsvd
