#include "runtime/encoder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "runtime/encoder_layer.h"

namespace flashsvd {
namespace {

// Sizes of the recorded passes: the next larger one costs at most half as much again as the batch
// itself would.
constexpr int kRecordedTokens[] = {16,  32,  48,  64,   96,   128,  192,  256,
                                   384, 512, 768, 1024, 1536, 2048, 3072, 4096};

// `count` rows from row `first`.
Rows RowSlice(const Rows& r, int64_t first, int64_t count, size_t element_bytes) {
  return {static_cast<std::byte*>(r.data) + first * r.stride * element_bytes, count, r.cols,
          r.stride};
}

Rows ColumnSlice(const Rows& r, int64_t first, int64_t count, size_t element_bytes) {
  return {static_cast<std::byte*>(r.data) + first * element_bytes, r.rows, count, r.stride};
}

// Spans handed out one behind the other.
class SpanAllocator {
 public:
  explicit SpanAllocator(size_t begin) : end_(begin) {}
  ArenaSpan Take(size_t bytes) {
    const ArenaSpan span{end_, bytes};
    end_ = ArenaAlign(span.end());
    return span;
  }
  size_t end() const { return end_; }

 private:
  size_t end_;
};

Scratch ScratchAt(Arena& arena, ArenaSpan span) { return {arena.At(span), span.bytes}; }

}  // namespace

Encoder::Encoder(const ModelConfig& config, const Backend& backend, const EncoderOptions& options)
    : config_(config), backend_(backend), options_(options) {}

Encoder::~Encoder() = default;

BatchShape Encoder::Limit(int max_tokens, int max_sequences, int max_seqlen) const {
  return ShapeLimit(max_tokens, max_sequences, max_seqlen, ChunkTarget(max_tokens));
}

// The baseline attends over the whole batch at once.
int Encoder::ChunkTarget(int num_tokens) const {
  return options_.streaming ? options_.chunk_tokens : num_tokens;
}

ActivationPlan Encoder::Plan(const BatchShape& shape) const {
  const size_t element = DTypeBytes(backend_.dtype());
  const int64_t heads = config_.heads;
  const auto rows = [this](int64_t n, int64_t cols) { return Matrix(nullptr, n, cols); };
  const auto bytes = [&](const Rows& r) { return r.rows * r.stride * element; };

  size_t qkv_bytes = 0, context_bytes = 0;
  size_t attention_scratch = 0, ffn_scratch = 0;
  for (const Layer& layer : layers_) {
    const int64_t layer_qkv = heads * (2 * layer.d_qk + layer.d_v);
    const int64_t layer_context = heads * layer.d_v;
    const int64_t c = shape.chunk_tokens;
    qkv_bytes = std::max(qkv_bytes, bytes(rows(c, layer_qkv)));
    if (!ReplacesQuery(layer)) {
      context_bytes = std::max(context_bytes, bytes(rows(c, layer_context)));
    }

    for (const Layer::Projection& p : layer.projections) {
      attention_scratch = std::max(
          attention_scratch, backend_.ScratchBytes(ProjectArgs{.linear = p.linear.get(),
                                                               .x = rows(c, config_.hidden),
                                                               .y = rows(c, p.linear->out())}));
    }
    attention_scratch =
        std::max({attention_scratch,
                  backend_.ScratchBytes(AttentionArgs{.qkv = rows(c, layer_qkv),
                                                      .context = rows(c, layer_context),
                                                      .num_sequences = shape.chunk_sequences,
                                                      .max_seqlen = shape.max_seqlen,
                                                      .num_heads = config_.heads,
                                                      .d_qk = layer.d_qk,
                                                      .d_v = layer.d_v}),
                  backend_.ScratchBytes(ProjectAddNormArgs{.linear = layer.output.get(),
                                                           .y = rows(c, layer_context),
                                                           .x = rows(c, config_.hidden)})});

    const Rows x = rows(shape.tokens, config_.hidden);
    const Rows hidden = rows(shape.tokens, config_.ffn);
    ffn_scratch =
        options_.streaming
            ? std::max(ffn_scratch, backend_.ScratchBytes(FeedForwardArgs{
                                        .up = layer.up.get(), .down = layer.down.get(), .x = x}))
            : std::max({ffn_scratch,
                        backend_.ScratchBytes(
                            ProjectArgs{.linear = layer.up.get(), .x = x, .y = hidden}),
                        backend_.ScratchBytes(
                            ProjectAddNormArgs{.linear = layer.down.get(), .y = hidden, .x = x})});
  }

  ActivationPlan plan;
  SpanAllocator resident(0);
  plan.x = resident.Take(bytes(rows(shape.tokens, config_.hidden)));
  SpanAllocator attention(resident.end());
  plan.qkv = attention.Take(qkv_bytes);
  plan.context = attention.Take(context_bytes);
  plan.attention_scratch = attention.Take(attention_scratch);
  SpanAllocator ffn(resident.end());
  if (!options_.streaming) plan.hidden = ffn.Take(bytes(rows(shape.tokens, config_.ffn)));
  plan.ffn_scratch = ffn.Take(ffn_scratch);
  plan.total_bytes = std::max(plan.attention_scratch.end(), plan.ffn_scratch.end());
  return plan;
}

size_t Encoder::StagingBytes(const BatchShape& limit) const {
  return BatchStaging::Bytes(backend_, limit, ChunkTarget(limit.tokens), config_.hidden);
}

absl::StatusOr<std::unique_ptr<ExecutionSlot>> Encoder::MakeSlot(const BatchShape& limit) const {
  FSVD_ASSIGN_OR_RETURN(Buffer memory, backend_.Allocate(Plan(limit).total_bytes));
  FSVD_ASSIGN_OR_RETURN(
      BatchStaging staging,
      BatchStaging::Create(backend_, limit, ChunkTarget(limit.tokens), config_.hidden));
  FSVD_ASSIGN_OR_RETURN(std::unique_ptr<Stream> stream, backend_.MakeStream());
  auto slot = std::unique_ptr<ExecutionSlot>(
      new ExecutionSlot(Arena(std::move(memory)), std::move(staging), std::move(stream), limit));
  if (backend_.can_record() && options_.streaming) {
    FSVD_RETURN_IF_ERROR(Record(*slot));
    FSVD_RETURN_IF_ERROR(WarmUp(*slot));
  }
  return slot;
}

absl::Status Encoder::WarmUp(ExecutionSlot& slot) const {
  const BatchShape& limit = slot.limit_;
  const int longest = std::min(limit.max_seqlen, config_.max_positions);
  const int recorded = slot.recordings_.empty() ? 0 : slot.recordings_.back().tokens;
  for (int tokens = limit.tokens; tokens > recorded; tokens = tokens * 3 / 4) {
    PackedBatch batch;
    while (batch.num_tokens() < tokens && batch.num_sequences() < limit.sequences) {
      const std::vector<int32_t> zeros(std::min(longest, tokens - batch.num_tokens()), 0);
      batch.Append(zeros, zeros);
    }
    FSVD_RETURN_IF_ERROR(Forward(batch, slot).status());
  }
  return absl::OkStatus();
}

absl::Status Encoder::Record(ExecutionSlot& slot) const {
  const BatchShape& limit = slot.limit_;
  PackedBatch batch;  // of the least that a batch can be: a replay brings its own
  batch.Append({{0}}, {{0}});
  for (const int tokens : kRecordedTokens) {
    if (tokens > std::min(limit.tokens, options_.chunk_tokens)) break;
    ExecutionSlot::Recording recording;
    recording.tokens = tokens;
    recording.sequences = std::min(limit.sequences, tokens);
    const ActivationPlan plan = Plan({.tokens = tokens,
                                      .sequences = recording.sequences,
                                      .max_seqlen = std::min(limit.max_seqlen, tokens),
                                      .chunk_tokens = tokens,
                                      .chunk_sequences = recording.sequences});
    recording.activation_bytes = plan.total_bytes;
    slot.staging_.Write(batch, tokens, recording.sequences);
    recording.input_bytes = slot.staging_.input_bytes();
    FSVD_ASSIGN_OR_RETURN(recording.graph, backend_.Record(*slot.stream_, [&]() -> absl::Status {
      FSVD_RETURN_IF_ERROR(slot.staging_.CopyIn(*slot.stream_));
      return Enqueue(plan, slot);
    }));
    slot.recordings_.push_back(std::move(recording));
  }
  return absl::OkStatus();
}

const ExecutionSlot::Recording* ExecutionSlot::FindRecording(const PackedBatch& batch) const {
  for (const Recording& recording : recordings_) {
    if (batch.num_tokens() <= recording.tokens && batch.num_sequences() <= recording.sequences) {
      return &recording;
    }
  }
  return nullptr;
}

Rows Encoder::Matrix(void* data, int64_t rows, int64_t cols) const {
  return {data, rows, cols, backend_.RowStride(cols)};
}

bool Encoder::ReplacesQuery(const Layer& layer) const {
  return backend_.context_may_replace_query() && layer.d_qk == layer.d_v;
}

double Encoder::Flops(const PackedBatch& batch) const {
  double pairs = 0;  // (query, key) pairs of all sequences
  for (int s = 0; s < batch.num_sequences(); ++s) {
    const double length = batch.cu_seqlens[s + 1] - batch.cu_seqlens[s];
    pairs += length * length;
  }
  double flops = 0;
  for (const Layer& layer : layers_) {
    int64_t linear = layer.output->parameters() + layer.up->parameters() + layer.down->parameters();
    for (const Layer::Projection& p : layer.projections) linear += p.linear->parameters();
    flops +=
        2.0 * linear * batch.num_tokens() + 2 * pairs * config_.heads * (layer.d_qk + layer.d_v);
  }
  return flops;
}

absl::Status Encoder::Validate(const PackedBatch& batch) const {
  for (int s = 0; s < batch.num_sequences(); ++s) {
    const int begin = batch.cu_seqlens[s];
    const int length = batch.cu_seqlens[s + 1] - begin;
    if (length > config_.max_positions) {
      return absl::InvalidArgumentError(
          fmt::format("sequence {} has {} tokens, the model has {} positions", s, length,
                      config_.max_positions));
    }
    for (int t = begin; t < begin + length; ++t) {
      if (batch.ids[t] < 0 || batch.ids[t] >= config_.vocab) {
        return absl::InvalidArgumentError(
            fmt::format("sequence {}: token {} has id {}, the vocabulary has {} entries", s,
                        t - begin, batch.ids[t], config_.vocab));
      }
      if (batch.type_ids[t] < 0 || batch.type_ids[t] >= config_.type_vocab) {
        return absl::InvalidArgumentError(
            fmt::format("sequence {}: token {} has type {}, the model has {} types", s, t - begin,
                        batch.type_ids[t], config_.type_vocab));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> Encoder::Forward(const PackedBatch& batch, ExecutionSlot& slot) const {
  FSVD_RETURN_IF_ERROR(Validate(batch));
  const BatchShape& limit = slot.limit_;
  FSVD_CHECK(batch.num_tokens() > 0 && batch.num_tokens() <= limit.tokens &&
                 batch.num_sequences() <= limit.sequences && batch.max_seqlen <= limit.max_seqlen,
             "batch of %d tokens, %d sequences, longest %d in a slot for %d, %d, %d",
             batch.num_tokens(), batch.num_sequences(), batch.max_seqlen, limit.tokens,
             limit.sequences, limit.max_seqlen);

  BatchStaging& staging = slot.staging_;
  Stream& stream = *slot.stream_;
  const int chunk_target = ChunkTarget(batch.num_tokens());
  size_t activation_bytes = 0;
  slot.arena_.ResetHighWater();
  if (const ExecutionSlot::Recording* recording = slot.FindRecording(batch)) {
    staging.Write(batch, recording->tokens, recording->sequences);
    FSVD_CHECK(staging.input_bytes() <= recording->input_bytes,
               "%zu bytes of input for a recording that copies %zu", staging.input_bytes(),
               recording->input_bytes);
    FSVD_RETURN_IF_ERROR(backend_.Replay(*recording->graph, stream));
    activation_bytes = recording->activation_bytes;
  } else {
    staging.Write(batch, batch.num_tokens(), batch.num_sequences());
    FSVD_RETURN_IF_ERROR(staging.CopyIn(stream));
    FSVD_RETURN_IF_ERROR(Enqueue(Plan(ShapeOf(batch, chunk_target)), slot));
    activation_bytes = slot.arena_.high_water();
  }
  FSVD_RETURN_IF_ERROR(backend_.Synchronize(stream));
  slot.output_ = {staging.output(), static_cast<size_t>(batch.num_sequences()) * config_.hidden};
  return activation_bytes;
}

absl::Status Encoder::Enqueue(const ActivationPlan& plan, ExecutionSlot& slot) const {
  const RaggedBatch& batch = slot.staging_.batch();
  const Rows x = Matrix(slot.arena_.At(plan.x), batch.num_tokens, config_.hidden);
  FSVD_RETURN_IF_ERROR(backend_.Embed({.batch = batch,
                                       .word = word_.data(),
                                       .position = position_.data(),
                                       .type = type_.data(),
                                       .norm = embedding_norm_->params(),
                                       .x = x},
                                      *slot.stream_));
  for (const Layer& layer : layers_) {
    FSVD_RETURN_IF_ERROR(Attention(layer, x, plan, slot));
    FSVD_RETURN_IF_ERROR(FeedForward(layer, x, plan, slot));
  }
  return backend_.Pool(
      {.batch = batch, .x = x, .pooling = config_.pooling, .out = slot.staging_.output()},
      *slot.stream_);
}

// Chunk by chunk: project, attend, project back into X. A chunk is whole sequences, so no chunk
// reads a row of X that another has replaced.
absl::Status Encoder::Attention(const Layer& layer, const Rows& x, const ActivationPlan& plan,
                                ExecutionSlot& slot) const {
  const size_t element = DTypeBytes(backend_.dtype());
  const RaggedBatch& batch = slot.staging_.batch();
  Arena& arena = slot.arena_;
  Stream& stream = *slot.stream_;
  const Scratch scratch = ScratchAt(arena, plan.attention_scratch);

  for (const BatchChunk& chunk : slot.staging_.chunks()) {
    const Rows x_chunk = RowSlice(x, chunk.first_row, chunk.num_rows, element);
    const Rows qkv =
        Matrix(arena.At(plan.qkv), chunk.num_rows, config_.heads * (2 * layer.d_qk + layer.d_v));
    const int64_t context_cols = int64_t{config_.heads} * layer.d_v;
    const Rows context = ReplacesQuery(layer)
                             ? ColumnSlice(qkv, 0, context_cols, element)
                             : Matrix(arena.At(plan.context), chunk.num_rows, context_cols);

    for (const Layer::Projection& p : layer.projections) {
      FSVD_RETURN_IF_ERROR(
          backend_.Project({.linear = p.linear.get(),
                            .x = x_chunk,
                            .y = ColumnSlice(qkv, p.column, p.linear->out(), element)},
                           scratch, stream));
    }
    FSVD_RETURN_IF_ERROR(backend_.AttentionAddNorm(
        {.qkv = qkv,
         .context = context,
         .host_cu_seqlens = batch.host_cu_seqlens + chunk.first_sequence,
         .schedule = chunk.schedule,
         .num_sequences = chunk.num_sequences,
         .max_seqlen = batch.max_seqlen,
         .num_heads = config_.heads,
         .d_qk = layer.d_qk,
         .d_v = layer.d_v,
         .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim()))},
        {.linear = layer.output.get(),
         .y = context,
         .x = x_chunk,
         .norm = layer.attention_norm.params()},
        scratch, stream));
  }
  return absl::OkStatus();
}

absl::Status Encoder::FeedForward(const Layer& layer, const Rows& x, const ActivationPlan& plan,
                                  ExecutionSlot& slot) const {
  Arena& arena = slot.arena_;
  const Scratch scratch = ScratchAt(arena, plan.ffn_scratch);
  if (options_.streaming) {
    return backend_.FeedForward({.up = layer.up.get(),
                                 .down = layer.down.get(),
                                 .activation = config_.activation,
                                 .x = x,
                                 .norm = layer.ffn_norm.params()},
                                scratch, *slot.stream_);
  }
  const Rows hidden = Matrix(arena.At(plan.hidden), x.rows, config_.ffn);
  FSVD_RETURN_IF_ERROR(backend_.Project(
      {.linear = layer.up.get(), .x = x, .y = hidden, .activation = config_.activation}, scratch,
      *slot.stream_));
  return backend_.ProjectAddNorm(
      {.linear = layer.down.get(), .y = hidden, .x = x, .norm = layer.ffn_norm.params()}, scratch,
      *slot.stream_);
}

}  // namespace flashsvd
